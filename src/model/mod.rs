//! The networks: RAR-U-Net, the seven variants of the paper's Table 4 and Dense-U-Net, from one builder.

mod builder;
mod loss_scale;
mod network;
mod parameter;
pub(crate) mod tensors;
pub mod weights;

pub use builder::{Mode, StepGraph};
pub use loss_scale::LossScale;
pub use network::{Losses, Network, Step};
pub use parameter::{Initial, Parameter};

use crate::graph::Region;
use crate::preprocessing::SIZE_MULTIPLE;
use crate::{Error, Result};
use builder::Starts;

/// Channels of the five levels in the paper.
pub const PAPER_WIDTHS: [usize; 5] = [32, 64, 128, 256, 512];

/// Which of the paper's parts a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    pub name: &'static str,
    /// Blocks concatenate their input with their output (section 2.1).
    pub residual: bool,
    /// Skips go through residual blocks (section 2.2).
    pub path: bool,
    /// Decoder blocks end in CBAM (section 2.3).
    pub attention: bool,
    /// Blocks feed their input to their second convolution, too.
    pub dense: bool,
    /// Where the paper has it.
    pub source: &'static str,
}

const fn architecture(
    name: &'static str,
    [residual, path, attention]: [bool; 3],
    source: &'static str,
) -> Architecture {
    Architecture { name, residual, path, attention, dense: false, source }
}

/// The eight networks.
pub const ARCHITECTURES: [Architecture; 8] = [
    architecture("unet", [false, false, false], "Table 4, row 1"),
    architecture("residual-unet", [true, false, false], "Table 4, row 2"),
    architecture("path-unet", [false, true, false], "Table 4, row 3"),
    architecture("attention-unet", [false, false, true], "Table 4, row 4"),
    architecture("residual-attention-unet", [true, false, true], "Table 4, row 5"),
    architecture("residual-path-unet", [true, true, false], "Table 4, row 6"),
    architecture("rar-unet", [true, true, true], "Table 4, row 7"),
    Architecture { dense: true, residual: true, ..architecture("dense-unet", [false; 3], "Table 1, M-Densely-UNet") },
];

/// What training makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loss {
    /// The paper's (section 3.1)
    #[default]
    Dice,
    /// One that outliers pull less at; see [`crate::ops::robust_dice_loss`]
    RobustDice,
}

/// A network: an architecture, the channels of its five levels, and the loss that it is trained with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub architecture: Architecture,
    pub widths: [usize; 5],
    pub loss: Loss,
}

impl Model {
    /// The network of this name, with the paper's loss.
    ///
    /// # Errors
    /// If there is none (the message lists them all), or a width is 0.
    pub fn new(name: &str, widths: [usize; 5]) -> Result<Self> {
        let Some(&architecture) = ARCHITECTURES.iter().find(|architecture| architecture.name == name) else {
            let names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
            return Err(Error::Invalid(format!("no model is named {name:?}; there are {}", names.join(", "))));
        };
        if widths.contains(&0) {
            return Err(Error::Invalid("every width must be at least 1".into()));
        }
        Ok(Model { architecture, widths, loss: Loss::default() })
    }

    /// All parameters and running statistics, with their places in the state.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = self.draft();
        parameter::place(&mut parameters);
        parameters
    }

    /// How many numbers are trained.
    pub fn parameter_count(&self) -> usize {
        let trained = self.draft().into_iter().filter(|parameter| parameter.region == Region::Parameters);
        trained.map(|parameter| parameter.count()).sum()
    }

    /// All parameters, not yet placed.
    fn draft(&self) -> Vec<Parameter> {
        let graph = builder::build(self, Mode::Evaluate, 1, [SIZE_MULTIPLE; 2], &Starts::default());
        graph.expect("the smallest size fits every network").parameters
    }

    /// The graph of a step of `batch` images of `size` (height, width).
    ///
    /// # Errors
    /// If the size is not a positive multiple of [`SIZE_MULTIPLE`].
    pub fn graph(&self, mode: Mode, batch: usize, size: [usize; 2]) -> Result<StepGraph> {
        if batch == 0 || size.iter().any(|&size| size == 0 || size % SIZE_MULTIPLE != 0) {
            let [height, width] = size;
            return Err(Error::Invalid(format!(
                "{batch} images of {height} x {width} cannot be a batch: height and width must be multiples of \
                 {SIZE_MULTIPLE} and the batch at least 1"
            )));
        }
        let starts = self.parameters().into_iter().map(|parameter| (parameter.name, parameter.start)).collect();
        builder::build(self, mode, batch, size, &starts)
    }
}
