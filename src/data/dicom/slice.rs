//! One DICOM file: a slice of a series.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::file::ReadPreamble;
use dicom_object::{DefaultDicomObject, OpenFileOptions};
use dicom_pixeldata::PixelDecoder;

use super::elements::{self, DEFLATED};
use super::picture::{self, Claim};
use super::{jpeg_ls, rle};
use crate::data::dtype::Dtype;
use crate::{Error, Result};

/// The largest slice that is decoded; a CT has 512 or 1024 pixels a side.
const LARGEST_SIDE: u16 = 8192;

/// What a slice's file says besides its pixels.
#[derive(Debug, Clone)]
pub struct SliceHeader {
    pub path: PathBuf,
    /// SeriesInstanceUID.
    pub series: String,
    pub description: String,
    pub columns: u16,
    pub rows: u16,
    /// Millimetres between columns, then between rows.
    pub spacing: [f64; 2],
    /// LPS millimetres of the first pixel's centre.
    pub position: [f64; 3],
    /// LPS directions in which columns, then rows, count up.
    pub directions: [[f64; 3]; 2],
    /// SpacingBetweenSlices, which only a slice without neighbours needs.
    pub between: Option<f64>,
    format: PixelFormat,
}

/// How pixels are stored and what they mean.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PixelFormat {
    bits_allocated: u16,
    bits_stored: u16,
    high_bit: u16,
    signed: bool,
    slope: f64,
    intercept: f64,
}

impl SliceHeader {
    /// Reads the header of a file; nothing if the file is not DICOM, or is DICOM but no picture.
    ///
    /// # Errors
    /// If the file is damaged, or a picture that is no slice of a scan.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let mut start = [0; elements::PREAMBLE];
        let filled = crate::data::file::Input::plain(path)?.fill(&mut start).map_err(Error::io(path))?;
        if !elements::recognises(&start[..filled]) {
            return Ok(None);
        }
        let object = parse(path, Some(tags::PIXEL_DATA))?;
        if object.get(tags::ROWS).is_none() {
            return Ok(None);
        }
        let fields = Fields { path, object: &object };
        fields.refuse_what_is_no_slice()?;
        let [between_rows, between_columns] = fields.numbers(tags::PIXEL_SPACING, "PixelSpacing")?;
        let [xx, xy, xz, yx, yy, yz] = fields.numbers(tags::IMAGE_ORIENTATION_PATIENT, "ImageOrientationPatient")?;
        let format = PixelFormat {
            bits_allocated: fields.integer(tags::BITS_ALLOCATED, "BitsAllocated")?,
            bits_stored: fields.integer(tags::BITS_STORED, "BitsStored")?,
            high_bit: fields.integer(tags::HIGH_BIT, "HighBit")?,
            signed: fields.integer(tags::PIXEL_REPRESENTATION, "PixelRepresentation")? == 1,
            slope: fields.optional(tags::RESCALE_SLOPE).filter(|&slope| slope != 0.0).unwrap_or(1.0),
            intercept: fields.optional(tags::RESCALE_INTERCEPT).unwrap_or(0.0),
        };
        let header = SliceHeader {
            path: path.to_path_buf(),
            series: fields.text(tags::SERIES_INSTANCE_UID),
            description: fields.text(tags::SERIES_DESCRIPTION),
            columns: fields.integer(tags::COLUMNS, "Columns")?,
            rows: fields.integer(tags::ROWS, "Rows")?,
            spacing: [between_columns, between_rows],
            position: fields.numbers(tags::IMAGE_POSITION_PATIENT, "ImagePositionPatient")?,
            directions: [[xx, xy, xz], [yx, yy, yz]],
            between: fields.optional(tags::SPACING_BETWEEN_SLICES).map(f64::abs).filter(|&between| between > 0.0),
            format,
        };
        header.check()?;
        Ok(Some(header))
    }

    fn check(&self) -> Result<()> {
        let PixelFormat { bits_allocated, bits_stored, high_bit, .. } = self.format;
        let wrong = |message: String| Err(Error::file(&self.path, message));
        if ![8, 16].contains(&bits_allocated)
            || bits_stored == 0
            || bits_stored > high_bit + 1
            || high_bit >= bits_allocated
        {
            return wrong(format!(
                "{bits_stored} of {bits_allocated} bits up to bit {high_bit} are not read: it should be 8 or 16"
            ));
        }
        if self.columns == 0 || self.rows == 0 || self.columns > LARGEST_SIDE || self.rows > LARGEST_SIDE {
            return wrong(format!("{} x {} pixels: a slice has 1 to {LARGEST_SIDE} a side", self.columns, self.rows));
        }
        if !self.spacing.iter().all(|&step| step > 0.0) {
            return wrong(format!("its PixelSpacing {:?} should be above 0", self.spacing));
        }
        let [x, y] = &self.directions;
        let product = |a: &[f64; 3], b: &[f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        if (product(x, x) - 1.0).abs() > 1e-3 || (product(y, y) - 1.0).abs() > 1e-3 || product(x, y).abs() > 1e-3 {
            return wrong(format!("its ImageOrientationPatient {x:?} {y:?} is no right angle"));
        }
        Ok(())
    }

    /// The stored number type.
    pub fn dtype(&self) -> Dtype {
        match (self.format.bits_allocated, self.format.signed) {
            (8, false) => Dtype::U8,
            (8, true) => Dtype::I8,
            (_, false) => Dtype::U16,
            (_, true) => Dtype::I16,
        }
    }

    /// The slice's pixels in row order, rescaled (to Hounsfield units in a CT).
    ///
    /// # Errors
    /// If the file is damaged, or compressed in a way that cannot be read.
    pub fn pixels(&self) -> Result<Vec<f64>> {
        let object = parse(&self.path, None)?;
        let syntax = object.meta().transfer_syntax().trim_end_matches('\0');
        let fragments = object.get(tags::PIXEL_DATA).and_then(|data| data.fragments());
        let count = usize::from(self.columns) * usize::from(self.rows);
        let size = usize::from(self.format.bits_allocated / 8);
        let picture = fragments.map(<[_]>::concat);
        if let Some(picture) = &picture {
            self.check_picture(syntax, picture, count)?;
        }
        let (bytes, little_endian) = match (picture, syntax) {
            (Some(picture), uids::RLE_LOSSLESS) => (rle::decode(&picture, count, size), true),
            (Some(picture), uids::JPEGLS_LOSSLESS | uids::JPEGLS_NEAR_LOSSLESS) => {
                (jpeg_ls::decode(&picture, count, size), true)
            }
            // Should a decoder panic on a damaged picture, that is an error like any other.
            _ => match catch_unwind(AssertUnwindSafe(|| object.decode_pixel_data().map(|data| data.data().to_vec()))) {
                Ok(Ok(bytes)) => (Some(bytes), cfg!(target_endian = "little")),
                Ok(Err(error)) => return Err(self.undecoded(syntax, &one_line(&error))),
                Err(_) => (None, true),
            },
        };
        match bytes {
            Some(bytes) if bytes.len() >= count * size => {
                let samples = bytes[..count * size].chunks_exact(size);
                Ok(samples.map(|sample| self.format.value(sample, little_endian)).collect())
            }
            Some(bytes) => Err(Error::file(
                &self.path,
                format!(
                    "is truncated: {} x {} pixels need {} bytes, and it has {}",
                    self.columns,
                    self.rows,
                    count * size,
                    bytes.len()
                ),
            )),
            None => Err(self.undecoded(syntax, "its compressed picture makes no sense")),
        }
    }

    /// Refuses a compressed picture that claims other than its file's header, or more than its bytes can be.
    fn check_picture(&self, syntax: &str, picture: &[u8], count: usize) -> Result<()> {
        if !picture::is_believable(count, picture.len()) {
            return Err(Error::file(
                &self.path,
                format!(
                    "is damaged: {} x {} pixels cannot be in a compressed picture of {} bytes",
                    self.columns,
                    self.rows,
                    picture.len()
                ),
            ));
        }
        if syntax == uids::RLE_LOSSLESS {
            return Ok(());
        }
        let Claim { columns, rows, plain } =
            picture::claim(picture).ok_or_else(|| self.undecoded(syntax, "its compressed picture makes no sense"))?;
        if (columns, rows) != (u32::from(self.columns), u32::from(self.rows)) {
            return Err(Error::file(
                &self.path,
                format!(
                    "is damaged: its header says {} x {} pixels, its compressed picture {columns} x {rows}",
                    self.columns, self.rows
                ),
            ));
        }
        match plain {
            true => Ok(()),
            false => {
                Err(self.undecoded(syntax, "its compressed picture is not one of grey values, or of too many tiles"))
            }
        }
    }

    fn undecoded(&self, syntax: &str, reason: &str) -> Error {
        let advice = "it is damaged, or should be converted to uncompressed";
        Error::file(&self.path, format!("its pixels (transfer syntax {syntax}) cannot be decoded: {reason}: {advice}"))
    }
}

impl PixelFormat {
    /// The meaning of a stored sample.
    fn value(&self, sample: &[u8], little_endian: bool) -> f64 {
        let stored = match *sample {
            [a, b] if little_endian => u16::from_le_bytes([a, b]),
            [a, b] => u16::from_be_bytes([a, b]),
            _ => u16::from(sample[0]),
        };
        // The stored bits to the top, then down again, which keeps the sign.
        let top = stored << (15 - self.high_bit);
        let unused = 16 - self.bits_stored;
        let value = if self.signed { f64::from((top as i16) >> unused) } else { f64::from(top >> unused) };
        value * self.slope + self.intercept
    }
}

/// An error of the DICOM crates with its causes, in one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Parses a file up to `until`, or to its end, after checking that its elements lie within it.
fn parse(path: &Path, until: Option<Tag>) -> Result<DefaultDicomObject> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if elements::is_deflated(&bytes) {
        let advice = "convert it to uncompressed, with dcmconv +te or gdcmconv --raw for instance";
        return Err(Error::file(
            path,
            format!("is deflated (transfer syntax {DEFLATED}), which is not read: {advice}"),
        ));
    }
    if !elements::fit(&bytes) {
        return Err(Error::file(path, "is truncated or damaged: the length of an element cannot be right"));
    }
    let mut options = OpenFileOptions::new().read_preamble(ReadPreamble::Always);
    if let Some(tag) = until {
        options = options.read_until(tag);
    }
    // Should the parser panic on a damaged file, that is an error like any other.
    match catch_unwind(AssertUnwindSafe(|| options.from_reader(&bytes[..]))) {
        Ok(parsed) => parsed.map_err(|error| Error::file(path, format!("is damaged: {}", one_line(&error)))),
        Err(_) => Err(Error::file(path, "is damaged: its elements make no sense")),
    }
}

/// Reads fields of a parsed file.
struct Fields<'a> {
    path: &'a Path,
    object: &'a DefaultDicomObject,
}

impl Fields<'_> {
    fn text(&self, tag: Tag) -> String {
        let text = self.object.get(tag).and_then(|element| element.to_str().ok());
        text.map_or_else(String::new, |text| text.trim_end_matches(['\0', ' ']).to_owned())
    }

    fn optional(&self, tag: Tag) -> Option<f64> {
        self.object.get(tag)?.to_float64().ok().filter(|value| value.is_finite())
    }

    fn integer(&self, tag: Tag, name: &str) -> Result<u16> {
        let value = self.object.get(tag).and_then(|element| element.to_int::<u16>().ok());
        value.ok_or_else(|| Error::file(self.path, format!("lacks a usable {name}")))
    }

    fn numbers<const N: usize>(&self, tag: Tag, name: &str) -> Result<[f64; N]> {
        let numbers = self.object.get(tag).and_then(|element| element.to_multi_float64().ok());
        let numbers = numbers.and_then(|numbers| <[f64; N]>::try_from(numbers).ok());
        numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite())).ok_or_else(|| {
            Error::file(self.path, format!("lacks a usable {name} ({N} numbers): it is no slice of a scan"))
        })
    }

    fn refuse_what_is_no_slice(&self) -> Result<()> {
        if self.optional(tags::NUMBER_OF_FRAMES).is_some_and(|frames| frames > 1.0) {
            return Err(Error::file(
                self.path,
                "holds several frames (enhanced CT): convert it to NIfTI or to one file a slice",
            ));
        }
        if self.optional(tags::SAMPLES_PER_PIXEL).is_some_and(|samples| samples != 1.0) {
            return Err(Error::file(self.path, "holds colours, not a scan"));
        }
        let meaning = self.text(tags::PHOTOMETRIC_INTERPRETATION);
        match meaning.as_str() {
            "" | "MONOCHROME1" | "MONOCHROME2" => Ok(()),
            _ => Err(Error::file(self.path, format!("holds {meaning} pixels, not a scan"))),
        }
    }
}
