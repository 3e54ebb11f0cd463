//! MetaImage: a `.mhd` header beside a `.raw` or `.zraw` file, or both in one `.mha`.
//!
//! Coordinates in the file are LPS millimetres, as ITK has them; here they become RAS.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::dtype::{ByteOrder, Dtype, Element};
use super::file::{Input, ends_with, write_atomically};
use super::source::{Format, Header, Packed, Source, checked_shape, damaged, skip_to_voxels};
use super::volume::between_lps_and_ras;
use super::{Geometry, Volume};
use crate::{Error, Result};

/// The longest header that is read: real ones have a few hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// Names of number types; the first for a type is the one that is written.
const ELEMENT_TYPES: [(&str, Dtype); 13] = [
    ("MET_UCHAR", Dtype::U8),
    ("MET_CHAR", Dtype::I8),
    ("MET_ASCII_CHAR", Dtype::I8),
    ("MET_USHORT", Dtype::U16),
    ("MET_SHORT", Dtype::I16),
    // Four bytes on every machine, "long" as well.
    ("MET_UINT", Dtype::U32),
    ("MET_ULONG", Dtype::U32),
    ("MET_INT", Dtype::I32),
    ("MET_LONG", Dtype::I32),
    ("MET_ULONG_LONG", Dtype::U64),
    ("MET_LONG_LONG", Dtype::I64),
    ("MET_FLOAT", Dtype::F32),
    ("MET_DOUBLE", Dtype::F64),
];

/// The header's `Key = Value` lines.
struct Fields<'a> {
    path: &'a Path,
    values: HashMap<String, String>,
    /// Bytes up to and including the end of the header's last line.
    length: usize,
}

/// Opens a MetaImage by its header.
///
/// # Errors
/// If it cannot be read or is damaged, holds what is not one scalar volume, or its voxels are said
/// to lie outside the header's folder.
pub fn open(path: &Path) -> Result<Source> {
    let fields = Fields::read(path)?;
    fields.refuse_what_is_no_scalar_volume()?;
    let axes = fields.axes()?;
    let shape = fields.shape(axes)?;
    let geometry = Geometry { shape, affine: fields.affine(axes)? };
    let dtype = fields.dtype()?;
    let order = match fields.flag(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])? {
        true => ByteOrder::Big,
        false => ByteOrder::Little,
    };

    let local = fields.text("ElementDataFile")?.eq_ignore_ascii_case("LOCAL");
    let voxel_path = if local { path.to_path_buf() } else { fields.voxel_file()? };
    let mut input = Input::plain(&voxel_path)?;
    let compressed = fields.flag(&["CompressedData"])?;
    let skip = match fields.get(&["HeaderSize"]).map(str::parse::<i64>) {
        None | Some(Ok(0)) if local => fields.length as u64,
        None | Some(Ok(0)) => 0,
        // The voxels are the file's last bytes.
        Some(Ok(-1)) if !compressed => {
            let needed = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
            input.most.saturating_sub(needed)
        }
        Some(Ok(size)) if size > 0 => size as u64,
        _ => return Err(fields.wrong("HeaderSize", "a number of bytes, or -1 if nothing is compressed")),
    };
    skip_to_voxels(&voxel_path, &mut input, skip, skip)?;
    input.most -= skip;
    if compressed {
        input = input.inflated();
    }
    let again = || {
        let mut input = Input::plain(&voxel_path)?;
        input.skip(skip).map_err(|error| damaged(&voxel_path, &error))?;
        Ok(if compressed { input.inflated() } else { input })
    };
    let values = Packed::new(&voxel_path, input, shape, dtype, order, None, again)?;
    let files = if local { vec![voxel_path] } else { vec![path.to_path_buf(), voxel_path] };
    Source::new(
        path,
        files,
        geometry,
        Header { format: Format::MetaImage, dtype, nifti: None, notes: Vec::new() },
        Box::new(values),
    )
}

impl<'a> Fields<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        let mut bytes = vec![0; LONGEST_HEADER];
        let filled = Input::plain(path)?.fill(&mut bytes).map_err(|error| damaged(path, &error))?;
        bytes.truncate(filled);
        let mut fields = Fields { path, values: HashMap::new(), length: 0 };
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            fields.length += line.len();
            let line =
                std::str::from_utf8(line).map_err(|_| Error::file(path, "is not MetaImage: its header is not text"))?;
            let Some((key, value)) = line.split_once('=') else {
                if line.trim().is_empty() {
                    continue;
                }
                let start: String = line.trim().chars().take(40).collect();
                return Err(Error::file(
                    path,
                    format!("is not MetaImage: \"{start}\" is no line of the form key = value"),
                ));
            };
            let key = key.trim().to_owned();
            let last = key == "ElementDataFile";
            fields.values.insert(key, value.trim().to_owned());
            if last {
                return Ok(fields);
            }
        }
        Err(Error::file(path, "is not MetaImage, or truncated: its header does not end with a line ElementDataFile"))
    }

    /// The first of `keys` that is there, with its value.
    fn first<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &str)> {
        keys.iter().find_map(|&key| Some((key, self.values.get(key)?.as_str())))
    }

    fn get(&self, keys: &[&str]) -> Option<&str> {
        self.first(keys).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Result<&str> {
        self.get(&[key]).ok_or_else(|| Error::file(self.path, format!("its header lacks {key}")))
    }

    fn wrong(&self, key: &str, wanted: &str) -> Error {
        let value = self.get(&[key]).unwrap_or_default();
        Error::file(self.path, format!("its header says {key} = {value}; it should be {wanted}"))
    }

    /// The first of `keys` that is there, as true or false; false if none is.
    fn flag(&self, keys: &[&str]) -> Result<bool> {
        let Some((key, value)) = self.first(keys) else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(self.wrong(key, "True or False")),
        }
    }

    /// The first of `keys` that is there, as `count` numbers.
    fn numbers(&self, keys: &[&str], count: usize) -> Result<Option<Vec<f64>>> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        let numbers: Option<Vec<f64>> = value.split_whitespace().map(|text| text.parse().ok()).collect();
        match numbers {
            Some(numbers) if numbers.len() == count => Ok(Some(numbers)),
            _ => Err(self.wrong(key, &format!("{count} numbers"))),
        }
    }

    fn refuse_what_is_no_scalar_volume(&self) -> Result<()> {
        if self.get(&["ObjectType"]).is_some_and(|kind| !kind.eq_ignore_ascii_case("Image")) {
            return Err(self.wrong("ObjectType", "Image"));
        }
        if self.get(&["ElementNumberOfChannels"]).is_some_and(|channels| channels != "1") {
            return Err(self.wrong("ElementNumberOfChannels", "1: a grey-scale volume"));
        }
        if self.values.contains_key("BinaryData") && !self.flag(&["BinaryData"])? {
            return Err(self.wrong("BinaryData", "True: numbers written as text are not read"));
        }
        Ok(())
    }

    /// Axes in the file: 2 to 4.
    fn axes(&self) -> Result<usize> {
        match self.text("NDims")?.parse() {
            Ok(axes) if (2..=4).contains(&axes) => Ok(axes),
            _ => Err(self.wrong("NDims", "2, 3 or 4")),
        }
    }

    fn shape(&self, axes: usize) -> Result<[usize; 3]> {
        let sizes: Option<Vec<i64>> = self.text("DimSize")?.split_whitespace().map(|text| text.parse().ok()).collect();
        match sizes {
            Some(sizes) if sizes.len() == axes && sizes.get(3).is_none_or(|&n| n == 1) => {
                checked_shape(self.path, std::array::from_fn(|axis| sizes.get(axis).copied().unwrap_or(1)))
            }
            _ => Err(self.wrong("DimSize", &format!("{axes} voxel counts, a fourth one being 1"))),
        }
    }

    fn affine(&self, axes: usize) -> Result<[[f64; 4]; 4]> {
        let spacing = self.numbers(&["ElementSpacing", "ElementSize"], axes)?;
        let origin = self.numbers(&["Offset", "Position", "Origin"], axes)?;
        let directions = self.numbers(&["TransformMatrix", "Orientation", "Rotation"], axes * axes)?;
        let mut affine = [[0.0; 4]; 4];
        affine[3][3] = 1.0;
        for row in 0..3 {
            for axis in 0..3 {
                let within = row < axes && axis < axes;
                let identity = if row == axis { 1.0 } else { 0.0 };
                // The file lists the direction of the first axis, then that of the second.
                let direction = directions.as_ref().filter(|_| within).map_or(identity, |d| d[axis * axes + row]);
                let step = spacing.as_ref().and_then(|spacing| spacing.get(axis)).map_or(1.0, |step| step.abs());
                affine[row][axis] = direction * step;
            }
            affine[row][3] = origin.as_ref().and_then(|origin| origin.get(row)).copied().unwrap_or(0.0);
        }
        Ok(between_lps_and_ras(affine))
    }

    fn dtype(&self) -> Result<Dtype> {
        let name = self.text("ElementType")?;
        let known = ELEMENT_TYPES.iter().find(|(known, _)| *known == name);
        known
            .map(|&(_, dtype)| dtype)
            .ok_or_else(|| self.wrong("ElementType", "MET_SHORT or another plain number type"))
    }

    /// The file with the voxels, which must be in the header's folder or below it.
    fn voxel_file(&self) -> Result<PathBuf> {
        let name = self.text("ElementDataFile")?;
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if name.is_empty() || name.eq_ignore_ascii_case("LIST") || name.contains('%') {
            return Err(self.wrong("ElementDataFile", "LOCAL or one file's name"));
        }
        if !inside || name.contains('\\') {
            return Err(self.wrong("ElementDataFile", "a file in the header's own folder"));
        }
        let path = self.path.with_file_name("").join(name);
        match path.is_file() {
            true => Ok(path),
            false => {
                Err(Error::file(self.path, format!("its voxels are missing: there is no file {}", path.display())))
            }
        }
    }
}

/// Writes `volume` as MetaImage: the header `path` (`.mhd`) and its voxels beside it (`.raw`).
/// Either appears whole or not at all, the header last.
///
/// # Errors
/// If the name does not end in `.mhd`, or writing fails.
pub fn write<T: Element>(path: &Path, volume: &Volume<T>) -> Result<()> {
    if !ends_with(path, ".mhd") {
        return Err(Error::file(path, "a MetaImage header's name should end in .mhd"));
    }
    let voxel_path = path.with_extension("raw");
    write_atomically(&voxel_path, |writer| {
        let mut bytes = Vec::new();
        for block in volume.voxels.chunks(1 << 14) {
            bytes.clear();
            block.iter().for_each(|voxel| voxel.append_to(&mut bytes));
            writer.write_all(&bytes)?;
        }
        Ok(())
    })?;
    let header = header_text(&volume.geometry, T::DTYPE, &voxel_path.file_name().unwrap_or_default().to_string_lossy());
    write_atomically(path, |writer| writer.write_all(header.as_bytes()))
}

fn header_text(geometry: &Geometry, dtype: Dtype, voxel_file: &str) -> String {
    let spacing = geometry.spacing();
    let lps = between_lps_and_ras(geometry.affine);
    let join = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v.to_string()).collect::<Vec<_>>().join(" ");
    let directions = join(&mut (0..9).map(|i| lps[i % 3][i / 3] / spacing[i / 3]));
    let origin = join(&mut (0..3).map(|row| lps[row][3]));
    let spacing = join(&mut spacing.into_iter());
    let [x, y, z] = geometry.shape;
    let known = ELEMENT_TYPES.iter().find(|(_, known)| *known == dtype);
    let element_type = known.map(|(name, _)| *name).expect("every number type has a name");
    format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
         TransformMatrix = {directions}\nOffset = {origin}\nCenterOfRotation = 0 0 0\n\
         ElementSpacing = {spacing}\nDimSize = {x} {y} {z}\nElementType = {element_type}\nElementDataFile = {voxel_file}\n"
    )
}
