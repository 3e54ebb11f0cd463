//! The weights of a 3x3 convolution as tensor cores read them for the gradient of its input, which is a convolution, too: with
//! the taps from the last to the first, and a row of inputs for each output. As they are, few inputs would lie side by side.

use super::Op;
use super::case::Case;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda};
use crate::device::kernels::TRANSPOSE_WEIGHT_FORWARD;
use crate::device::kernels::transpose_weight::{TRANSPOSE_THREADS, TRANSPOSED};
use crate::tensor::{CHANNEL_ALIGNMENT, Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// Input: `weight`, [taps * inputs, outputs], both in whole groups of channels. Output: [taps * outputs, inputs], taps counted
/// from the last.
#[derive(Debug)]
pub struct TransposeWeight {
    taps: usize,
    inputs: Channels,
}

impl TransposeWeight {
    /// Of a convolution of so many taps whose input has these channels.
    pub fn new(taps: usize, inputs: Channels) -> Self {
        TransposeWeight { taps, inputs }
    }
}

impl Op for TransposeWeight {
    fn name(&self) -> &'static str {
        "transpose_weight"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let weight = inputs[0];
        let whole =
            [&self.inputs, &weight.channels].iter().all(|channels| channels.stored().is_multiple_of(CHANNEL_ALIGNMENT));
        if !whole || weight.positions() != self.taps * self.inputs.stored() {
            let message =
                format!("{weight} is not of {} taps of {} inputs, in whole groups", self.taps, self.inputs.stored());
            return Err(Error::shape("transpose_weight", message));
        }
        let rows = self.taps * weight.channels.stored();
        Ok(vec![Shape::matrix(rows, self.inputs.clone()).stored_in(weight.storage)])
    }

    fn only_prepares(&self) -> bool {
        true
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for TransposeWeight {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (weight, mut out) = (call.input(0), call.output(0));
        let (inputs, outputs) = (self.inputs.stored(), weight.channels());
        let weight = weight.dense();
        out.dense().par_chunks_exact_mut(inputs).enumerate().for_each(|(row, out)| {
            let (tap, output) = (self.taps - 1 - row / outputs, row % outputs);
            for (input, out) in out.iter_mut().enumerate() {
                *out = weight[(tap * inputs + input) * outputs + output];
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for TransposeWeight {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (weight, out) = (launcher.input(0), launcher.output(0));
        let (inputs, outputs) = (out.channels(), weight.channels());
        let blocks = [inputs.div_ceil(TRANSPOSED), outputs.div_ceil(TRANSPOSED), self.taps];
        launcher
            .kernel(TRANSPOSE_WEIGHT_FORWARD)
            .pointers([out.pointer, weight.pointer])
            .sizes([inputs, outputs])
            .launch(Grid::new(blocks, TRANSPOSE_THREADS))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let case = |(taps, inputs, outputs): (usize, usize, usize)| {
        let inputs = Channels::new(inputs);
        let weight = Shape::matrix(taps * inputs.stored(), Channels::new(outputs)).stored_in(Storage::Reduced);
        let op = move |inputs: &Channels| TransposeWeight::new(taps, inputs.clone());
        let channels = inputs.clone();
        let case = Case::new("transpose_weight", [weight], move |graph, values| graph.apply(op(&channels), values));
        case.rows(0, inputs).forward_only()
    };
    [(1, 8, 16), (9, 9, 33), (9, 97, 70)].map(case).to_vec()
}
