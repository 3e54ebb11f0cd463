//! NIfTI-1 and NIfTI-2: `.nii`, `.nii.gz` and pairs of `.hdr` and `.img`, in either byte order.
//!
//! Where the standard leaves a choice, nibabel's is taken: the sform wins over the qform, and with
//! neither the voxel sizes alone place the grid, centred and with x running to the left.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use nifti::{Endianness, NiftiHeader};

use super::dtype::{ByteOrder, Dtype, Element};
use super::file::{Input, ends_with, write_atomically};
use super::source::{Format, Header, Packed, Source, checked_shape, damaged, skip_to_voxels};
use super::volume::{closest_rotation, determinant, shape_text};
use super::{Geometry, Volume};
use crate::{Error, Result};

/// Bytes of the header in versions 1 and 2.
const SIZE_1: usize = 348;
const SIZE_2: usize = 540;

/// A header's bytes as they stand in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawHeader {
    bytes: Vec<u8>,
    order: ByteOrder,
    /// The grid they describe.
    geometry: Geometry,
}

/// What is needed of a header of either version.
struct Fields {
    dim: [i64; 8],
    datatype: i16,
    pixdim: [f64; 8],
    vox_offset: f64,
    slope: f64,
    intercept: f64,
    qform_code: i32,
    sform_code: i32,
    quaternion: [f64; 3],
    offset: [f64; 3],
    srow: [[f64; 4]; 3],
    /// Header and voxels in one file.
    single: bool,
}

/// The version and byte order of a header, by its first four bytes, which hold its size.
fn version(start: &[u8]) -> Option<(usize, ByteOrder)> {
    let size: [u8; 4] = start.get(..4)?.try_into().ok()?;
    [(SIZE_1, ByteOrder::Little), (SIZE_1, ByteOrder::Big), (SIZE_2, ByteOrder::Little), (SIZE_2, ByteOrder::Big)]
        .into_iter()
        .find(|&(bytes, order)| size == in_order((bytes as i32).to_le_bytes(), order))
}

/// Whether a file that starts with `start` is NIfTI.
pub(crate) fn recognises(start: &[u8]) -> bool {
    version(start).is_some()
}

/// Opens a NIfTI file, or a pair by either of its two names.
///
/// # Errors
/// If it cannot be read, is not NIfTI, is damaged, or holds what is not one scalar volume.
pub fn open(path: &Path) -> Result<Source> {
    let header_path = other_half(path, ".img", ".hdr").unwrap_or_else(|| path.to_path_buf());
    let mut input = Input::open(&header_path)?;
    let mut bytes = vec![0; SIZE_2];
    let start = input.fill(&mut bytes[..SIZE_1]).map_err(|error| damaged(&header_path, &error))?;
    let (size, order) = version(&bytes[..start])
        .ok_or_else(|| Error::file(&header_path, "is not NIfTI: its first four bytes are not a header size"))?;
    let rest = input.fill(&mut bytes[SIZE_1..size.max(SIZE_1)]).map_err(|error| damaged(&header_path, &error))?;
    if start + rest < size {
        return Err(Error::file(
            &header_path,
            format!("is truncated: a NIfTI header has {size} bytes and the file holds {}", start + rest),
        ));
    }
    bytes.truncate(size);

    let fields = if size == SIZE_1 {
        Fields::version_1(&header_path, &bytes, order)?
    } else {
        Fields::version_2(&header_path, &bytes, order)?
    };
    let dtype = fields.dtype(&header_path)?;
    let shape = fields.shape(&header_path)?;
    let geometry = Geometry { shape, affine: fields.affine(&header_path, shape)? };

    let voxel_path = if fields.single { header_path.clone() } else { voxel_file(&header_path)? };
    let (mut input, position) = if fields.single { (input, size as u64) } else { (Input::open(&voxel_path)?, 0) };
    let skip = fields.voxel_offset(&header_path, size)?.saturating_sub(position);
    skip_to_voxels(&voxel_path, &mut input, skip, skip + position)?;

    let again = || {
        let mut input = Input::open(&voxel_path)?;
        input.skip(position + skip).map_err(|error| damaged(&voxel_path, &error))?;
        Ok(input)
    };
    let values = Packed::new(&voxel_path, input, shape, dtype, order, fields.scaling(), again)?;
    let format = if size == SIZE_1 { Format::Nifti1 } else { Format::Nifti2 };
    let raw = RawHeader { bytes, order, geometry: geometry.clone() };
    let files = if fields.single { vec![voxel_path] } else { vec![header_path, voxel_path] };
    Source::new(
        path,
        files,
        geometry,
        Header { format, dtype, nifti: Some(raw), notes: fields.notes() },
        Box::new(values),
    )
}

/// `path` with `.img` (or `.img.gz`) exchanged for `.hdr`, the compressed and the plain one tried.
fn other_half(path: &Path, from: &str, to: &str) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let lower = name.to_ascii_lowercase();
    let stem = lower.strip_suffix(".gz").unwrap_or(&lower).strip_suffix(from)?.len();
    let upper_case = name[stem..].starts_with(&from.to_ascii_uppercase());
    let to = if upper_case { to.to_ascii_uppercase() } else { to.to_owned() };
    let candidates =
        [format!("{}{to}", &name[..stem]), format!("{}{to}.gz", &name[..stem])].map(|name| path.with_file_name(name));
    let present = candidates.iter().find(|candidate| candidate.is_file()).cloned();
    present.or_else(|| candidates.into_iter().next())
}

fn voxel_file(header_path: &Path) -> Result<PathBuf> {
    match other_half(header_path, ".hdr", ".img") {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(Error::file(header_path, format!("is half of a pair, and {} is missing", path.display()))),
        None => Err(Error::file(header_path, "says that its voxels are in another file; it should be named .hdr")),
    }
}

/// `N` bytes at `offset` of a header, least significant first.
fn at<const N: usize>(bytes: &[u8], offset: usize, order: ByteOrder) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    in_order(field, order)
}

/// Little-endian bytes put in `order`, or back.
fn in_order<const N: usize>(mut bytes: [u8; N], order: ByteOrder) -> [u8; N] {
    if order == ByteOrder::Big {
        bytes.reverse();
    }
    bytes
}

impl Fields {
    fn version_1(path: &Path, bytes: &[u8], order: ByteOrder) -> Result<Self> {
        let header = NiftiHeader::from_reader(bytes).map_err(|_| {
            Error::file(path, "is not NIfTI: it lacks the mark n+1 or ni1 (an Analyze 7.5 file says nothing of orientation: convert it)")
        })?;
        let read_order = if header.endianness == Endianness::Little { ByteOrder::Little } else { ByteOrder::Big };
        if read_order != order {
            return Err(Error::file(path, "is damaged: its number of axes (dim[0]) is not between 1 and 7"));
        }
        Ok(Fields {
            // Signed in the standard, unsigned in the crate.
            dim: header.dim.map(|n| i64::from(n as i16)),
            datatype: header.datatype,
            pixdim: header.pixdim.map(f64::from),
            vox_offset: f64::from(header.vox_offset),
            slope: f64::from(header.scl_slope),
            intercept: f64::from(header.scl_inter),
            qform_code: i32::from(header.qform_code),
            sform_code: i32::from(header.sform_code),
            quaternion: [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from),
            offset: [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from),
            srow: [header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from)),
            single: &header.magic == nifti::header::MAGIC_CODE_NIP1,
        })
    }

    fn version_2(path: &Path, bytes: &[u8], order: ByteOrder) -> Result<Self> {
        let single = match &bytes[4..8] {
            b"n+2\0" => true,
            b"ni2\0" => false,
            _ => return Err(Error::file(path, "is not NIfTI: it lacks the mark n+2 or ni2")),
        };
        let float = |offset| f64::from_le_bytes(at(bytes, offset, order));
        let integer = |offset| i32::from_le_bytes(at(bytes, offset, order));
        let long = |offset| i64::from_le_bytes(at(bytes, offset, order));
        Ok(Fields {
            dim: std::array::from_fn(|i| long(16 + 8 * i)),
            datatype: i16::from_le_bytes(at(bytes, 12, order)),
            pixdim: std::array::from_fn(|i| float(104 + 8 * i)),
            vox_offset: long(168) as f64,
            slope: float(176),
            intercept: float(184),
            qform_code: integer(344),
            sform_code: integer(348),
            quaternion: [352, 360, 368].map(float),
            offset: [376, 384, 392].map(float),
            srow: [400, 432, 464].map(|row| std::array::from_fn(|i| float(row + 8 * i))),
            single,
        })
    }

    fn dtype(&self, path: &Path) -> Result<Dtype> {
        let unreadable = match self.datatype {
            2 => return Ok(Dtype::U8),
            4 => return Ok(Dtype::I16),
            8 => return Ok(Dtype::I32),
            16 => return Ok(Dtype::F32),
            64 => return Ok(Dtype::F64),
            256 => return Ok(Dtype::I8),
            512 => return Ok(Dtype::U16),
            768 => return Ok(Dtype::U32),
            1024 => return Ok(Dtype::I64),
            1280 => return Ok(Dtype::U64),
            1 => "single bits",
            32 | 1792 | 2048 => "complex numbers",
            128 | 2304 => "colours",
            1536 => "128-bit floating-point numbers",
            _ => "an unknown number type",
        };
        Err(Error::file(
            path,
            format!("holds {unreadable} (datatype {}): convert it to a plain number type", self.datatype),
        ))
    }

    fn shape(&self, path: &Path) -> Result<[usize; 3]> {
        let axes = self.dim[0];
        if !(1..=7).contains(&axes) {
            return Err(Error::file(path, format!("is damaged: it claims {axes} axes (dim[0])")));
        }
        let sizes = &self.dim[1..=axes as usize];
        if sizes.iter().skip(3).any(|&n| n != 1) {
            let text = sizes.iter().map(i64::to_string).collect::<Vec<_>>().join(" x ");
            return Err(Error::file(path, format!("holds more than one volume ({text}): extract one of them")));
        }
        let mut shape = [1; 3];
        for (n, &size) in shape.iter_mut().zip(sizes) {
            *n = size;
        }
        checked_shape(path, shape)
    }

    /// Slope and intercept, if they change anything.
    fn scaling(&self) -> Option<(f64, f64)> {
        let intercept = if self.intercept.is_finite() { self.intercept } else { 0.0 };
        let scales = self.slope.is_finite() && self.slope != 0.0 && (self.slope, intercept) != (1.0, 0.0);
        scales.then_some((self.slope, intercept))
    }

    fn voxel_offset(&self, path: &Path, header_size: usize) -> Result<u64> {
        let offset = self.vox_offset;
        let least = if self.single { header_size as f64 } else { 0.0 };
        match offset {
            // 0 in a single file: the voxels follow the header and the four bytes that announce extensions.
            0.0 if self.single => Ok(header_size as u64 + 4),
            _ if offset.is_finite() && offset >= least && offset.fract() == 0.0 => Ok(offset as u64),
            _ => Err(Error::file(path, format!("is damaged: its voxels cannot begin at byte {offset} (vox_offset)"))),
        }
    }

    fn notes(&self) -> Vec<String> {
        match self.sform_code > 0 || self.qform_code > 0 {
            true => Vec::new(),
            false => vec![
                "has neither sform nor qform: it is taken to be centred, with x to the left, y to the front and z to \
                 the top; check that"
                    .to_owned(),
            ],
        }
    }

    fn affine(&self, path: &Path, shape: [usize; 3]) -> Result<[[f64; 4]; 4]> {
        let last = [0.0, 0.0, 0.0, 1.0];
        if self.sform_code > 0 {
            return Ok([self.srow[0], self.srow[1], self.srow[2], last]);
        }
        // As nibabel does: the sizes' signs are dropped, a missing one is 1 mm.
        let spacing: [f64; 3] = std::array::from_fn(|i| match self.pixdim[i + 1].abs() {
            0.0 => 1.0,
            size => size,
        });
        let mut affine = [[0.0; 4], [0.0; 4], [0.0; 4], last];
        if self.qform_code > 0 {
            let rotation = rotation_of(self.quaternion).ok_or_else(|| {
                Error::file(path, format!("is damaged: {:?} is not a unit quaternion (qform)", self.quaternion))
            })?;
            let handedness = if self.pixdim[0] == -1.0 { -1.0 } else { 1.0 };
            for row in 0..3 {
                for column in 0..3 {
                    affine[row][column] = rotation[row][column] * spacing[column];
                }
                affine[row][2] *= handedness;
                affine[row][3] = self.offset[row];
            }
        } else {
            for axis in 0..3 {
                affine[axis][axis] = if axis == 0 { -spacing[axis] } else { spacing[axis] };
                affine[axis][3] = -affine[axis][axis] * (shape[axis] as f64 - 1.0) / 2.0;
            }
        }
        Ok(affine)
    }
}

/// The rotation of a unit quaternion of which b, c, d are stored and a >= 0 follows from them.
fn rotation_of([b, c, d]: [f64; 3]) -> Option<[[f64; 3]; 3]> {
    let square = b * b + c * c + d * d;
    // Single precision may leave a little more than 1.
    if square.is_nan() || square > 1.0 + 1e-5 {
        return None;
    }
    let a = (1.0 - square).max(0.0).sqrt();
    let s = 2.0 / (a * a + square);
    Some([
        [1.0 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
        [s * (b * c + a * d), 1.0 - s * (b * b + d * d), s * (c * d - a * b)],
        [s * (b * d - a * c), s * (c * d + a * b), 1.0 - s * (b * b + c * c)],
    ])
}

/// b, c, d of the unit quaternion (a >= 0) of a rotation.
fn quaternion_of(r: &[[f64; 3]; 3]) -> [f64; 3] {
    // The largest of the four components is found from the diagonal, the others from it.
    let trace = r[0][0] + r[1][1] + r[2][2];
    let (a, b, c, d);
    if trace > 0.0 {
        a = 0.5 * (1.0 + trace).sqrt();
        let s = 0.25 / a;
        (b, c, d) = (s * (r[2][1] - r[1][2]), s * (r[0][2] - r[2][0]), s * (r[1][0] - r[0][1]));
    } else if r[0][0] >= r[1][1] && r[0][0] >= r[2][2] {
        b = 0.5 * (1.0 + r[0][0] - r[1][1] - r[2][2]).sqrt();
        let s = 0.25 / b;
        (a, c, d) = (s * (r[2][1] - r[1][2]), s * (r[0][1] + r[1][0]), s * (r[0][2] + r[2][0]));
    } else if r[1][1] >= r[2][2] {
        c = 0.5 * (1.0 - r[0][0] + r[1][1] - r[2][2]).sqrt();
        let s = 0.25 / c;
        (a, b, d) = (s * (r[0][2] - r[2][0]), s * (r[0][1] + r[1][0]), s * (r[1][2] + r[2][1]));
    } else {
        d = 0.5 * (1.0 - r[0][0] - r[1][1] + r[2][2]).sqrt();
        let s = 0.25 / d;
        (a, b, c) = (s * (r[1][0] - r[0][1]), s * (r[0][2] + r[2][0]), s * (r[1][2] + r[2][1]));
    }
    let sign = if a < 0.0 { -1.0 } else { 1.0 };
    [b, c, d].map(|component| sign * component)
}

/// Writes `volume` as NIfTI: `.nii.gz` compressed, without a time stamp, or `.nii` plain.
///
/// With the header of the scan it belongs to (`like`), the geometry fields are that header's own
/// bytes: version, byte order, pixdim, units, both codes, quaternion, offsets and affine. Without,
/// or if that scan was not NIfTI, a NIfTI-1 header is made from the volume's geometry. The file
/// appears whole or not at all, and the same volume gives the same bytes each time.
///
/// # Errors
/// If the name does not end in `.nii` or `.nii.gz`, the shape is not that of `like`, or writing fails.
pub fn write<T: Element>(path: &Path, volume: &Volume<T>, like: Option<&Header>) -> Result<()> {
    let compressed = ends_with(path, ".nii.gz");
    if !compressed && !ends_with(path, ".nii") {
        return Err(Error::file(path, "a NIfTI file's name should end in .nii.gz or .nii"));
    }
    let template = match like.and_then(|header| header.nifti.as_ref()) {
        Some(raw) if raw.geometry.shape == volume.geometry.shape => raw.clone(),
        Some(raw) => {
            return Err(Error::file(
                path,
                format!(
                    "a volume of {} voxels cannot be given the header of one of {}",
                    shape_text(volume.geometry.shape),
                    shape_text(raw.geometry.shape)
                ),
            ));
        }
        None => new_geometry(path, &volume.geometry)?,
    };
    let header = header_like(&template, volume.geometry.shape, T::DTYPE);
    write_atomically(path, |writer| {
        if compressed {
            // Level 6 halves the time of level 9 for one percent more bytes.
            let mut encoder = GzBuilder::new().mtime(0).write(writer, Compression::new(6));
            write_body(&mut encoder, &header, volume, template.order)?;
            encoder.finish()?;
            Ok(())
        } else {
            write_body(writer, &header, volume, template.order)
        }
    })
}

fn write_body<T: Element>(
    writer: &mut impl Write,
    header: &[u8],
    volume: &Volume<T>,
    order: ByteOrder,
) -> io::Result<()> {
    writer.write_all(header)?;
    // No extensions follow.
    writer.write_all(&[0; 4])?;
    let mut bytes = Vec::with_capacity(T::DTYPE.size() << 14);
    for block in volume.voxels.chunks(1 << 14) {
        bytes.clear();
        for &voxel in block {
            voxel.append_to(&mut bytes);
        }
        if order == ByteOrder::Big {
            bytes.chunks_exact_mut(T::DTYPE.size()).for_each(<[u8]>::reverse);
        }
        writer.write_all(&bytes)?;
    }
    Ok(())
}

/// A header of `template`'s version and byte order with its geometry fields and all else new.
fn header_like(template: &RawHeader, shape: [usize; 3], dtype: Dtype) -> Vec<u8> {
    let size = template.bytes.len();
    let order = template.order;
    let mut bytes = vec![0; size];
    let dim = [3, shape[0], shape[1], shape[2], 1, 1, 1, 1];
    let code: i16 = match dtype {
        Dtype::U8 => 2,
        Dtype::I16 => 4,
        Dtype::I32 => 8,
        Dtype::F32 => 16,
        Dtype::F64 => 64,
        Dtype::I8 => 256,
        Dtype::U16 => 512,
        Dtype::U32 => 768,
        Dtype::I64 => 1024,
        Dtype::U64 => 1280,
    };
    let bits = 8 * dtype.size() as i16;
    put(&mut bytes, 0, in_order((size as i32).to_le_bytes(), order));
    if size == SIZE_1 {
        for (i, n) in dim.into_iter().enumerate() {
            put(&mut bytes, 40 + 2 * i, in_order((n as i16).to_le_bytes(), order));
        }
        put(&mut bytes, 38, *b"r");
        put(&mut bytes, 70, in_order(code.to_le_bytes(), order));
        put(&mut bytes, 72, in_order(bits.to_le_bytes(), order));
        put(&mut bytes, 108, in_order((SIZE_1 as f32 + 4.0).to_le_bytes(), order));
        put(&mut bytes, 112, in_order(1f32.to_le_bytes(), order));
        put(&mut bytes, 344, *b"n+1\0");
        // pixdim, xyzt_units, qform_code to srow_z
        for field in [76..108, 123..124, 252..328] {
            bytes[field.clone()].copy_from_slice(&template.bytes[field]);
        }
    } else {
        put(&mut bytes, 4, *b"n+2\0\r\n\x1a\n");
        put(&mut bytes, 12, in_order(code.to_le_bytes(), order));
        put(&mut bytes, 14, in_order(bits.to_le_bytes(), order));
        for (i, n) in dim.into_iter().enumerate() {
            put(&mut bytes, 16 + 8 * i, in_order((n as i64).to_le_bytes(), order));
        }
        put(&mut bytes, 168, in_order((SIZE_2 as i64 + 4).to_le_bytes(), order));
        put(&mut bytes, 176, in_order(1f64.to_le_bytes(), order));
        // pixdim, qform_code to srow_z, xyzt_units
        for field in [104..168, 344..496, 500..504] {
            bytes[field.clone()].copy_from_slice(&template.bytes[field]);
        }
    }
    bytes
}

fn put<const N: usize>(bytes: &mut [u8], offset: usize, field: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&field);
}

/// The geometry fields of a new NIfTI-1 header: scanner coordinates in millimetres as sform, and as
/// qform too unless the axes are not at right angles, which a qform cannot say.
fn new_geometry(path: &Path, geometry: &Geometry) -> Result<RawHeader> {
    if geometry.shape.iter().any(|&n| n > i16::MAX as usize) {
        return Err(Error::file(
            path,
            format!("a NIfTI-1 axis has at most {} voxels, not {}", i16::MAX, shape_text(geometry.shape)),
        ));
    }
    let mut bytes = vec![0; SIZE_1];
    let spacing = geometry.spacing();
    let directions: [[f64; 3]; 3] =
        std::array::from_fn(|row| std::array::from_fn(|axis| geometry.affine[row][axis] / spacing[axis]));
    let mut rotation = closest_rotation(directions);
    let rigid = rotation.iter().flatten().zip(directions.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-4);
    let handedness = if determinant(&rotation) < 0.0 { -1.0 } else { 1.0 };
    for row in &mut rotation {
        row[2] *= handedness;
    }

    let mut floats = vec![(76, handedness)];
    floats.extend((0..3).map(|i| (80 + 4 * i, spacing[i])));
    floats.extend(quaternion_of(&rotation).into_iter().enumerate().map(|(i, value)| (256 + 4 * i, value)));
    floats.extend((0..3).map(|row| (268 + 4 * row, geometry.affine[row][3])));
    floats.extend((0..12).map(|i| (280 + 4 * i, geometry.affine[i / 4][i % 4])));
    for (offset, value) in floats {
        put(&mut bytes, offset, (value as f32).to_le_bytes());
    }
    bytes[123] = 2; // millimetres
    put(&mut bytes, 252, i16::from(rigid).to_le_bytes());
    put(&mut bytes, 254, 1i16.to_le_bytes());
    Ok(RawHeader { bytes, order: ByteOrder::Little, geometry: geometry.clone() })
}
