//! Noisy labels: masks eroded, dilated or elastically deformed until a wanted overlap with the truth is left, as in
//! the paper's experiments on noisy labels (Tables 4 and 5).
//!
//! A proportion of the masks is chosen; each is given one kind of noise, whose strength is searched so that the
//! mask's Dice overlap with the truth is the wanted one. [`corrupt`] works on masks of two or three dimensions,
//! [`corrupt_slices`] on square slices in memory, and the command `corrupt` on data sets.
//!
//! [`mask`] holds the masks, [`erosion`], [`dilation`] and [`elastic`] are the three transforms, made of distances
//! and of random smooth [`field`]s, and [`calibration`] finds a transform's strength.

pub mod mask;

mod calibration;
mod dilation;
mod elastic;
mod erosion;
mod field;
mod labels;
mod truth;

use crate::{Error, Result};
use calibration::Calibrated;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

pub use labels::relabel;
pub use mask::Mask;
pub use truth::{TRUTH, Truth};

/// What is done to a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The outline moves inwards
    Erosion,
    /// The outline moves outwards
    Dilation,
    /// A smooth random displacement
    Elastic,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Erosion, Kind::Dilation, Kind::Elastic];

    /// The kind's name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Erosion => "erosion",
            Kind::Dilation => "dilation",
            Kind::Elastic => "elastic",
        }
    }
}

/// How much noise, and which.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NoiseSettings {
    /// The share of masks that are corrupted, the paper's noise proportion: from 0 to 1.
    pub proportion: f64,
    /// The mean Dice overlap that corrupted masks keep with the truth, the paper's noise level: between 0 and 1.
    pub overlap: f64,
    /// The kinds, each given to as many masks as any other, as far as they can reach the overlap.
    pub kinds: Vec<Kind>,
    /// Another seed, other masks and other noise.
    pub seed: u64,
}

impl NoiseSettings {
    /// All kinds of noise, seed 1.
    pub fn new(proportion: f64, overlap: f64) -> Self {
        NoiseSettings { proportion, overlap, kinds: Kind::ALL.to_vec(), seed: 1 }
    }

    /// Says whether the settings can work.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.proportion) {
            return Err(Error::Invalid(format!("noise proportion {}: it should be from 0 to 1", self.proportion)));
        }
        if !(self.overlap > 0.0 && self.overlap < 1.0) {
            return Err(Error::Invalid(format!("noise overlap {}: it should be between 0 and 1", self.overlap)));
        }
        match self.kinds.is_empty() {
            false => Ok(()),
            true => Err(Error::Invalid("no kind of noise is left: name erosion, dilation or elastic".to_owned())),
        }
    }

    /// How many of `masks` masks are corrupted.
    pub fn count(&self, masks: usize) -> usize {
        (self.proportion * masks as f64).round() as usize
    }
}

/// How far the mean overlap may lie from the wanted one.
pub const TOLERANCE: f64 = 0.01;

/// What happened to a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Corruption {
    /// Which mask: an index into those given.
    pub mask: usize,
    pub kind: Kind,
    /// The Dice overlap of the corrupted mask with the true one: below 1.
    pub overlap: f64,
    /// The voxels that changed sides, as indices into the mask's grid (x fastest) in rising order. The corrupted
    /// mask is not empty.
    pub flipped: Vec<usize>,
}

/// Chooses `settings.count(masks.len())` of the masks at random and says what becomes of them, in rising order of
/// [`Corruption::mask`].
///
/// Each overlap is as near to the wanted one as the mask's voxels allow; where that leaves the mean off (small
/// masks have few voxels to choose from), the others' overlaps make up for it. A kind that cannot bring a mask
/// within 0.02 of the overlap gives way to the kind that comes nearest. Follows from the masks and the settings
/// alone, whatever the number of threads.
///
/// # Errors
/// If the settings cannot work, a chosen mask cannot be corrupted at all (it fills its grid, or is one voxel, and
/// only erosion is allowed), or the mean overlap cannot come within [`TOLERANCE`] of the wanted one.
pub fn corrupt(masks: &[Mask], settings: &NoiseSettings) -> Result<Vec<Corruption>> {
    settings.check()?;
    let mut order: Vec<usize> = (0..masks.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    order.truncate(settings.count(masks.len()));
    let mut chosen: Vec<(usize, Kind)> =
        order.into_iter().enumerate().map(|(i, mask)| (mask, settings.kinds[i % settings.kinds.len()])).collect();
    chosen.sort_unstable();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let first = chosen.par_iter().map(|&(mask, kind)| nearest(masks, mask, kind, settings)).collect::<Result<_>>()?;
    let corruptions = balanced(masks, first, settings);
    let mean = mean_overlap(&corruptions);
    match (mean - settings.overlap).abs() <= TOLERANCE {
        true => Ok(corruptions),
        false => Err(Error::Invalid(format!(
            "noise overlap {}: these masks come to {mean:.3} at best; they are too few or too small, choose another overlap",
            settings.overlap
        ))),
    }
}

/// The mean overlap of some corrupted masks; NaN for none.
pub fn mean_overlap<'a>(corruptions: impl IntoIterator<Item = &'a Corruption>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for corruption in corruptions {
        (sum, count) = (sum + corruption.overlap, count + 1);
    }
    sum / count as f64
}

/// Corrupts square or oblong binary slices in place: `width` pixels a row, nonzero where foreground; a pixel that
/// becomes foreground is set to 1. Slices without foreground are neither counted nor chosen.
/// [`Corruption::mask`] counts all `slices`.
///
/// # Errors
/// As [`corrupt`]; or if a slice is no whole number of rows.
pub fn corrupt_slices(slices: &mut [&mut [u8]], width: usize, settings: &NoiseSettings) -> Result<Vec<Corruption>> {
    if let Some(slice) = slices.iter().find(|slice| width == 0 || slice.len() % width != 0) {
        return Err(Error::shape("corrupt", format!("a slice of {} pixels has no rows of {width}", slice.len())));
    }
    let (indices, masks): (Vec<usize>, Vec<Mask>) = slices
        .iter()
        .enumerate()
        .filter_map(|(i, slice)| {
            let shape = [width, slice.len() / width, 1];
            Some((i, Mask::new(shape, [1.0; 3], |pixel| slice[pixel] != 0)?))
        })
        .unzip();
    let mut corruptions = corrupt(&masks, settings)?;
    for corruption in &mut corruptions {
        corruption.mask = indices[corruption.mask];
        let slice = &mut slices[corruption.mask];
        corruption.flipped.iter().for_each(|&pixel| slice[pixel] = u8::from(slice[pixel] == 0));
    }
    Ok(corruptions)
}

/// How far from the wanted overlap a kind may leave a mask before another kind is tried.
const MISS: f64 = 0.02;

/// A mask corrupted by `kind`, or by another kind that comes nearer if that one misses.
fn nearest(masks: &[Mask], mask: usize, kind: Kind, settings: &NoiseSettings) -> Result<Corruption> {
    let wanted = settings.overlap;
    let miss = |corruption: &Corruption| (corruption.overlap - wanted).abs();
    let mut best = corrupted(masks, mask, kind, wanted, settings.seed);
    for &other in settings.kinds.iter().filter(|&&other| other != kind) {
        if best.as_ref().is_some_and(|best| miss(best) <= MISS) {
            break;
        }
        let found = corrupted(masks, mask, other, wanted, settings.seed);
        if found.as_ref().is_some_and(|found| best.as_ref().is_none_or(|best| miss(found) < miss(best))) {
            best = found;
        }
    }
    best.ok_or_else(|| {
        let kinds: Vec<&str> = settings.kinds.iter().map(|kind| kind.name()).collect();
        Error::Invalid(format!(
            "a mask of {} voxels can be given no {} that leaves some of it: allow more kinds of noise",
            masks[mask].count(),
            kinds.join(" or ")
        ))
    })
}

/// One mask, one kind, as near to `overlap` as it comes, with randomness of its own.
fn corrupted(masks: &[Mask], mask: usize, kind: Kind, overlap: f64, seed: u64) -> Option<Corruption> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(1 + mask as u64);
    let Calibrated { overlap, flipped } = match kind {
        Kind::Erosion => calibration::calibrate(&erosion::Erosion::new(&masks[mask], &mut random), overlap),
        Kind::Dilation => calibration::calibrate(&dilation::Dilation::new(&masks[mask], overlap, &mut random), overlap),
        Kind::Elastic => calibration::calibrate(&elastic::Elastic::new(&masks[mask], &mut random), overlap),
    }?;
    Some(Corruption { mask, kind, overlap, flipped })
}

/// How near the mean overlap is brought to the wanted one, if it can be.
const BALANCE: f64 = 5e-4;
/// How often it is tried.
const ROUNDS: usize = 12;

/// `corruptions` with the mean overlap brought to the wanted one, by asking of each mask a little more or less.
fn balanced(masks: &[Mask], mut corruptions: Vec<Corruption>, settings: &NoiseSettings) -> Vec<Corruption> {
    let mut best = (mean_overlap(&corruptions) - settings.overlap).abs();
    let mut asked = settings.overlap;
    for _ in 0..ROUNDS {
        if best <= BALANCE {
            break;
        }
        asked = (asked - (mean_overlap(&corruptions) - settings.overlap)).clamp(0.0, 1.0);
        let again = |corruption: &Corruption| {
            corrupted(masks, corruption.mask, corruption.kind, asked, settings.seed)
                .unwrap_or_else(|| corruption.clone())
        };
        let next: Vec<Corruption> = corruptions.par_iter().map(again).collect();
        let miss = (mean_overlap(&next) - settings.overlap).abs();
        if miss >= best {
            break;
        }
        (corruptions, best) = (next, miss);
    }
    corruptions
}
