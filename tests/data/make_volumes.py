"""Writes the small volumes of tests/data/volumes/ and, as nibabel and SimpleITK read them, expected.json.

Run with Python 3, nibabel, SimpleITK, pydicom and pyjpegls: python make_volumes.py
The files are checked in; this script says how they came about and what is expected of them.
"""

import gzip
import json
import shutil
import struct
import zlib
from pathlib import Path

import jpeg_ls
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

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


def patch(name, source, changes):
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


def record_itk(name, file_format):
    image = sitk.ReadImage(str(FOLDER / name))
    data = sitk.GetArrayFromImage(image).T
    to_lps = np.eye(4)
    axes = image.GetDimension()
    to_lps[:axes, :axes] = np.reshape(image.GetDirection(), (axes, axes)) @ np.diag(image.GetSpacing())
    to_lps[:axes, 3] = image.GetOrigin()
    if axes == 2:
        data = data[..., None]
    record(name, data, np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps, file_format, data.dtype.name)


def itk_image(data, matrix):
    """A SimpleITK image of data[x, y, z] whose voxels lie where the RAS+ matrix says."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).flatten().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def metaimage(name, data, matrix, compressed=False):
    sitk.WriteImage(itk_image(data, matrix), str(FOLDER / name), compressed)
    record_itk(name, "MetaImage")


def metaimage_by_hand(name, lines, data, raw_name=None, before=b""):
    """A header of exactly these lines, and its voxels."""
    header = "".join(line + "\n" for line in [*lines, f"ElementDataFile = {raw_name or 'LOCAL'}"]).encode()
    body = data.flatten(order="F").tobytes()
    if raw_name:
        (FOLDER / name).write_bytes(header)
        (FOLDER / raw_name).write_bytes(before + body)
    else:
        (FOLDER / name).write_bytes(header + before + body)
    record_itk(name, "MetaImage")


def metaimage_volumes():
    tilted = affine(rotation(10, -20, 30))
    types = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    for number, dtype in enumerate(types):
        data = voxels(dtype, seed=number)
        metaimage(f"mi_{dtype}.mha", data, tilted, compressed=number % 2 == 1)
    metaimage("mi_pair.mhd", voxels("int16"), tilted)
    metaimage("mi_pair_compressed.mhd", voxels("int16"), affine(rotation(0, 0, 180)), compressed=True)
    metaimage("mi_left_handed.mha", voxels("int16"), affine(np.diag([1, 1, -1])))

    kind = ["ObjectType = Image", "NDims = 3", "DimSize = 5 4 3"]
    short = ["ElementType = MET_SHORT"]
    data = voxels("int16")
    metaimage_by_hand("mi_no_direction.mhd", [*kind, *short], data, "mi_no_direction.raw")
    metaimage_by_hand(
        "mi_msb.mha",
        [*kind, "BinaryDataByteOrderMSB = True", "ElementSpacing = 0.5 0.75 3", *short],
        data.astype(">i2"),
    )
    metaimage_by_hand(
        "mi_element_msb.mhd",
        [*kind, "BinaryData = True", "ElementByteOrderMSB = True", "Offset = 1 2 3", "ElementType = MET_FLOAT"],
        data.astype(">f4"),
        "mi_element_msb.raw",
    )
    metaimage_by_hand(
        "mi_position.mha",
        [*kind, "Position = -3.5 12 100.25", "Orientation = 0 1 0 -1 0 0 0 0 1", "ElementSpacing = 0.4 0.5 0.6", *short],
        data,
    )
    metaimage_by_hand(
        "mi_origin.mha",
        [*kind, "Origin = -3.5 12 100.25", "Rotation = 0 0 1 1 0 0 0 1 0", "ElementSpacing = 0.4 0.5 0.6", *short],
        data,
    )
    metaimage_by_hand("mi_element_size.mha", [*kind, "ElementSize = 0.4 0.5 0.6", *short], data)
    metaimage_by_hand(
        "mi_header_size.mhd", [*kind, "HeaderSize = 10", *short], data, "mi_header_size.raw", before=b"0123456789"
    )
    metaimage_by_hand(
        "mi_at_the_end.mhd", [*kind, "HeaderSize = -1", *short], data, "mi_at_the_end.raw", before=b"0123456"
    )
    metaimage_by_hand("mi_long.mha", [*kind, "ElementType = MET_LONG"], data.astype("<i4"))
    metaimage_by_hand(
        "mi_two_axes.mha",
        ["ObjectType = Image", "NDims = 2", "DimSize = 20 3", "ElementSpacing = 2 3", "Offset = 5 6", *short],
        data.reshape(20, 3),
    )
    metaimage_by_hand(
        "mi_compressed_by_hand.mhd",
        [*kind, "CompressedData = True", *short],
        np.frombuffer(zlib.compress(data.flatten(order="F").tobytes()), dtype=np.uint8),
        "mi_compressed_by_hand.zraw",
    )


def dicom_slice(pixels, position, directions, number, spacing=(0.75, 0.5), bits=16, **fields):
    """A CT slice of pixels[row, column]; spacing as DICOM has it, between rows, then columns."""
    out = Dataset()
    out.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    out.SOPInstanceUID = f"1.2.826.0.1.3680043.2.1143.{number + 1}"
    out.Modality = "CT"
    out.PatientName = "Phantom"
    out.PatientID = "0"
    out.StudyInstanceUID = "1.2.826.0.1.3680043.2.1143.1000"
    out.SeriesInstanceUID = "1.2.826.0.1.3680043.2.1143.2000"
    out.SeriesDescription = "small"
    # Neither of these two is to be trusted.
    out.InstanceNumber = 100 - number
    out.SliceThickness = 7
    out.ImagePositionPatient = [float(value) for value in position]
    out.ImageOrientationPatient = [float(value) for value in np.ravel(directions)]
    out.PixelSpacing = list(spacing)
    out.Rows, out.Columns = pixels.shape
    out.SamplesPerPixel = 1
    out.PhotometricInterpretation = "MONOCHROME2"
    out.BitsAllocated = pixels.dtype.itemsize * 8
    out.BitsStored = bits
    out.HighBit = bits - 1
    out.PixelRepresentation = int(pixels.dtype.kind == "i")
    out.RescaleSlope, out.RescaleIntercept = "1", "-1024"
    for key, value in fields.items():
        setattr(out, key, value)
    out.PixelData = pixels.tobytes()
    out["PixelData"].VR = "OW"
    return out


def dicom_save(out, path, syntax=ExplicitVRLittleEndian):
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and out.BitsAllocated == 16:
        out.PixelData = np.frombuffer(out.PixelData, "<u2").astype(">u2").tobytes()
    if syntax == RLELossless:
        out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        out.compress(RLELossless)
    pydicom.dcmwrite(path, out, enforce_file_format=True)


def record_dicom(name, dtype):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(FOLDER / name)))
    image = reader.Execute()
    to_lps = np.eye(4)
    to_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    to_lps[:3, 3] = image.GetOrigin()
    data = sitk.GetArrayFromImage(image).T
    record(name, data, np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps, "DICOM", np.dtype(dtype).name)
    return data


AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])


def dicom_series(name, data, directions=AXIAL, syntax=ExplicitVRLittleEndian, step=2.5, compressor=None, change=None, **fields):
    """A folder of slices data[x, y, z] whose names are not in their order."""
    folder = FOLDER / name
    folder.mkdir()
    normal = np.cross(directions[0], directions[1])
    for z in range(data.shape[2]):
        position = np.round(np.array([-30.5, 20.25, -400.0]) + z * step * normal, 6)
        out = dicom_slice(np.ascontiguousarray(data[:, :, z].T), position, directions, z, **fields)
        if change:
            change(out)
        path = folder / f"IM{(z * 7 + 3) % 10}"
        dicom_save(out, path, syntax)
        if compressor:
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.SetFileName(str(folder / "compressed.dcm"))
            writer.Execute(sitk.GetImageFromArray(np.ascontiguousarray(data[:, :, z].T)))
            coded = pydicom.dcmread(folder / "compressed.dcm")
            (folder / "compressed.dcm").unlink()
            # The compressed pixels with the header as it was.
            out.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
            out.PixelData = coded.PixelData
            out["PixelData"].VR = "OB"
            pydicom.dcmwrite(path, out, enforce_file_format=True)
    first = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
    return record_dicom(name, f"{'i' if first.PixelRepresentation else 'u'}{first.BitsAllocated // 8}")


def body(dtype, bits, shape=(40, 30, 3)):
    """Like a scan: plain air, smooth tissue with noise, and metal at the end of the range."""
    low = -(1 << (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    high = low + (1 << bits) - 1
    x, y, z = np.indices(shape)
    tissue = np.hypot(x - 18, y - 14) < 11 + z
    values = np.full(shape, low + (high - low) // 50)
    noise = np.random.default_rng(bits).normal(size=shape) * (high - low) / 300
    values[tissue] = (low + (high - low) * (0.3 + 0.01 * x) + noise)[tissue].astype(np.int64)
    values[20:24, 12:15] = high
    values[14:16, 12:15] = low
    return values.astype(dtype)


def dicom_jpeg_ls(name, data, bits, bound=0):
    """A series with pixels at most `bound` from data."""

    def compress(out):
        coded = jpeg_ls.encode_pixel_data(
            out.PixelData,
            lossy_error=bound,
            rows=out.Rows,
            columns=out.Columns,
            samples_per_pixel=1,
            bits_allocated=out.BitsAllocated,
            bits_stored=bits,
            photometric_interpretation=out.PhotometricInterpretation,
            pixel_representation=out.PixelRepresentation,
            planar_configuration=0,
        )
        out.PixelData = encapsulate([bytes(coded)])
        out["PixelData"].VR = "OB"
        out["PixelData"].is_undefined_length = True

    syntax = JPEGLSNearLossless if bound else JPEGLSLossless
    read = dicom_series(name, data, syntax=syntax, change=compress, bits=bits, RescaleIntercept="0")
    assert np.abs(read - data.astype(np.int64)).max() == bound


def dicom_volumes():
    unsigned, signed = voxels("uint16"), voxels("int16")
    dicom_series("dicom_explicit", unsigned)
    dicom_series("dicom_implicit", signed, syntax=ImplicitVRLittleEndian)
    dicom_series("dicom_big_endian", signed, syntax=ExplicitVRBigEndian)
    dicom_series("dicom_rle", voxels("uint16", (16, 12, 3)), syntax=RLELossless)
    dicom_series("dicom_bytes", voxels("uint8"), bits=8, RescaleSlope="2.5", RescaleIntercept="-100")
    # Twelve bits with a sign, and nothing in the bits above them.
    twelve = (np.random.default_rng(5).integers(-2048, 2048, size=SHAPE) & 0xFFF).astype(np.int16)
    dicom_series("dicom_twelve_bits", twelve, bits=12, RescaleIntercept="0")
    dicom_series("dicom_sagittal", unsigned, directions=np.array([[0.0, 1, 0], [0, 0, -1]]))
    dicom_series("dicom_oblique", unsigned, directions=np.round(rotation(10, -20, 30)[:, :2].T, 9))
    for compressor in ["JPEG", "JPEG2000"]:
        dicom_series(f"dicom_{compressor.lower()}", voxels("uint16", (16, 12, 3)), compressor=compressor)
        dicom_series(f"dicom_{compressor.lower()}_signed", voxels("int16", (16, 12, 3)), compressor=compressor)
    twelve_bits = body("uint16", 12)
    dicom_jpeg_ls("dicom_jpeg_ls", twelve_bits, 12)
    dicom_jpeg_ls("dicom_jpeg_ls_near", twelve_bits, 12, bound=5)
    dicom_jpeg_ls("dicom_jpeg_ls_bytes", body("uint8", 8), 8)
    dicom_jpeg_ls("dicom_jpeg_ls_signed", body("int16", 16), 16)
    dicom_series("dicom_one_slice", voxels("int16", (5, 4, 1)), SpacingBetweenSlices=4.5)

    def sequences(out):
        out.ReferencedImageSequence = [Dataset(), Dataset()]
        out.ReferencedImageSequence[0].ReferencedSOPClassUID = "1.2.3"
        out.ReferencedImageSequence[1].PurposeOfReferenceCodeSequence = [Dataset()]
        out["ReferencedImageSequence"].is_undefined_length = True
        out.add_new(0x00090010, "LO", "SOMEBODY")
        out.add_new(0x00091001, "UN", b"1234")

    dicom_series("dicom_sequences", unsigned, change=sequences)


def write_expected():
    with open(FOLDER / "expected.json", "w", encoding="utf-8") as out:
        json.dump(expected, out, indent=1, sort_keys=True, allow_nan=False)
        out.write("\n")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    nifti_volumes()
    metaimage_volumes()
    dicom_volumes()
    write_expected()
    largest = max(FOLDER.iterdir(), key=lambda path: path.stat().st_size * (path.suffix != ".json"))
    print(len(expected), "volumes, largest", largest.name, largest.stat().st_size, "bytes")
