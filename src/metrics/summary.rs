//! Metrics over many cases: mean, median and how sure the mean is.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{Metric, Metrics};

/// Resampled means behind an interval.
const RESAMPLES: usize = 2000;

/// One metric over some cases: the figures, and how often there was none, and why.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub values: Vec<f64>,
    pub undefined: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// The tally of one metric.
    pub fn of(metrics: impl IntoIterator<Item = Metric>) -> Self {
        let mut tally = Tally::default();
        for metric in metrics {
            match metric {
                Metric::Value(value) => tally.values.push(value),
                Metric::Undefined(reason) => *tally.undefined.entry(reason).or_default() += 1,
            }
        }
        tally
    }

    /// A tally for each of [`Metrics::NAMES`].
    pub fn of_each(cases: &[Metrics]) -> [Self; Metrics::COUNT] {
        let cases: Vec<_> = cases.iter().map(Metrics::values).collect();
        std::array::from_fn(|metric| Tally::of(cases.iter().map(|values| values[metric])))
    }

    /// The mean of the figures; undefined if there is none.
    pub fn mean(&self) -> Metric {
        Metric::ratio(self.values.iter().sum(), self.values.len() as f64, self.why_undefined())
    }

    /// The median of the figures; undefined if there is none.
    pub fn median(&self) -> Metric {
        if self.values.is_empty() {
            return Metric::Undefined(self.why_undefined());
        }
        Metric::Value(quantile(&mut self.values.clone(), 0.5))
    }

    fn why_undefined(&self) -> &'static str {
        match self.undefined.len() {
            0 => "there are no cases",
            1 => self.undefined.keys().next().copied().unwrap_or_default(),
            _ => "undefined in every case, for several reasons",
        }
    }
}

/// One metric over all cases. Serializes with these names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub mean: Metric,
    pub median: Metric,
    /// The 95% bootstrap percentile interval of the mean; none from a single figure.
    pub interval_95: Option<[f64; 2]>,
    /// Figures that went into this.
    pub defined: usize,
    /// Why figures are missing, and how many for each reason.
    pub undefined: BTreeMap<&'static str, usize>,
}

impl Summary {
    /// The summary of all figures in `groups`: a group is what was measured on one patient, such as
    /// all slices. Figures of one patient are alike, so the bootstrap draws whole groups; from one
    /// group alone it draws its figures, and then says nothing about other patients.
    pub fn of(groups: &[Vec<Metric>], seed: u64) -> Self {
        let tally = Tally::of(groups.iter().flatten().copied());
        Summary {
            mean: tally.mean(),
            median: tally.median(),
            interval_95: bootstrap_interval(groups, seed),
            defined: tally.values.len(),
            undefined: tally.undefined,
        }
    }
}

fn bootstrap_interval(groups: &[Vec<Metric>], seed: u64) -> Option<[f64; 2]> {
    let mut groups: Vec<Vec<f64>> =
        groups.iter().map(|group| group.iter().filter_map(|metric| metric.value()).collect()).collect();
    groups.retain(|group| !group.is_empty());
    if let [group] = &groups[..] {
        groups = group.iter().map(|&value| vec![value]).collect();
    }
    if groups.len() < 2 {
        return None;
    }
    let sums: Vec<(f64, usize)> = groups.iter().map(|group| (group.iter().sum(), group.len())).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = sums.iter().map(|_| sums[random.random_range(0..sums.len())]);
            let (sum, count) = drawn.fold((0.0, 0), |total, drawn| (total.0 + drawn.0, total.1 + drawn.1));
            sum / count as f64
        })
        .collect();
    Some([quantile(&mut means, 0.025), quantile(&mut means, 0.975)])
}

/// The value below which a `fraction` of `values` lies, interpolated linearly between its two
/// neighbours as numpy's percentile does by default; reorders `values`, of which there must be one.
pub(crate) fn quantile(values: &mut [f64], fraction: f64) -> f64 {
    let position = fraction * (values.len() - 1) as f64;
    let (_, below, rest) = values.select_nth_unstable_by(position as usize, f64::total_cmp);
    let below = *below;
    match rest.iter().copied().min_by(f64::total_cmp) {
        Some(above) => below + (above - below) * position.fract(),
        None => below,
    }
}
