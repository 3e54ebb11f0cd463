"""Writes the small volumes of tests/data/volumes/ and, as nibabel and SimpleITK read them, expected.json.

Run with Python 3, nibabel and SimpleITK: python make_volumes.py
The files are checked in; this script says how they came about and what is expected of them.
"""

import gzip
import itertools
import json
import shutil
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

FOLDER = Path(__file__).parent / "volumes"
SHAPE = (5, 4, 3)
expected = {}


def voxels(dtype, shape=SHAPE, seed=0):
    """Values that use the type's range and differ everywhere."""
    dtype = np.dtype(dtype)
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        return (random.normal(size=shape) * 700).astype(dtype)
    low, high = (0, 3000) if dtype.kind == "u" else (-1024, 3000)
    info = np.iinfo(dtype)
    return random.integers(max(low, info.min), min(high, info.max), size=shape).astype(dtype)


def rotation(x, y, z):
    """A rotation by three angles in degrees about the axes, x first."""
    x, y, z = np.radians([x, y, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def affine(matrix=None, spacing=(0.5, 0.75, 3.0), origin=(-12.5, 40.25, -700.0)):
    out = np.eye(4)
    out[:3, :3] = (np.eye(3) if matrix is None else matrix) @ np.diag(spacing)
    out[:3, 3] = origin
    return out


def record(name, data, matrix, file_format, dtype):
    """Notes what a reader must find: data is indexed [x, y, z], the matrix leads to RAS+."""
    data = np.asarray(data, dtype=np.float64)
    flat = data.flatten(order="F")
    expected[name] = {
        "format": file_format,
        "shape": list(data.shape),
        "affine": np.asarray(matrix, dtype=np.float64).tolist(),
        "spacing_mm": np.sqrt((np.asarray(matrix)[:3, :3] ** 2).sum(axis=0)).tolist(),
        "orientation": "".join(nib.aff2axcodes(matrix)),
        "dtype": dtype,
        "min": flat.min(),
        "max": flat.max(),
        "mean": flat.mean(),
        # Depends on the order of the voxels.
        "weighted_sum": float((flat * np.arange(1, flat.size + 1)).sum()),
    }


def record_nifti(name):
    image = nib.load(FOLDER / name)
    data = image.get_fdata()
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    version = "NIfTI-2" if isinstance(image.header, nib.Nifti2Header) else "NIfTI-1"
    record(name, data, image.affine, version, image.get_data_dtype().newbyteorder("=").name)


def nifti(name, data, matrix, kind=nib.Nifti1Image, endianness="<", change=None):
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(data.dtype.newbyteorder(endianness))
    image = kind(data, matrix, header)
    image.header.set_xyzt_units("mm", "sec")
    if change:
        change(image)
    nib.save(image, FOLDER / name)
    path = FOLDER / name
    if name.endswith(".gz"):
        # Without a time stamp, so that the file is the same each time.
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))
    record_nifti(name)


def patch(name, source, changes, data_offset=None):
    """A copy of a fixture with bytes of its header replaced: {offset: (format, values...)}."""
    raw = bytearray((FOLDER / source).read_bytes())
    for offset, (code, *values) in changes.items():
        struct.pack_into(code, raw, offset, *values)
    (FOLDER / name).write_bytes(raw)
    record_nifti(name)


def nifti_volumes():
    types = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    for number, dtype in enumerate(types):
        data = voxels(dtype, seed=number)
        nifti(f"n1_{dtype}.nii", data, affine())
        nifti(f"n1_{dtype}_big.nii.gz", data, affine(), endianness=">")
        nifti(f"n2_{dtype}.nii.gz", data, affine(), kind=nib.Nifti2Image, endianness="<>"[number % 2])

    nifti("pair_little.hdr", voxels("int16"), affine(), kind=nib.Nifti1Pair)
    nifti("pair_big.hdr", voxels("float32"), affine(), kind=nib.Nifti1Pair, endianness=">")
    nifti("pair_two.hdr", voxels("uint16"), affine(), kind=nib.Nifti2Pair)
    nifti("pair_compressed.hdr.gz", voxels("int16"), affine(), kind=nib.Nifti1Pair)
    image = FOLDER / "pair_compressed.img.gz"
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes()), mtime=0))

    def slope(value, intercept):
        return lambda image: image.header.set_slope_inter(value, intercept)

    nifti("slope.nii", voxels("uint8"), affine(), change=slope(2.5, -1024))
    nifti("slope_negative.nii", voxels("int16"), affine(), change=slope(-0.25, 3))
    slope_fields = (112, 116)
    patch("slope_zero.nii", "n1_int16.nii", {slope_fields[0]: ("<f", 0.0), slope_fields[1]: ("<f", 77.0)})
    patch("slope_nan.nii", "n1_int16.nii", {slope_fields[0]: ("<f", np.nan), slope_fields[1]: ("<f", np.nan)})

    def both(sform, qform, sform_code=1, qform_code=1):
        def change(image):
            image.set_sform(sform, sform_code)
            image.set_qform(qform, qform_code)

        return change

    tilted = affine(rotation(10, -20, 30))
    nifti("sform_wins.nii", voxels("int16"), affine(), change=both(affine(), tilted))
    nifti("qform_alone.nii", voxels("int16"), tilted, change=both(None, tilted, 0, 1))
    nifti("qform_left_handed.nii", voxels("int16"), tilted, change=both(None, tilted @ np.diag([1, 1, -1, 1]), 0, 3))
    nifti("qform_half_turn.nii", voxels("int16"), affine(), change=both(None, affine(rotation(0, 0, 180)), 0, 1))
    nifti("no_form.nii", voxels("int16"), affine(), change=both(None, None, 0, 0))
    nifti("fourth_axis.nii.gz", voxels("int16")[..., None], affine())
    nifti("one_slice.nii", voxels("int16", (6, 5, 1)), affine())
    nifti("one_voxel.nii", voxels("int16", (1, 1, 1)), affine())
    # Three extra words between header and voxels.
    raw = (FOLDER / "n1_int16.nii").read_bytes()
    moved = bytearray(raw[:352] + bytes(12) + raw[352:])
    struct.pack_into("<f", moved, 108, 364.0)
    (FOLDER / "voxels_later.nii").write_bytes(moved)
    record_nifti("voxels_later.nii")
    # A gzip file may consist of several members.
    (FOLDER / "two_members.nii.gz").write_bytes(gzip.compress(raw[:400], mtime=0) + gzip.compress(raw[400:], mtime=0))
    record_nifti("two_members.nii.gz")

    for codes in ["LPS", "LAS", "RPI", "PIR", "SRA", "ALI", "IPL", "ASR"]:
        orientation = nib.orientations.axcodes2ornt(tuple(codes))
        matrix = np.zeros((3, 3))
        for axis, (row, sign) in enumerate(orientation):
            matrix[int(row), axis] = sign
        nifti(f"axes_{codes}.nii", voxels("int16"), affine(matrix))
    for number, angles in enumerate([(25, 0, 0), (12, 33, -40), (-30, 44, 100), (45, 0, 45)]):
        nifti(f"oblique_{number}.nii", voxels("int16"), affine(rotation(*angles)))
    shear = np.array([[1, 0.2, 0], [0, 1, 0.1], [0.05, 0, 1]])
    nifti("sheared.nii", voxels("int16"), affine(shear), change=both(affine(shear), None, 1, 0))

    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:4, 1:3, 1:] = 1
    nifti("mask.nii.gz", mask, affine())
    nifti("mask_float.nii", mask.astype(np.float32) * 26, affine())


def write_expected():
    with open(FOLDER / "expected.json", "w", encoding="utf-8") as out:
        json.dump(expected, out, indent=1, sort_keys=True, allow_nan=False)
        out.write("\n")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    nifti_volumes()
    write_expected()
    largest = max(FOLDER.iterdir(), key=lambda path: path.stat().st_size * (path.suffix != ".json"))
    print(len(expected), "volumes, largest", largest.name, largest.stat().st_size, "bytes")
