//! Dynamic scaling of the loss, so that gradients in fp16 neither vanish nor overflow. (Micikevicius et al., 2018,
//! section 3.2.)

use serde::{Deserialize, Serialize};

/// What the loss starts to be scaled by.
const START: f64 = 65536.0;
/// After so many steps whose gradients were all finite the scale is doubled.
const PATIENCE: u32 = 2000;
/// The scale is never less: gradients that are not finite then have another reason.
const LEAST: f64 = 1.0;

/// The scale of the loss, a power of two, which leaves all digits as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub scale: f64,
    /// Steps since the scale last changed.
    pub steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: START, steps: 0 }
    }
}

impl LossScale {
    /// Learns whether a step's gradients were finite.
    pub fn update(&mut self, finite: bool) {
        self.steps += 1;
        if !finite {
            *self = LossScale { scale: (self.scale / 2.0).max(LEAST), steps: 0 };
        } else if self.steps == PATIENCE {
            *self = LossScale { scale: self.scale * 2.0, steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_with_patience() {
        let mut scale = LossScale::default();
        scale.update(false);
        assert_eq!(scale.scale, START / 2.0);
        (1..PATIENCE).for_each(|_| scale.update(true));
        assert_eq!(scale.scale, START / 2.0);
        scale.update(true);
        assert_eq!(scale, LossScale { scale: START, steps: 0 });
        (0..40).for_each(|_| scale.update(false));
        assert_eq!(scale.scale, LEAST);
    }
}
