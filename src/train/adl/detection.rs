//! How well noisy masks are told from clean ones, where the truth is known.

use serde::{Deserialize, Serialize};

/// The masks left out and the ranking behind that, against the truth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The share of the masks left out that are noisy; nothing if none is left out.
    pub precision: Option<f64>,
    /// The share of the noisy masks that are left out; nothing if none is noisy.
    pub recall: Option<f64>,
    /// The chance that a noisy mask ranks above a clean one; nothing if either kind is missing.
    pub auroc: Option<f64>,
}

impl Detection {
    /// Of masks given as (score, left out, truly noisy); a higher score says rather noisy.
    pub fn of(masks: &[(f64, bool, bool)]) -> Self {
        let count = |choose: &dyn Fn(&(f64, bool, bool)) -> bool| masks.iter().filter(|mask| choose(mask)).count();
        let (out, noisy) = (count(&|mask| mask.1), count(&|mask| mask.2));
        let both = count(&|mask| mask.1 && mask.2) as f64;
        Detection {
            precision: (out > 0).then(|| both / out as f64),
            recall: (noisy > 0).then(|| both / noisy as f64),
            auroc: auroc(masks.iter().map(|&(score, _, noisy)| (score, noisy)).collect()),
        }
    }
}

/// The area under the receiver operating characteristic: the Mann-Whitney statistic, ties counting half.
pub fn auroc(mut scores: Vec<(f64, bool)>) -> Option<f64> {
    let positives = scores.iter().filter(|score| score.1).count();
    let negatives = scores.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut won, mut below) = (0.0, 0);
    for ties in scores.chunk_by(|a, b| a.0 == b.0) {
        let positive = ties.iter().filter(|score| score.1).count();
        let negative = ties.len() - positive;
        won += positive as f64 * (below as f64 + negative as f64 / 2.0);
        below += negative;
    }
    Some(won / (positives as f64 * negatives as f64))
}
