//! Two kinds of masks among scores of unknown kind: a mixture of two normal distributions.

/// Rounds of expectation and maximisation; the estimate stands long before.
const ROUNDS: usize = 200;
/// No component may narrow to less than this, in the scores' unit.
const LEAST_DEVIATION: f64 = 1e-3;
/// Fewer scores than this say nothing about their distribution.
const LEAST_SCORES: usize = 16;
/// Two normal distributions stand apart from this distance on, in units of their (quadratic) mean deviation.
/// (Ashman, Bird and Zepf, 1994.)
const SEPARATION: f64 = 2.0;

/// What a second component adds to the first one's mean and deviation: two of its own, and a weight.
const MORE_PARAMETERS: f64 = 3.0;

/// Scores of two kinds that stand apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    low: Component,
    high: Component,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Component {
    weight: f64,
    mean: f64,
    deviation: f64,
}

impl Component {
    /// Weight times density, without the factor that all have.
    fn density(&self, score: f64) -> f64 {
        let distance = (score - self.mean) / self.deviation;
        self.weight / self.deviation * (-0.5 * distance * distance).exp()
    }

    /// The component that fits `scores`, each counting as much as its share.
    fn fit(scores: &[f64], share: impl Fn(usize) -> f64) -> Self {
        let sum = |value: &dyn Fn(usize) -> f64| (0..scores.len()).map(|i| share(i) * value(i)).sum::<f64>();
        let total = sum(&|_| 1.0).max(f64::MIN_POSITIVE);
        let mean = sum(&|i| scores[i]) / total;
        let variance = sum(&|i| (scores[i] - mean).powi(2)) / total;
        let deviation = variance.sqrt().max(LEAST_DEVIATION);
        Component { weight: total / scores.len() as f64, mean, deviation }
    }
}

impl Mixture {
    /// The two kinds among `scores`, if there are two: the mixture must explain the scores better than one normal
    /// distribution does (by Akaike's information criterion), and its components must stand apart.
    pub fn of(scores: &[f64]) -> Option<Self> {
        if scores.len() < LEAST_SCORES || scores.iter().any(|score| !score.is_finite()) {
            return None;
        }
        let mut sorted = scores.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted[sorted.len() / 2];
        let mut high_shares: Vec<f64> = scores.iter().map(|&score| f64::from(u8::from(score >= middle))).collect();
        let mut mixture = Mixture::fit(scores, &high_shares);
        for _ in 0..ROUNDS {
            high_shares = scores.iter().map(|&score| mixture.is_high(score)).collect();
            mixture = Mixture::fit(scores, &high_shares);
        }
        let Mixture { low, high } = mixture;
        let distance = (high.mean - low.mean) / ((low.deviation.powi(2) + high.deviation.powi(2)) / 2.0).sqrt();
        let one = Component::fit(scores, |_| 1.0);
        let likelihood = |density: &dyn Fn(f64) -> f64| {
            scores.iter().map(|&score| density(score).max(f64::MIN_POSITIVE).ln()).sum::<f64>()
        };
        let gain =
            likelihood(&|score| low.density(score) + high.density(score)) - likelihood(&|score| one.density(score));
        (distance > SEPARATION && gain > MORE_PARAMETERS).then_some(mixture)
    }

    fn fit(scores: &[f64], high_shares: &[f64]) -> Self {
        Mixture {
            low: Component::fit(scores, |i| 1.0 - high_shares[i]),
            high: Component::fit(scores, |i| high_shares[i]),
        }
    }

    /// The chance that a score is of the high kind: rising with the score, though the wider of two normal
    /// distributions is the denser one on either side.
    pub fn is_high(&self, score: f64) -> f64 {
        let (low, high) = (self.low.density(score), self.high.density(score));
        if score <= self.low.mean {
            0.0
        } else if score >= self.high.mean || low + high == 0.0 {
            1.0
        } else {
            high / (low + high)
        }
    }
}
