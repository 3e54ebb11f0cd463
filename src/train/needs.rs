//! What a run needs of memory and disk, known and compared with what there is before it takes any.

use super::Settings;
use super::checkpoint::{BEST_BYTES, KEPT, LEARNER_BYTES};
use crate::data::{Dataset, Reorientation};
use crate::resources::{free_disk, free_memory};
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// The slices of a run's cases, known from the headers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataNeeds {
    pub cases: usize,
    pub slices: usize,
    /// Memory for scans while they are loaded, and for the slices, if they are not cached.
    pub bytes: u64,
    /// Disk for the slices, if they are cached and all of them are new there.
    pub cache_bytes: u64,
}

/// An image's and a mask's bytes a pixel.
const PIXEL_BYTES: u64 = (size_of::<f32>() + size_of::<u8>()) as u64;

/// A scan that is loaded is there twice: as stored, and reoriented.
const COPIES: u64 = 2;

impl DataNeeds {
    /// Opens all files of the cases that are trained on; the voxels are not read. Slices that are `cached` lie on the
    /// disk.
    ///
    /// # Errors
    /// The first case that cannot be opened, or whose image and mask do not fit.
    pub fn new(settings: &Settings, dataset: &Dataset, cached: bool) -> Result<Self> {
        let cases = dataset.cases_without(&settings.test_cases)?;
        let shapes: Vec<Result<[usize; 3]>> = cases
            .par_iter()
            .map(|case| {
                let (image, _) = dataset.open_case(case)?;
                Ok(Reorientation::to_ras_from(image.geometry()).ras().shape)
            })
            .collect();
        let shapes = shapes.into_iter().collect::<Result<Vec<_>>>()?;
        let slices = shapes.iter().map(|shape| shape[2]).sum();
        let mut voxels: Vec<u64> = shapes.iter().map(|shape| shape.iter().map(|&n| n as u64).product()).collect();
        voxels.sort_unstable_by(|a, b| b.cmp(a));
        // So many are loaded at a time.
        let loading: u64 = voxels.iter().take(rayon::current_num_threads()).sum();
        let loading = PIXEL_BYTES * COPIES * loading;
        let kept = PIXEL_BYTES * slices as u64 * (settings.size * settings.size) as u64;
        let [bytes, cache_bytes] = if cached { [loading, kept] } else { [loading + kept, 0] };
        Ok(DataNeeds { cases: cases.len(), slices, bytes, cache_bytes })
    }

    /// Compares with the memory that is free.
    ///
    /// # Errors
    /// If it is not enough.
    pub fn check(&self) -> Result<()> {
        match free_memory() {
            Some(free) if free < self.bytes => Err(Error::Invalid(format!(
                "the {} slices of {} cases need {} MiB of memory, {} MiB are free: lower --size, leave out cases, or give --cache if it is --no-cache",
                self.slices,
                self.cases,
                self.bytes >> 20,
                free >> 20
            ))),
            _ => Ok(()),
        }
    }
}

/// Bytes of disk that a run takes at most: the checkpoints that are kept, and whatever is being written beside them.
pub fn disk_bytes(settings: &Settings, slices: usize) -> Result<u64> {
    let parameters = settings.check()?.parameters().iter().map(|parameter| parameter.count() as u64).sum::<u64>();
    let checkpoint = parameters * (settings.adl.learners() as u64 * LEARNER_BYTES + BEST_BYTES);
    let state = (settings.adl.learners() * slices) as u64 * STATE_BYTES;
    Ok((KEPT as u64 + 1) * (checkpoint + state) + 2 * parameters * BEST_BYTES + settings.epochs * LINE_BYTES)
}

/// At most: of a checkpoint's state for each slice, and of a line of the log.
const STATE_BYTES: u64 = 64;
const LINE_BYTES: u64 = 512;

/// Compares with the disk that is free where `folder` is or will be.
///
/// # Errors
/// If it is not enough.
pub fn check_disk(folder: &Path, bytes: u64) -> Result<()> {
    match free_disk(folder) {
        Some(free) if free < bytes => Err(Error::file(
            folder,
            format!(
                "a run takes up to {} MiB of disk, {} MiB are free: make room, or choose another --out",
                bytes >> 20,
                free >> 20
            ),
        )),
        _ => Ok(()),
    }
}
