//! Adaptive denoising learning (section 2.4): which training masks an epoch leaves out because they are likely
//! wrong.
//!
//! Masks without foreground are never left out, and do not count among equation 5's masks: any false positive
//! gives them a loss near 1, which says nothing about the mask.

mod detection;
mod equation;
mod mixture;
mod records;

pub use detection::{Detection, auroc};
pub use equation::{Noise, removals, removals_until};
pub use records::LossRecords;

use super::learner::Evaluated;
use super::state::LearnerState;
use crate::data::SliceSet;
use crate::model::Loss;
use crate::preprocessing::is_foreground;
use crate::{Error, Result};
use mixture::Mixture;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How training treats masks that may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Adl {
    /// Trusts all masks
    Off,
    /// The paper's, in the reading that does better: per epoch
    Paper,
    /// Removes equation 5's number of masks in each epoch, those of highest loss, for good
    Cumulative,
    /// Leaves out equation 5's number of masks of highest loss for one epoch
    PerEpoch,
    /// Estimates how noisy the masks are, and leaves out those more likely wrong than right
    Auto,
    /// Leaves out the masks that are truly noisy (needs the data set's noise.csv)
    Oracle,
    /// Removes as many masks as `cumulative`, at random
    Random,
    /// Two networks, each leaving out what the other finds hard, up to the proportion believed noisy
    CoTeaching,
    /// Trusts all masks, with a loss that outliers pull less at
    RobustDice,
}

impl Adl {
    /// The strategies that differ, to be compared.
    pub const COMPARED: [Adl; 8] = [
        Adl::Off,
        Adl::Cumulative,
        Adl::PerEpoch,
        Adl::Auto,
        Adl::Oracle,
        Adl::Random,
        Adl::CoTeaching,
        Adl::RobustDice,
    ];

    /// The name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Adl::Off => "off",
            Adl::Paper => "paper",
            Adl::Cumulative => "cumulative",
            Adl::PerEpoch => "per-epoch",
            Adl::Auto => "auto",
            Adl::Oracle => "oracle",
            Adl::Random => "random",
            Adl::CoTeaching => "co-teaching",
            Adl::RobustDice => "robust-dice",
        }
    }

    /// How many networks train side by side.
    pub fn learners(self) -> usize {
        match self {
            Adl::CoTeaching => 2,
            _ => 1,
        }
    }

    /// Says whether the strategy can do with what is known of the truth.
    ///
    /// # Errors
    /// If it needs the truth, and that is not known.
    pub fn check_truth(self, is_known: bool) -> Result<()> {
        match self == Adl::Oracle && !is_known {
            true => Err(Error::Invalid("--adl oracle needs the truth: a data set made by corrupt".into())),
            false => Ok(()),
        }
    }

    /// Says whether the strategy is told enough.
    ///
    /// # Errors
    /// If it must be told how noisy the masks are.
    pub fn check(self, noise: Option<Noise>) -> Result<()> {
        match self {
            Adl::Off | Adl::Auto | Adl::Oracle | Adl::RobustDice => Ok(()),
            _ if noise.is_some() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "--adl {} must be told how noisy the masks are: give --noise-proportion and --noise-overlap, or take \
                 --adl auto",
                self.name()
            ))),
        }
    }

    /// The loss that trains.
    pub fn loss(self) -> Loss {
        match self {
            Adl::RobustDice => Loss::RobustDice,
            _ => Loss::Dice,
        }
    }
}

/// Co-teaching leaves out its full share from this part of the epochs on, and rises to it in a straight line.
const CO_TEACHING_RISE: f64 = 0.2;

/// The Dice that predictions must reach with the masks believed right before the others are believed wrong.
const RELIABLE_DICE: f64 = 0.75;

/// Decides what each epoch of a run leaves out.
pub struct Denoiser {
    adl: Adl,
    noise: Option<Noise>,
    epochs: u64,
    seed: u64,
    /// The training slices, as indices into the set.
    slices: Vec<usize>,
    /// Those with foreground, as positions in `slices`.
    masks: Vec<usize>,
    /// Height and width of a slice.
    size: usize,
    /// Whether each training slice's mask is noisy, if that is known.
    truth: Option<Vec<bool>>,
}

impl Denoiser {
    /// For the training slices `slices` of `set`. `truth` says of each slice of the set whether its mask is noisy.
    ///
    /// # Errors
    /// If `adl` must be told something that is missing.
    pub fn new(
        adl: Adl,
        noise: Option<Noise>,
        epochs: u64,
        seed: u64,
        (set, slices): (&SliceSet, &[usize]),
        truth: Option<&[bool]>,
    ) -> Result<Self> {
        adl.check(noise)?;
        adl.check_truth(truth.is_some())?;
        Ok(Denoiser {
            adl,
            noise,
            epochs,
            seed,
            slices: slices.to_vec(),
            size: set.size,
            masks: (0..slices.len()).filter(|&i| set.slices[slices[i]].has_foreground).collect(),
            truth: truth.map(|truth| slices.iter().map(|&slice| truth[slice]).collect()),
        })
    }

    /// Decides the weights of the slices in epoch `epoch` from what is remembered of the ones before.
    pub fn begin_epoch(&self, epoch: u64, learners: &mut [LearnerState]) {
        let chosen: Vec<Vec<usize>> =
            (0..learners.len()).map(|learner| self.left_out(epoch, learners, learner)).collect();
        for (learner, chosen) in learners.iter_mut().zip(chosen) {
            learner.weights.fill(1.0);
            for i in chosen {
                learner.weights[i] = 0.0;
                learner.records.times_left_out[i] += 1;
                if self.removes() && learner.records.removed[i] == 0 {
                    learner.records.removed[i] = epoch;
                }
            }
        }
    }

    /// Whether what is left out stays out.
    fn removes(&self) -> bool {
        matches!(self.adl, Adl::Cumulative | Adl::Random)
    }

    /// The slices (positions) that learner `learner` leaves out of epoch `epoch`.
    fn left_out(&self, epoch: u64, learners: &[LearnerState], learner: usize) -> Vec<usize> {
        let noise = || self.noise.expect("checked when the denoiser was made");
        let truth = || self.truth.as_ref().expect("checked when the denoiser was made");
        let masks = self.masks.len();
        match self.adl {
            Adl::Off | Adl::RobustDice => Vec::new(),
            Adl::Oracle => self.masks.iter().copied().filter(|&i| truth()[i]).collect(),
            // No epoch has recorded a loss yet.
            _ if epoch == 1 => Vec::new(),
            Adl::Cumulative | Adl::Random => {
                let records = &learners[learner].records;
                let ranking = match self.adl {
                    Adl::Random => self.shuffled(),
                    _ => self.ranking(records),
                };
                let (mut removed, rest): (Vec<usize>, Vec<usize>) =
                    ranking.into_iter().partition(|&i| records.removed[i] > 0);
                let wanted = removals_until(noise(), masks, self.epochs, epoch);
                removed.extend(rest.into_iter().take(wanted.saturating_sub(removed.len())));
                removed
            }
            Adl::Auto => match self.mixture(&learners[learner].records) {
                Some(mixture) => {
                    let score = |i: usize| displacement_score(&learners[learner].records, i);
                    self.masks.iter().copied().filter(|&i| mixture.is_high(score(i)) > 0.5).collect()
                }
                None => Vec::new(),
            },
            Adl::Paper | Adl::PerEpoch => {
                let count = removals(noise(), masks, self.epochs, epoch).round() as usize;
                self.ranking(&learners[learner].records).into_iter().take(count).collect()
            }
            Adl::CoTeaching => {
                let rise = (epoch - 1) as f64 / (CO_TEACHING_RISE * self.epochs as f64);
                let count = (rise.min(1.0) * noise().proportion * masks as f64).round() as usize;
                self.ranking(&learners[1 - learner].records).into_iter().take(count).collect()
            }
        }
    }

    /// The two kinds of masks, if the scores show two and the predictions can be relied on: if they agree with the
    /// masks of the better kind. Before a network has learnt, its errors come in two kinds as well.
    fn mixture(&self, records: &LossRecords) -> Option<Mixture> {
        let mixture = Mixture::of(&self.masks.iter().map(|&i| displacement_score(records, i)).collect::<Vec<f64>>())?;
        (self.mean_dice(records, |score| 1.0 - mixture.is_high(score))? >= RELIABLE_DICE).then_some(mixture)
    }

    /// The mean Dice of the masks with what was predicted, each mask counting as much as `share` of its score.
    fn mean_dice(&self, records: &LossRecords, share: impl Fn(f64) -> f64) -> Option<f64> {
        let mut sums = [0.0; 2];
        for &i in &self.masks {
            let share = share(displacement_score(records, i));
            sums = [sums[0] + share * (1.0 - f64::from(records.last[i])), sums[1] + share];
        }
        (sums[1] > 0.0).then(|| sums[0] / sums[1])
    }

    /// How noisy the masks seem, for the strategy that is not told: the share of them that lies apart, and their
    /// mean Dice with what the learner predicts.
    pub fn estimate(&self, learner: &LearnerState) -> Option<Noise> {
        let records = &learner.records;
        let mixture = (self.adl == Adl::Auto).then(|| self.mixture(records)).flatten()?;
        let is_noisy = |score| mixture.is_high(score);
        let share: f64 = self.masks.iter().map(|&i| is_noisy(displacement_score(records, i))).sum();
        Some(Noise { proportion: share / self.masks.len() as f64, overlap: self.mean_dice(records, is_noisy)? })
    }

    /// The masks with foreground, the most suspicious first; equal ones in the data's order.
    fn ranking(&self, records: &LossRecords) -> Vec<usize> {
        let mut ranking = self.masks.clone();
        ranking.sort_by(|&a, &b| records.last[b].total_cmp(&records.last[a]));
        ranking
    }

    fn shuffled(&self) -> Vec<usize> {
        let mut masks = self.masks.clone();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(u64::MAX);
        masks.shuffle(&mut random);
        masks
    }

    /// How well the masks that `learner` leaves out, and its ranking, match the truth, where that is known.
    pub fn detection(&self, learner: &LearnerState) -> Option<Detection> {
        let truth = self.truth.as_ref()?;
        let score = |i: usize| match self.adl {
            Adl::Auto => displacement_score(&learner.records, i),
            _ => learner.records.last[i].into(),
        };
        let mask = |&i: &usize| (score(i), learner.weights[i] == 0.0, truth[i]);
        Some(Detection::of(&self.masks.iter().map(mask).collect::<Vec<_>>()))
    }

    /// Remembers losses of slices, which are indices into the set.
    pub fn record(&self, records: &mut LossRecords, losses: impl IntoIterator<Item = (usize, f32)>) {
        for (slice, loss) in losses {
            records.last[self.position(slice)] = loss;
        }
    }

    /// Remembers what inference found on a slice.
    pub fn record_evaluated(&self, records: &mut LossRecords, evaluated: &Evaluated) {
        let position = self.position(evaluated.slice);
        records.last[position] = evaluated.loss;
        records.displacement[position] = displacement(evaluated, self.size);
    }

    /// Where a slice stands among the training slices.
    pub fn position(&self, slice: usize) -> usize {
        self.slices.binary_search(&slice).expect("only training slices are recorded")
    }

    /// The slices, as indices into the set, that the end of an epoch scores forward-only: those left out of it, so
    /// that their records stay current, or all, where the strategy ranks by displacement.
    pub fn slices_to_score(&self, learner: &LearnerState) -> Vec<usize> {
        match self.adl {
            Adl::Auto => self.slices.clone(),
            _ => self.slices_left_out(learner),
        }
    }

    /// How many masks `learner` leaves out of epoch `epoch`; where they stay out, those that it is the first to
    /// leave out.
    pub fn newly_left_out(&self, epoch: u64, learner: &LearnerState) -> usize {
        match self.removes() {
            true => learner.records.removed.iter().filter(|&&removed| removed == epoch).count(),
            false => self.slices_left_out(learner).len(),
        }
    }

    /// The training slices, as indices into the set, that `learner` leaves out of this epoch.
    pub fn slices_left_out(&self, learner: &LearnerState) -> Vec<usize> {
        let out = self.slices.iter().zip(&learner.weights).filter(|(_, weight)| **weight == 0.0);
        out.map(|(&slice, _)| slice).collect()
    }
}

/// The logarithm of the displacement, in pixels, of the mask at position `i`.
fn displacement_score(records: &LossRecords, i: usize) -> f64 {
    f64::from(records.displacement[i]).max(1e-3).ln()
}

/// How far a slice's mask is from the prediction; see [`LossRecords::displacement`].
pub fn displacement(evaluated: &Evaluated, size: usize) -> f32 {
    let pairs = evaluated.probabilities.iter().zip(evaluated.target);
    let difference: f64 = pairs.map(|(p, t)| f64::from((p - t).abs())).sum();
    let outlines = outline(evaluated.target, size) + outline(evaluated.probabilities, size);
    (2.0 * difference / outlines.max(1) as f64) as f32
}

/// Foreground pixels that have a neighbour (of four) outside the mask.
fn outline(values: &[f32], size: usize) -> usize {
    let is_inside = |x: usize, y: usize| x < size && y < size && is_foreground(values[y * size + x]);
    let is_on_outline = |&pixel: &usize| {
        let (x, y) = (pixel % size, pixel / size);
        let neighbours = [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)];
        is_inside(x, y) && !neighbours.iter().all(|&(x, y)| is_inside(x, y))
    };
    (0..values.len()).filter(is_on_outline).count()
}
