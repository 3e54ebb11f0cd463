//! How the learning rate changes over a run.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate's course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same from the first step to the last, as in the paper.
    Constant,
    /// Up in a straight line over the first twentieth of the steps, then down to zero as a cosine.
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate in step `step` (from 0) of `steps`.
    pub fn factor(self, step: u64, steps: u64) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => {
                let warm_up = (steps / 20).max(1);
                if step < warm_up {
                    return (step + 1) as f64 / warm_up as f64;
                }
                let progress = (step - warm_up) as f64 / (steps - warm_up).max(1) as f64;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

impl std::str::FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "constant" => Ok(Schedule::Constant),
            "cosine" => Ok(Schedule::Cosine),
            _ => Err(format!("{text:?} is not one of constant, cosine")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_rises_then_falls_to_nothing() {
        let factors: Vec<f64> = (0..100).map(|step| Schedule::Cosine.factor(step, 100)).collect();
        assert!(factors[..5].windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(factors[5], 1.0);
        assert!(factors[5..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!(factors[99] < 1e-3 && factors.iter().all(|factor| *factor > 0.0));
        assert_eq!(Schedule::Cosine.factor(0, 1), 1.0);
        assert_eq!(Schedule::Constant.factor(99, 100), 1.0);
    }
}
