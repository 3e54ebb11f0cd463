//! Wilcoxon's signed-rank test: whether one method is better than another on the same cases.

use crate::{Error, Result};

/// Up to this many differences all 2^n signs are counted; beyond, the normal approximation is good.
const EXACT_LIMIT: usize = 25;

/// The outcome of a two-sided test.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Wilcoxon {
    /// The smaller of the rank sums of positive and negative differences.
    pub statistic: f64,
    /// How likely rank sums at least this uneven are if neither method is better.
    pub p_value: f64,
    /// Pairs that differ; the others are left out.
    pub differing: usize,
    /// Whether the p value is exact, or the normal approximation with the corrections for ties and
    /// for continuity.
    pub exact: bool,
}

impl Wilcoxon {
    /// Compares `first[i]` with `second[i]`, for example the Dice of two methods on case i.
    ///
    /// # Errors
    /// If the numbers of cases differ, a figure is not finite, or no pair differs.
    pub fn test(first: &[f64], second: &[f64]) -> Result<Self> {
        if first.len() != second.len() {
            let message = format!("{} figures against {}: give both for every case", first.len(), second.len());
            return Err(Error::shape("wilcoxon", message));
        }
        let mut differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).filter(|d| *d != 0.0).collect();
        if differences.is_empty() || differences.iter().any(|difference| !difference.is_finite()) {
            let message = "no finite difference to rank: give figures that differ in at least one case";
            return Err(Error::shape("wilcoxon", message));
        }
        differences.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let groups: Vec<&[f64]> = differences.chunk_by(|a, b| a.abs() == b.abs()).collect();

        // Twice the ranks: ties share their mean rank, which may end in a half.
        let (mut doubled_ranks, mut positive) = (Vec::new(), 0);
        for group in &groups {
            let doubled = 2 * doubled_ranks.len() + group.len() + 1;
            positive += doubled * group.iter().filter(|difference| **difference > 0.0).count();
            doubled_ranks.extend(std::iter::repeat_n(doubled, group.len()));
        }
        let smaller = positive.min(doubled_ranks.iter().sum::<usize>() - positive);
        let exact = differences.len() <= EXACT_LIMIT;
        let p_value = if exact { exact_p(&doubled_ranks, smaller) } else { normal_p(&groups, smaller) };
        Ok(Wilcoxon { statistic: smaller as f64 / 2.0, p_value, differing: differences.len(), exact })
    }
}

/// The share of all choices of signs whose smaller rank sum is at most `smaller`, both doubled.
fn exact_p(doubled_ranks: &[usize], smaller: usize) -> f64 {
    // ways[s]: how many subsets of the ranks so far sum to s.
    let mut ways = vec![0u64; doubled_ranks.iter().sum::<usize>() + 1];
    ways[0] = 1;
    for &rank in doubled_ranks {
        for sum in (rank..ways.len()).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    let tail: u64 = ways[..=smaller].iter().sum();
    (2.0 * tail as f64 / 2f64.powi(doubled_ranks.len() as i32)).min(1.0)
}

fn normal_p(groups: &[&[f64]], doubled_smaller: usize) -> f64 {
    let n: f64 = groups.iter().map(|group| group.len() as f64).sum();
    let ties: f64 = groups.iter().map(|group| (group.len() as f64).powi(3) - group.len() as f64).sum();
    let deviation = ((n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0).sqrt();
    let distance = n * (n + 1.0) / 4.0 - doubled_smaller as f64 / 2.0;
    erfc((distance - 0.5).max(0.0) / deviation / std::f64::consts::SQRT_2)
}

/// The complementary error function for `x >= 0`: a power series near 0, a continued fraction beyond.
fn erfc(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (2.0 * x, 0.0, 0.0);
        while term > f64::EPSILON * sum {
            sum += term;
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
        }
        1.0 - scale * sum
    } else {
        // From a depth where more levels change nothing in f64.
        scale / (1..=100).rev().fold(x, |fraction, level| x + 0.5 * f64::from(level) / fraction)
    }
}
