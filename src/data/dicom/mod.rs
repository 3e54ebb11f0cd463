//! DICOM series: a folder of files, one slice each, whatever their names.
//!
//! The grid is the one that SimpleITK's series reader finds: slices sorted by ImagePositionPatient
//! along the normal of the slice plane, their distance the mean of all gaps. InstanceNumber, file
//! names and SliceThickness are not trusted. Where the slices make no even grid, that is an error
//! which says where.

mod elements;
mod jpeg_ls;
mod picture;
mod rle;
mod slice;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::slice::SliceHeader;
use super::Geometry;
use super::layout::entries;
use super::source::{Format, Header, Source, Values, checked_shape};
use super::volume::between_lps_and_ras;
use crate::{Error, Result};

pub(crate) use self::elements::{PREAMBLE, recognises};

/// How far a gap may differ from the mean gap, as a part of it. Positions are written with few
/// digits; a missing slice doubles a gap.
const UNEVEN: f64 = 0.1;

/// Millimetres below which two slices are at the same place.
const SAME_PLACE: f64 = 1e-3;

/// How far a slice may be shifted sideways against its neighbour, as a part of their distance.
const TILTED: f64 = 0.02;

/// Opens a DICOM series in a folder, or a single slice: the series of this SeriesInstanceUID, or the only one.
///
/// # Errors
/// If there is no such series, or none is asked for and there are several, if a file is damaged, or if the
/// slices make no even grid.
pub fn open(path: &Path, wanted: Option<&str>) -> Result<Source> {
    let files = if path.is_dir() { files_in(path)? } else { vec![path.to_path_buf()] };
    // In parallel, but the first error by name is told whichever comes first.
    let headers: Vec<Result<Option<SliceHeader>>> = files.par_iter().map(|file| SliceHeader::read(file)).collect();
    let mut series = BTreeMap::<String, Vec<SliceHeader>>::new();
    for header in headers {
        if let Some(header) = header? {
            series.entry(header.series.clone()).or_default().push(header);
        }
    }
    let mut slices = match (wanted, series.len()) {
        (_, 0) => return Err(Error::file(path, "holds no DICOM slices")),
        (Some(uid), _) => match series.remove(uid) {
            Some(slices) => slices,
            None => return Err(Error::file(path, format!("holds no series {uid}; it holds {}", list(&series)))),
        },
        (None, 1) => series.into_values().flatten().collect(),
        (None, several) => {
            let advice = "choose one with --series UID, or move it to a folder of its own";
            return Err(Error::file(path, format!("holds {several} series: {}; {advice}", list(&series))));
        }
    };
    let geometry = grid(path, &mut slices)?;
    let header = Header { format: Format::Dicom, dtype: slices[0].dtype(), nifti: None, notes: Vec::new() };
    let per_block = rayon::current_num_threads();
    let files = slices.iter().map(|slice| slice.path.clone()).collect();
    Source::new(path, files, geometry, header, Box::new(Slices { slices, next: 0, per_block }))
}

/// Whether a folder holds a DICOM file.
pub(crate) fn is_series(folder: &Path) -> bool {
    files_in(folder).is_ok_and(|files| files.iter().any(|file| is_dicom(file)))
}

/// Whether a file is DICOM.
pub(crate) fn is_dicom(file: &Path) -> bool {
    let mut start = [0; PREAMBLE];
    super::file::Input::plain(file)
        .is_ok_and(|mut input| input.fill(&mut start).is_ok_and(|filled| recognises(&start[..filled])))
}

/// The files of a folder by name, without hidden ones.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file()).collect())
}

/// Each series with what tells it from the others.
fn list(series: &BTreeMap<String, Vec<SliceHeader>>) -> String {
    let list = series.iter().map(|(uid, slices)| {
        let first = &slices[0];
        format!("{uid} ({} files of {} x {}, \"{}\")", slices.len(), first.columns, first.rows, first.description)
    });
    list.collect::<Vec<_>>().join(", ")
}

/// Sorts slices along their normal and finds the grid that they make.
fn grid(path: &Path, slices: &mut [SliceHeader]) -> Result<Geometry> {
    let [x, y] = slices[0].directions;
    let normal: [f64; 3] = std::array::from_fn(|i| x[(i + 1) % 3] * y[(i + 2) % 3] - x[(i + 2) % 3] * y[(i + 1) % 3]);
    let height = |slice: &SliceHeader| slice.position.iter().zip(normal).map(|(p, n)| p * n).sum::<f64>();
    slices.sort_by(|a, b| height(a).total_cmp(&height(b)).then_with(|| a.path.cmp(&b.path)));

    let first = &slices[0];
    for other in &slices[1..] {
        check_alike(first, other)?;
    }
    let (last, count) = (&slices[slices.len() - 1], slices.len());
    let step = match count {
        1 => first.between.unwrap_or(1.0),
        _ => distance(first, last) / (count - 1) as f64,
    };
    check_even(path, slices, step, height)?;

    let shape = checked_shape(path, [i64::from(first.columns), i64::from(first.rows), count as i64])?;
    let columns = [(x, first.spacing[0]), (y, first.spacing[1]), (normal, step)];
    let mut affine = [[0.0; 4]; 4];
    affine[3][3] = 1.0;
    for row in 0..3 {
        for (axis, (direction, spacing)) in columns.iter().enumerate() {
            affine[row][axis] = direction[row] * spacing;
        }
        affine[row][3] = first.position[row];
    }
    Ok(Geometry { shape, affine: between_lps_and_ras(affine) })
}

/// Says where sorted slices are not `step` apart along the normal, along which `height` is measured.
fn check_even(path: &Path, slices: &[SliceHeader], step: f64, height: impl Fn(&SliceHeader) -> f64) -> Result<()> {
    let neighbours = || slices.windows(2).map(|pair| (&pair[0], &pair[1], height(&pair[1]) - height(&pair[0])));
    let name = |slice: &SliceHeader| slice.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sideways = |a: &SliceHeader, b: &SliceHeader, gap: f64| (distance(a, b).powi(2) - gap.powi(2)).max(0.0).sqrt();

    let message = if let Some((a, b, _)) = neighbours().find(|&(_, _, gap)| gap < SAME_PLACE) {
        format!(
            "the slices {} and {} are at the same place: remove one, or keep each series in its own folder",
            name(a),
            name(b)
        )
    } else if let Some((a, b, gap)) = neighbours().find(|&(a, b, gap)| sideways(a, b, gap) > TILTED * gap) {
        let angle = sideways(a, b, gap).atan2(gap).to_degrees();
        format!(
            "the slices are shifted against each other, by a gantry tilted {angle:.1} degrees: resample it to a straight grid"
        )
    } else if let Some((a, b, gap)) = neighbours().find(|&(_, _, gap)| (gap - step).abs() > UNEVEN * step) {
        format!(
            "the slices are {step:.3} mm apart on average, but {} and {} are {gap:.3} mm apart: slices are missing, or are not evenly spaced",
            name(a),
            name(b)
        )
    } else {
        return Ok(());
    };
    Err(Error::file(path, message))
}

/// Millimetres between the first pixels of two slices.
fn distance(a: &SliceHeader, b: &SliceHeader) -> f64 {
    a.position.iter().zip(b.position).map(|(a, b)| (b - a).powi(2)).sum::<f64>().sqrt()
}

fn check_alike(one: &SliceHeader, other: &SliceHeader) -> Result<()> {
    let differs = |what: &str, a: String, b: String| {
        let name = one.path.file_name().unwrap_or_default().to_string_lossy();
        Err(Error::file(&other.path, format!("its {what} is {b}, that of {name} in the same series {a}")))
    };
    if (one.columns, one.rows) != (other.columns, other.rows) {
        let size = |slice: &SliceHeader| format!("{} x {}", slice.columns, slice.rows);
        return differs("size", size(one), size(other));
    }
    let far = |a: &[f64], b: &[f64], tolerance: f64| a.iter().zip(b).any(|(a, b)| (a - b).abs() > tolerance);
    if far(&one.spacing, &other.spacing, 1e-4 * one.spacing[0]) {
        return differs("PixelSpacing", format!("{:?}", one.spacing), format!("{:?}", other.spacing));
    }
    if far(one.directions.as_flattened(), other.directions.as_flattened(), 1e-3) {
        return differs("orientation", format!("{:?}", one.directions), format!("{:?}", other.directions));
    }
    Ok(())
}

/// The pixels of sorted slices, some slices at a time.
struct Slices {
    slices: Vec<SliceHeader>,
    next: usize,
    per_block: usize,
}

impl Values for Slices {
    fn next_block(&mut self, block: &mut Vec<f64>) -> Result<()> {
        block.clear();
        let end = (self.next + self.per_block).min(self.slices.len());
        let decoded: Vec<Result<Vec<f64>>> = self.slices[self.next..end].par_iter().map(SliceHeader::pixels).collect();
        for pixels in decoded {
            block.append(&mut pixels?);
        }
        self.next = end;
        Ok(())
    }
}
