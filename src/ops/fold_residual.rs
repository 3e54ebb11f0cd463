//! A residual block of `x * scale + shift` as a block of `x` itself, with other weights and biases: how batch norm is applied
//! without a pass over the tensor, where nothing but such a block reads its result.
//!
//! Of `shift` each tap makes a constant for each output, which is added to the bias. Where a tap meets the padding, which is
//! zero whatever the shift, its constant is taken back: at the border each kind of pixel has something added of its own.

use super::batch_norm::BatchNormScale;
use super::border::{border_shape, is_missed};
use super::case::Case;
use super::residual::Residual;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda};
use crate::device::kernels::border::BORDER_KINDS;
use crate::device::kernels::fold_residual::{FOLD_COLUMNS, FOLD_ROW_THREADS, FOLD_TAPS};
use crate::device::kernels::pixels::THREADS;
use crate::device::kernels::{FOLD_RESIDUAL_BACKWARD, FOLD_RESIDUAL_FORWARD};
use crate::graph::{Graph, Region, ValueId};
use crate::tensor::{Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// The 3x3 kernel's taps, and the 1x1 kernel.
const MATRICES: usize = FOLD_TAPS + 1;

/// Inputs: weight and bias of the 3x3 convolution, weight and bias of the 1x1 convolution, and of each input channel `scale`,
/// `shift`, and the mean of `x`. The mean has no gradient: it says where to make up for what rounding changes in the folded
/// weights. Outputs: what [`Residual`] reads behind `x`: the same four, folded, and what is added at the border.
#[derive(Debug)]
pub struct FoldResidual;

impl Op for FoldResidual {
    fn name(&self) -> &'static str {
        "fold_residual"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (scale, bias) = (inputs[4], inputs[1]);
        let op = Residual::new(bias.channels.count(), false);
        let vectors = inputs[4..].iter().all(|&shape| *shape == Shape::vector(scale.channels.clone()));
        if !vectors || !inputs[..4].iter().copied().eq(&op.parameter_shapes(&scale.channels)) {
            let message = format!("{scale} cannot be folded into weights of {} and {}", inputs[0], inputs[2]);
            return Err(Error::shape("fold_residual", message));
        }
        let border = border_shape(bias.channels.clone());
        Ok(inputs[..4].iter().map(|&shape| shape.clone()).chain([border]).collect())
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let folded = [0, 1, 2, 3, 4].map(|index| context.of(index));
        let others = [0, 2, 4, 5].map(|index| context.inputs[index]);
        let found = graph.apply(FoldResidualGradient, &[&folded[..], &others].concat())?;
        let [weight, shortcut, scale, shift] = [0, 1, 2, 3].map(|index| Some(found[index]));
        // The biases only had something added.
        Ok(vec![weight, Some(folded[1]), shortcut, Some(folded[3]), scale, shift, None])
    }
}

/// Inputs: the gradients of [`FoldResidual`]'s outputs, the weights of the 3x3 and of the 1x1 convolution, `scale`, `shift`.
/// Outputs: the gradients of the last four.
#[derive(Debug)]
pub struct FoldResidualGradient;

impl Op for FoldResidualGradient {
    fn name(&self) -> &'static str {
        "fold_residual_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(inputs[5..].iter().map(|&shape| shape.clone().stored_in(Storage::Full)).collect())
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for FoldResidual {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        MATRICES * inputs[1].channels.stored()
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let [main, bias, shortcut, shortcut_bias, scale, shift, mean] =
            [0, 1, 2, 3, 4, 5, 6].map(|index| call.input(index));
        let reduced = main.shape().storage == Storage::Reduced;
        let [main, bias, shortcut, shortcut_bias, scale, shift, mean] =
            [main, bias, shortcut, shortcut_bias, scale, shift, mean].map(|input| input.dense());
        let [folded, folded_bias, folded_shortcut, folded_shortcut_bias, border] =
            [0, 1, 2, 3, 4].map(|index| call.output(index).into_dense());
        let (outputs, matrix) = (bias.len(), shortcut.len());
        let constants = &mut call.workspace()[..MATRICES * outputs];
        let weights = main.par_chunks_exact(matrix).chain(shortcut.par_chunks_exact(matrix));
        let targets = folded.par_chunks_exact_mut(matrix).chain(folded_shortcut.par_chunks_exact_mut(matrix));
        weights.zip(targets).zip(constants.par_chunks_exact_mut(outputs)).for_each(|((weights, folded), sums)| {
            sums.fill(T::ZERO);
            let rows = weights.chunks_exact(outputs).zip(folded.chunks_exact_mut(outputs));
            for ((weights, folded), ((&scale, &shift), &mean)) in rows.zip(scale.iter().zip(shift).zip(mean)) {
                folded.iter_mut().zip(weights).for_each(|(folded, &weight)| *folded = weight * scale);
                if reduced {
                    cpu.round(folded, false);
                }
                for ((sum, &weight), &folded) in sums.iter_mut().zip(weights).zip(&*folded) {
                    *sum += weight * shift + mean * (weight * scale - folded);
                }
            }
        });
        let of = |tap: usize, k: usize| constants[tap * outputs + k];
        for k in 0..outputs {
            folded_bias[k] = (0..FOLD_TAPS).fold(bias[k], |sum, tap| sum + of(tap, k));
            folded_shortcut_bias[k] = shortcut_bias[k] + of(FOLD_TAPS, k);
            for kind in 0..BORDER_KINDS {
                let missed = (0..FOLD_TAPS).filter(|&tap| is_missed(kind, tap));
                border[kind * outputs + k] = missed.fold(T::ZERO, |sum, tap| sum - of(tap, k));
            }
        }
    }
}

/// The sum of products, in lanes that the compiler makes vectors of.
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    for (a, b) in a.chunks(lanes.len()).zip(b.chunks(lanes.len())) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (&a, &b))| *lane += a * b);
    }
    lanes.into_iter().fold(T::ZERO, |sum, lane| sum + lane)
}

impl<T: Real> OnCpu<T> for FoldResidualGradient {
    /// Each matrix's constants, and its sums for scale and shift.
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        MATRICES * (inputs[1].channels.stored() + 2 * inputs[7].channels.stored())
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let [dfolded, dbias, dfolded_shortcut, dshortcut_bias, dborder, main, shortcut, scale, shift] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|index| call.input(index).dense());
        let [dmain, dshortcut, dscale, dshift] = [0, 1, 2, 3].map(|index| call.output(index).into_dense());
        let (inputs, outputs, matrix) = (scale.len(), dbias.len(), shortcut.len());
        let workspace = &mut call.workspace()[..MATRICES * (outputs + 2 * inputs)];
        let weights = main.par_chunks_exact(matrix).chain(shortcut.par_chunks_exact(matrix));
        let gradients = dfolded.par_chunks_exact(matrix).chain(dfolded_shortcut.par_chunks_exact(matrix));
        let targets = dmain.par_chunks_exact_mut(matrix).chain(dshortcut.par_chunks_exact_mut(matrix));
        let matrices = weights.zip(gradients).zip(targets).zip(workspace.par_chunks_exact_mut(outputs + 2 * inputs));
        matrices.enumerate().for_each(|(tap, (((weights, gradients), targets), workspace))| {
            let (constants, sums) = workspace.split_at_mut(outputs);
            constants.copy_from_slice(if tap < FOLD_TAPS { dbias } else { dshortcut_bias });
            for kind in (0..BORDER_KINDS).filter(|&kind| tap < FOLD_TAPS && is_missed(kind, tap)) {
                let missed = &dborder[kind * outputs..][..outputs];
                constants.iter_mut().zip(missed).for_each(|(constant, &missed)| *constant = *constant - missed);
            }
            let rows = weights.chunks_exact(outputs).zip(gradients.chunks_exact(outputs));
            let rows = rows.zip(targets.chunks_exact_mut(outputs)).zip(sums.chunks_exact_mut(2));
            for (c, (((weights, gradients), targets), sums)) in rows.enumerate() {
                let terms = gradients.iter().zip(&*constants);
                targets.iter_mut().zip(terms).for_each(|(target, (&gradient, &constant))| {
                    *target = scale[c] * gradient + shift[c] * constant;
                });
                (sums[0], sums[1]) = (dot(weights, gradients), dot(weights, constants));
            }
        });
        let sums = |c: usize, index: usize| {
            let all = workspace.chunks_exact(outputs + 2 * inputs).map(|matrix| matrix[outputs + 2 * c + index]);
            all.fold(T::ZERO, |sum, value| sum + value)
        };
        for c in 0..inputs {
            (dscale[c], dshift[c]) = (sums(c, 0), sums(c, 1));
        }
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for FoldResidual {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let outputs = [0, 1, 2, 3, 4].map(|index| launcher.output(index));
        let inputs = [0, 1, 2, 3, 4, 5, 6].map(|index| launcher.input(index));
        let (rows, columns) = (inputs[4].channels(), inputs[1].channels());
        launcher
            .kernel(FOLD_RESIDUAL_FORWARD)
            .pointers(outputs.iter().chain(&inputs).map(|operand| operand.pointer))
            .sizes([rows, columns])
            .launch(Grid {
                blocks: [columns.div_ceil(FOLD_COLUMNS), 1, 1],
                threads: [FOLD_COLUMNS, THREADS / FOLD_COLUMNS, 1],
            })
    }
}

impl OnCuda for FoldResidualGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let outputs = [0, 1, 2, 3].map(|index| launcher.output(index));
        let inputs = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|index| launcher.input(index));
        let (rows, columns) = (inputs[7].channels(), inputs[1].channels());
        launcher
            .kernel(FOLD_RESIDUAL_BACKWARD)
            .pointers(outputs.iter().chain(&inputs).map(|operand| operand.pointer))
            .sizes([rows, columns])
            .launch(Grid::new([rows, 1, 1], FOLD_ROW_THREADS))
    }
}

// ------------------------------------------------------------------ cases

/// A block of an image, folded. (Of convolutions alone: at a ReLU what rounding changes in the folded weights would decide which
/// pixels have a gradient.)
fn case(size: [usize; 2], input: usize, output: usize) -> Case {
    let op = Residual::new(output, false);
    let x = Shape::image(2, size[0], size[1], input);
    let vector = Shape::vector(x.channels.clone());
    let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &[vector.clone(), vector]].concat();
    let case = Case::new("fold_residual", inputs, move |graph, inputs| {
        let [x, scale, shift] = [0, 5, 6].map(|index| inputs[index]);
        let folded = graph.apply(FoldResidual, &[&inputs[1..5], &[scale, shift, shift]].concat())?;
        let main = graph.apply_one(op.main.clone(), &[x, folded[0], folded[1]])?;
        let shortcut = graph.apply_one(op.shortcut.clone(), &[x, folded[2], folded[3]])?;
        Ok(vec![main, shortcut, folded[4]])
    });
    case.rows(1, x.channels.clone()).rows(3, x.channels)
}

/// A block behind another one and its batch norm, whose gradients are written, with the masks of its two ReLUs, in one pass: by
/// the 3x3 convolution, as the 1x1 one has an input of its own.
fn behind_batch_norm(input: usize, hidden: usize, output: usize) -> Case {
    let (first, second) = (Residual::new(hidden, true), Residual::new(output, false));
    let x = Shape::image(3, 5, 4, input);
    let sum = x.with_channels(first.main.out.clone());
    let vector = Shape::vector(sum.channels.clone());
    let (of_first, of_second) = (first.parameter_shapes(&x.channels), second.parameter_shapes(&sum.channels));
    let norm = [vector.clone(), vector.clone()];
    let inputs = [std::slice::from_ref(&x), &of_first, &norm, &of_second, std::slice::from_ref(&sum)].concat();
    let case = Case::new("fold_residual", inputs, move |graph, inputs| {
        let [mean, variance] =
            [0, vector.elements()].map(|start| graph.state(vector.clone(), Region::Statistics, start));
        let momentum = graph.input(Shape::flat(1));
        let sum = graph.apply(first.clone(), &inputs[..5])?[0];
        let norm = graph.apply(BatchNormScale::default(), &[sum, inputs[5], inputs[6], mean, variance, momentum])?;
        let folded = graph.apply(FoldResidual, &[&inputs[7..11], &norm[..3]].concat())?;
        let shortcut = graph.apply_one(second.shortcut.clone(), &[inputs[11], folded[2], folded[3]])?;
        let main = graph.apply_one(second.main.clone(), &[sum, folded[0], folded[1]])?;
        Ok(vec![main, shortcut, folded[4]])
    });
    let case = case.rows(1, x.channels.clone()).rows(3, x.channels);
    case.rows(7, sum.channels.clone()).rows(9, sum.channels)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (size, input, output) in [([2, 2], 3, 1), ([5, 4], 8, 17), ([3, 2], 33, 9)] {
        cases.push(case(size, input, output));
    }
    for (input, hidden, output) in [(3, 4, 3), (8, 16, 3)] {
        cases.push(behind_batch_norm(input, hidden, output));
    }
    cases
}
