//! From cases to what the network sees: square axial slices, windowed and resized, in memory or in mapped files.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;
use rayon::prelude::*;

use super::cache::Cache;
use super::dataset::{Case, Dataset, LoadedCase};
use super::fit::Fit;
use super::labels::{Labels, listed};
use super::volume::Reorientation;
use crate::preprocessing::{HounsfieldWindow, Preprocessing, check_size};
use crate::{Error, Result};

/// Cases whose volumes are in memory at once while a set is loaded, however many cores there are.
const MOST_AT_ONCE: usize = 4;

/// An axial slice as the network sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Index into [`SliceSet::cases`].
    pub case: usize,
    /// The slice's z in the case's volume in RAS order, from 0 at the feet.
    pub index: usize,
    /// `size * size` numbers, rows of y, x fastest; see [`HounsfieldWindow`].
    pub image: Pixels<f32>,
    /// `size * size` values, 1 where foreground, else 0.
    pub mask: Pixels<u8>,
    /// Whether the mask has a foreground pixel.
    pub has_foreground: bool,
}

/// All slices of some cases, case by case and from the feet to the head.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceSet {
    /// Width and height of every slice in pixels.
    pub size: usize,
    pub cases: Vec<String>,
    pub slices: Vec<Slice>,
}

impl SliceSet {
    /// Loads `cases` into memory, in parallel; the order of the slices is that of the cases whatever
    /// finishes first. `progress` is called once for every case that is done.
    ///
    /// # Errors
    /// If `size` is not a multiple of 16, the first case that cannot be loaded, or if no case has
    /// any foreground.
    pub fn load(
        dataset: &Dataset,
        cases: &[Case],
        size: usize,
        window: HounsfieldWindow,
        foreground: &Labels,
        progress: impl Fn() + Sync,
    ) -> Result<Self> {
        let preprocessing = Preprocessing { size, window };
        Self::collect(dataset, cases, size, foreground, progress, |case| {
            let scan = PreparedScan::load(dataset, case, preprocessing, foreground)?;
            Ok(scan.slices(0..scan.depth()))
        })
    }

    /// As [`SliceSet::load`], but the slices stay in files of `cache`, mapped into memory: what of them
    /// is in memory is for the operating system to decide. A case that the cache has is not read again.
    ///
    /// # Errors
    /// As [`SliceSet::load`], or if the cache cannot be read or written.
    pub fn load_cached(
        dataset: &Dataset,
        cases: &[Case],
        size: usize,
        window: HounsfieldWindow,
        foreground: &Labels,
        cache: &Cache,
        progress: impl Fn() + Sync,
    ) -> Result<Self> {
        let preprocessing = Preprocessing { size, window };
        let set = Self::collect(dataset, cases, size, foreground, progress, |case| {
            cache.slices(dataset, case, preprocessing, foreground)
        })?;
        cache.remove_unused()?;
        Ok(set)
    }

    fn collect(
        dataset: &Dataset,
        cases: &[Case],
        size: usize,
        foreground: &Labels,
        progress: impl Fn() + Sync,
        load: impl Fn(&Case) -> Result<Vec<SlicePixels>> + Sync,
    ) -> Result<Self> {
        check_size(size)?;
        let loaded = in_parallel(cases, |case| load(case).inspect(|_| progress()))?;
        let slices: Vec<Slice> = loaded
            .into_iter()
            .enumerate()
            .flat_map(|(case, slices)| slices.into_iter().enumerate().map(move |(index, s)| s.of(case, index)))
            .collect();
        if !slices.iter().any(|slice| slice.has_foreground) {
            let listed = listed(dataset.labels(cases));
            let message =
                format!("no voxel of its {} masks has {} (they have {listed})", cases.len(), foreground.in_words());
            return Err(Error::file(&dataset.folder, message));
        }
        Ok(SliceSet { size, cases: cases.iter().map(|case| case.name.clone()).collect(), slices })
    }
}

/// `work` on every item, in threads of its own: the results in the items' order, or the first item's
/// error. No more items are begun once one has failed.
fn in_parallel<I: Sync, O: Send>(items: &[I], work: impl Fn(&I) -> Result<O> + Sync) -> Result<Vec<O>> {
    // Not rayon's threads: while one waits for the slices of its volume, it would begin to read another volume.
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            let result = work(item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.push((index, result));
        }
    };
    let threads = rayon::current_num_threads().min(MOST_AT_ONCE).min(items.len());
    let mut done: Vec<(usize, Result<O>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// A slice's pixels before it is known whose they are.
pub(super) struct SlicePixels {
    pub image: Pixels<f32>,
    pub mask: Pixels<u8>,
    pub has_foreground: bool,
}

impl SlicePixels {
    fn of(self, case: usize, index: usize) -> Slice {
        let SlicePixels { image, mask, has_foreground } = self;
        Slice { case, index, image, mask, has_foreground }
    }
}

/// A case in memory, ready to be cut into slices. Its volumes are held once, as stored.
pub(super) struct PreparedScan {
    scan: LoadedCase,
    reorientation: Reorientation,
    fit: Fit,
    window: HounsfieldWindow,
}

impl PreparedScan {
    pub fn load(dataset: &Dataset, case: &Case, preprocessing: Preprocessing, foreground: &Labels) -> Result<Self> {
        let scan = dataset.load(case, foreground)?;
        let reorientation = Reorientation::to_ras_from(&scan.image.geometry);
        let fit = Fit::new(reorientation.ras(), preprocessing.size)?;
        Ok(PreparedScan { scan, reorientation, fit, window: preprocessing.window })
    }

    /// Axial slices.
    pub fn depth(&self) -> usize {
        self.reorientation.ras().shape[2]
    }

    /// Some of the slices, in RAS order.
    pub fn slices(&self, range: Range<usize>) -> Vec<SlicePixels> {
        let slice = |z| {
            let mask = self.fit.mask(&self.reorientation.ras_slice(&self.scan.mask, z));
            let image = self.fit.image(&self.reorientation.ras_slice(&self.scan.image, z), self.window);
            SlicePixels { has_foreground: mask.contains(&1), image: image.into(), mask: mask.into() }
        };
        range.into_par_iter().map(slice).collect()
    }
}

/// Pixels to be read: in memory, or in a mapped file.
#[derive(Clone)]
pub struct Pixels<T>(Place<T>);

#[derive(Clone)]
enum Place<T> {
    Memory(Vec<T>),
    /// Bytes of a file; the range is aligned for `T`.
    File(Arc<Mmap>, Range<usize>),
}

impl<T: bytemuck::Pod> Pixels<T> {
    /// The pixels that `range` of a mapped file's bytes are.
    ///
    /// # Panics
    /// If it is not within the file, or not aligned.
    pub(super) fn mapped(file: &Arc<Mmap>, range: Range<usize>) -> Self {
        bytemuck::cast_slice::<u8, T>(&file[range.clone()]);
        Pixels(Place::File(file.clone(), range))
    }
}

impl<T> From<Vec<T>> for Pixels<T> {
    fn from(pixels: Vec<T>) -> Self {
        Pixels(Place::Memory(pixels))
    }
}

impl<T: bytemuck::Pod> Deref for Pixels<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Memory(pixels) => pixels,
            Place::File(file, range) => bytemuck::cast_slice(&file[range.clone()]),
        }
    }
}

impl<T: bytemuck::Pod + PartialEq> PartialEq for Pixels<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: bytemuck::Pod + fmt::Debug> fmt::Debug for Pixels<T> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        fmt::Debug::fmt(&**self, out)
    }
}
