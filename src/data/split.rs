//! Which slices train, which validate, which stay unseen.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::slices::SliceSet;
use crate::{Error, Result};

/// Slices of one patient that are held out together: neighbours are nearly alike, and a held-out
/// slice between two training slices would tell little of what the network has learnt.
const RUN: usize = 4;

/// Indices into [`SliceSet::slices`], each list in rising order, no slice in two lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    pub train: Vec<usize>,
    pub validation: Vec<usize>,
    pub test: Vec<usize>,
}

/// Checks a share of the slices to hold out.
///
/// # Errors
/// If it is not in [0, 1).
pub fn check_fraction(validation_fraction: f64) -> Result<()> {
    match (0.0..1.0).contains(&validation_fraction) {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "validation fraction {validation_fraction}: it should be at least 0 and below 1"
        ))),
    }
}

impl Split {
    /// Leaves out the slices of `test_cases`, and of the others holds out `validation_fraction` for
    /// validation.
    ///
    /// The slices of each case are cut into runs of up to four neighbours that all have
    /// foreground or all have none; runs of either kind are drawn in an order that `seed` decides
    /// until the fraction of that kind's slices is reached, the last run being cut short. So
    /// validation has its share of foreground, and a single patient can be split too. A fraction
    /// above 0 holds out at least one slice with foreground, as long as another one is left.
    ///
    /// # Errors
    /// If a test case does not exist, the fraction is not in [0, 1), or no foreground is left to train on.
    pub fn new(set: &SliceSet, test_cases: &[String], validation_fraction: f64, seed: u64) -> Result<Self> {
        check_fraction(validation_fraction)?;
        if let Some(unknown) = test_cases.iter().find(|name| !set.cases.contains(name)) {
            return Err(Error::Invalid(format!("test case \"{unknown}\" is not one of {}", set.cases.join(", "))));
        }
        let mut split = Split::default();
        let mut runs: [Vec<Vec<usize>>; 2] = Default::default();
        for (i, slice) in set.slices.iter().enumerate() {
            if test_cases.contains(&set.cases[slice.case]) {
                split.test.push(i);
                continue;
            }
            let kind = &mut runs[usize::from(slice.has_foreground)];
            match kind.last_mut() {
                Some(run)
                    if run.len() < RUN
                        && run.last() == Some(&i.wrapping_sub(1))
                        && set.slices[i - 1].case == slice.case =>
                {
                    run.push(i);
                }
                _ => kind.push(vec![i]),
            }
        }

        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (kind, mut runs) in runs.into_iter().enumerate() {
            let count: usize = runs.iter().map(Vec::len).sum();
            let mut wanted = (validation_fraction * count as f64).round() as usize;
            if kind == 1 && validation_fraction > 0.0 {
                wanted = wanted.max(1);
            }
            wanted = wanted.min(count.saturating_sub(1));
            runs.shuffle(&mut rng);
            for i in runs.into_iter().flatten() {
                match wanted {
                    0 => split.train.push(i),
                    _ => {
                        wanted -= 1;
                        split.validation.push(i);
                    }
                }
            }
        }
        split.train.sort_unstable();
        split.validation.sort_unstable();
        if !split.train.iter().any(|&i| set.slices[i].has_foreground) {
            return Err(Error::Invalid(
                "no slice with foreground is left to train on: name fewer test cases".to_owned(),
            ));
        }
        Ok(split)
    }
}
