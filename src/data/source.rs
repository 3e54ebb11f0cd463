//! A scan that has been opened: its geometry is known and checked, its voxels are still in the file.
//!
//! Every format ends up here, so that reading an image, reading a mask and inspecting a file are
//! written once, and the last never holds more than a block of voxels.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dtype::{ByteOrder, Dtype};
use super::file::Input;
use super::volume::shape_text;
use super::{Geometry, Volume};
use crate::{Error, Result};

/// The file formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Nifti1,
    Nifti2,
    MetaImage,
    Dicom,
}

impl Format {
    /// The format's own name for itself.
    pub fn name(self) -> &'static str {
        match self {
            Format::Nifti1 => "NIfTI-1",
            Format::Nifti2 => "NIfTI-2",
            Format::MetaImage => "MetaImage",
            Format::Dicom => "DICOM",
        }
    }
}

/// What a file says of itself besides its voxels and their geometry.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub format: Format,
    /// The stored number type, before slope and intercept.
    pub dtype: Dtype,
    /// The NIfTI header as it stands in the file, so that a mask can be given the same geometry to the last bit.
    pub(crate) nifti: Option<super::nifti::RawHeader>,
    /// What a person should know of how the file was read; mostly nothing.
    pub notes: Vec<String>,
}

/// Voxel values, block after block.
pub(crate) trait Values: Send {
    /// Replaces `block` by the next values, x fastest, slope and intercept applied; empty at the end.
    fn next_block(&mut self, block: &mut Vec<f64>) -> Result<()>;
}

/// An opened scan.
pub struct Source {
    path: PathBuf,
    /// All files that the scan consists of.
    files: Vec<PathBuf>,
    geometry: Geometry,
    header: Header,
    values: Box<dyn Values>,
}

/// The most voxels a scan may have: 8 GiB as 32-bit numbers, four times the largest whole-body CT.
pub(crate) const MOST_VOXELS: usize = 1 << 31;

impl Source {
    pub(crate) fn new(
        path: &Path,
        files: Vec<PathBuf>,
        geometry: Geometry,
        mut header: Header,
        values: Box<dyn Values>,
    ) -> Result<Self> {
        let flat = geometry.affine.map(|row| [row[0], row[1], row[2]]);
        if !geometry.affine.iter().flatten().all(|value| value.is_finite())
            || !super::volume::determinant(&[flat[0], flat[1], flat[2]]).is_normal()
        {
            return Err(Error::file(path, "its affine does not place the voxels in space (zero, infinite or flat)"));
        }
        header.notes.extend(geometry.note());
        Ok(Source { path: path.to_path_buf(), files, geometry, header, values })
    }

    /// The files that the scan consists of: one, header and voxels, or a slice each.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Where the voxels lie.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Hands all values on, block by block, with the index of each block's first voxel.
    ///
    /// # Errors
    /// If the file is damaged or ends too early, or whatever `visit` says.
    pub fn for_each_block(&mut self, mut visit: impl FnMut(usize, &[f64]) -> Result<()>) -> Result<()> {
        let mut block = Vec::new();
        let mut first = 0;
        loop {
            self.values.next_block(&mut block)?;
            if block.is_empty() {
                return Ok(());
            }
            visit(first, &block)?;
            first += block.len();
        }
    }

    /// Hands all values on, run by run of equal ones: the voxels' range, and their value. Labels come in long runs.
    ///
    /// # Errors
    /// As [`Source::for_each_block`].
    pub fn for_each_run(&mut self, mut visit: impl FnMut(Range<usize>, f64) -> Result<()>) -> Result<()> {
        self.for_each_block(|first, block| {
            let mut start = first;
            block.chunk_by(|a, b| a == b).try_for_each(|run| {
                let end = start + run.len();
                visit(std::mem::replace(&mut start, end)..end, run[0])
            })
        })
    }

    /// All voxels as an image.
    ///
    /// # Errors
    /// If the file is damaged or ends too early.
    pub fn into_image(self) -> Result<(Volume<f32>, Header)> {
        self.collect(|_, value| Ok(value as f32))
    }

    /// All voxels as whole-numbered labels.
    ///
    /// # Errors
    /// If the file is damaged, or a value is not a whole number; the message says which and where.
    pub fn into_labels(self) -> Result<(Volume<i32>, Header)> {
        let (path, shape) = (self.path.clone(), self.geometry.shape);
        self.collect(|index, value| match whole(value) {
            Some(label) if i32::try_from(label).is_ok() => Ok(label as i32),
            _ => Err(not_whole(&path, shape, index, value)),
        })
    }

    fn collect<T>(mut self, convert: impl Fn(usize, f64) -> Result<T>) -> Result<(Volume<T>, Header)> {
        let path = self.path.clone();
        let mut voxels: Vec<T> = Vec::new();
        let count = self.geometry.voxel_count();
        self.for_each_block(|first, block| {
            // Grown as the values come: what a header claims is not yet there.
            if voxels.capacity() < voxels.len() + block.len() {
                let wanted = (voxels.len() + block.len()).max(2 * voxels.len()).min(count) - voxels.len();
                voxels.try_reserve_exact(wanted).map_err(|_| Error::file(&path, "not enough memory for its voxels"))?;
            }
            for (offset, &value) in block.iter().enumerate() {
                voxels.push(convert(first + offset, value)?);
            }
            Ok(())
        })?;
        Ok((Volume::new(self.geometry, voxels)?, self.header))
    }
}

/// `value` as a whole number, allowing for a slope that single precision rounded.
pub(crate) fn whole(value: f64) -> Option<i64> {
    let nearest = value.round();
    ((value - nearest).abs() < 1e-4 && nearest.abs() < 9e15).then_some(nearest as i64)
}

/// Voxel `index` of a mask is no whole number.
pub(crate) fn not_whole(path: &Path, shape: [usize; 3], index: usize, value: f64) -> Error {
    let place = voxel_text(shape, index);
    Error::file(path, format!("voxel {place} is {value}, but a mask holds whole numbers"))
}

/// "(12, 3, 40)", counting from 0.
pub(crate) fn voxel_text(shape: [usize; 3], index: usize) -> String {
    let [width, height, _] = shape;
    format!("({}, {}, {})", index % width, index / width % height, index / (width * height))
}

/// The shape as voxel counts, if every axis has a voxel and the whole is not absurd.
///
/// # Errors
/// Says which shape the file claims and what it may be.
pub(crate) fn checked_shape(path: &Path, shape: [i64; 3]) -> Result<[usize; 3]> {
    let count =
        shape.iter().try_fold(1usize, |count, &n| count.checked_mul(usize::try_from(n).ok().filter(|&n| n > 0)?));
    match count {
        Some(count) if count <= MOST_VOXELS => Ok(shape.map(|n| n as usize)),
        _ => Err(Error::file(
            path,
            format!(
                "its header claims {} x {} x {} voxels, not between 1 and {MOST_VOXELS} in all",
                shape[0], shape[1], shape[2]
            ),
        )),
    }
}

/// Goes on by `skip` bytes, to byte `position`, where the voxels are said to begin.
///
/// # Errors
/// If the file ends before, or is damaged.
pub(crate) fn skip_to_voxels(path: &Path, input: &mut Input, skip: u64, position: u64) -> Result<()> {
    let skipped = input.skip(skip.min(input.most)).map_err(|error| damaged(path, &error))?;
    match skipped == skip {
        true => Ok(()),
        false => Err(Error::file(path, format!("is truncated: its voxels should begin at byte {position}"))),
    }
}

/// Numbers lying one after the other in a file, as NIfTI and MetaImage store them.
pub(crate) struct Packed {
    path: PathBuf,
    input: Input,
    shape: [usize; 3],
    dtype: Dtype,
    order: ByteOrder,
    /// Slope and intercept, if any.
    scaling: Option<(f64, f64)>,
    /// Numbers still to come.
    remaining: usize,
    bytes: Vec<u8>,
}

/// A compressed file that claims more than this many bytes, and more than this many times its size, is read twice:
/// the first time to see whether it holds them, so that memory is not filled in vain.
const SUSPICIOUS_BYTES: u64 = 1 << 24;
const SUSPICIOUS_RATIO: u64 = 64;

/// Numbers decoded at a time.
const BLOCK: usize = 1 << 16;

/// Bytes after the last voxel that are read so that a gzip checksum at the end is checked.
const TAIL: u64 = 1 << 20;

impl Packed {
    /// The numbers of a volume of `shape` that begin at `input`'s present position; `again` opens the file anew at
    /// that position.
    ///
    /// # Errors
    /// If the file cannot hold that many, whatever it decompresses to, or is found not to.
    pub fn new(
        path: &Path,
        input: Input,
        shape: [usize; 3],
        dtype: Dtype,
        order: ByteOrder,
        scaling: Option<(f64, f64)>,
        again: impl FnOnce() -> Result<Input>,
    ) -> Result<Self> {
        let remaining = shape.iter().product::<usize>();
        let needed = remaining as u64 * dtype.size() as u64;
        if needed > input.most {
            return Err(Error::file(
                path,
                format!(
                    "its header claims {} voxels of {} ({needed} bytes), but the file can hold at most {}: it is truncated or damaged",
                    shape_text(shape),
                    dtype.name(),
                    input.most
                ),
            ));
        }
        let stored = path.metadata().map_err(Error::io(path))?.len();
        if needed > SUSPICIOUS_BYTES && needed / SUSPICIOUS_RATIO > stored {
            let held = again()?.skip(needed).map_err(|error| damaged(path, &error))?;
            if held < needed {
                return Err(truncated(path, shape, dtype, held));
            }
        }
        Ok(Packed { path: path.to_path_buf(), input, shape, dtype, order, scaling, remaining, bytes: Vec::new() })
    }
}

impl Values for Packed {
    fn next_block(&mut self, block: &mut Vec<f64>) -> Result<()> {
        block.clear();
        if self.remaining == 0 {
            return Ok(());
        }
        let count = self.remaining.min(BLOCK);
        self.bytes.resize(count * self.dtype.size(), 0);
        let filled = self.input.fill(&mut self.bytes).map_err(|error| damaged(&self.path, &error))?;
        if filled < self.bytes.len() {
            let read = self.shape.iter().product::<usize>() - self.remaining;
            let held = (read * self.dtype.size() + filled) as u64;
            return Err(truncated(&self.path, self.shape, self.dtype, held));
        }
        self.dtype.decode(&self.bytes, self.order, block);
        if let Some((slope, intercept)) = self.scaling {
            block.iter_mut().for_each(|value| *value = *value * slope + intercept);
        }
        self.remaining -= count;
        if self.remaining == 0 {
            self.input.skip(TAIL).map_err(|error| damaged(&self.path, &error))?;
        }
        Ok(())
    }
}

/// A file that holds only `held` bytes of the voxels that it claims.
fn truncated(path: &Path, shape: [usize; 3], dtype: Dtype, held: u64) -> Error {
    let (total, read) = (shape.iter().product::<usize>(), held / dtype.size() as u64);
    let claimed = format!("{} voxels of {}", shape_text(shape), dtype.name());
    Error::file(path, format!("is truncated: its header claims {claimed}, {total} in all, and it ends after {read}"))
}

/// An error met while decompressing: the file's fault if its bytes make no sense.
pub(crate) fn damaged(path: &Path, error: &std::io::Error) -> Error {
    Error::file(path, format!("is damaged or truncated: {error}"))
}
