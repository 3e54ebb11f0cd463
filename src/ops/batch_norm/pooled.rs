//! Batch norm with the maximum of each window of 2x2 pixels of its result beside it: an encoder level's end in one pass,
//! and its gradient in two.

use super::cpu::{Slopes, add_pixel, mask};
use super::cuda::{chunk_elements, launch_parameters};
use super::{BatchNorm, BatchNormInference, BatchNormScale, channel_vectors, running};
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Output, Real};
use crate::device::cuda::{Chunks, Launcher, OnCuda, Operand, PixelGrid};
use crate::device::kernels::{
    BATCH_NORM_BACKWARD_POOLED, BATCH_NORM_BACKWARD_POOLED_ADDED, BATCH_NORM_BACKWARD_POOLED_CHUNKS,
    BATCH_NORM_FORWARD_POOLED, BATCH_NORM_INFERENCE_POOLED,
};
use crate::graph::ValueId;
use crate::ops::add::Add;
use crate::ops::case::Case;
use crate::ops::relu::Relu;
use crate::ops::{Op, Rewritten};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The shape of the maxima.
///
/// # Errors
/// If windows do not cover the image.
pub(super) fn halved(x: &Shape) -> Result<Shape> {
    let [depth, height, width] = x.spatial;
    if height % 2 + width % 2 > 0 {
        return Err(Error::shape("batch_norm", format!("{x} is not whole windows of 2 x 2 pixels: use even sizes")));
    }
    Ok(Shape { spatial: [depth, height / 2, width / 2], ..x.clone() })
}

/// The gradient of [`BatchNorm`], or of [`BatchNormScale`], whose maxima have one. It goes to each
/// window's first maximum, beside what `dout` is.
///
/// Inputs: `dpooled`, `x`, `gamma`, mean, `1 / sqrt(variance + epsilon)`, and `dout` if there is one, or the gradients of scale
/// and shift if they have some, and what is added to `dx`, if anything is. Outputs: `dx`, `dgamma`, `dbeta`.
#[derive(Debug, Clone, Default)]
pub struct PooledGradient {
    /// As in [`BatchNormGradient`](super::BatchNormGradient).
    pub(super) masked: Range<usize>,
    pub(super) dout: bool,
    pub(super) scaled: bool,
    pub(super) add: bool,
}

impl PooledGradient {
    /// The indices of `dout`, of the two gradients of scale and shift, and of what is added.
    fn optional(&self) -> [Option<usize>; 3] {
        let added = 5 + if self.scaled { 2 } else { usize::from(self.dout) };
        [self.dout.then_some(5), self.scaled.then_some(5), self.add.then_some(added)]
    }
}

impl Op for PooledGradient {
    fn name(&self) -> &'static str {
        "batch_norm_pooled_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = channel_vectors(&inputs[1..if self.scaled { 7 } else { 5 }])?;
        let [dout, _, added] = self.optional();
        let differs = [dout, added].into_iter().flatten().any(|index| inputs[index] != inputs[1]);
        if *inputs[0] != halved(inputs[1])? || differs {
            return Err(Error::shape("batch_norm", format!("{} has no maxima of {}", inputs[1], inputs[0])));
        }
        Ok(vec![inputs[1].clone(), vector.clone(), vector])
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        self.masked_channels(inputs, mask, 0..usize::MAX)
    }

    fn masked_channels(&self, inputs: &[ValueId], mask: ValueId, channels: Range<usize>) -> Option<Rewritten> {
        let possible = inputs[1] == mask && self.masked.is_empty();
        possible.then(|| (Arc::new(PooledGradient { masked: channels, ..self.clone() }) as _, inputs.to_vec()))
    }

    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let possible = !self.dout && !self.add && self.masked.is_empty();
        let op = possible.then(|| PooledGradient { add: true, ..self.clone() })?;
        Some((Arc::new(op), [inputs, &[added]].concat()))
    }
}

// ------------------------------------------------------------------ CPU

/// Windows whose sums are taken together; chunks are added in order.
const CHUNK_WINDOWS: usize = 128;

/// The positions of a window's pixels, row by row, in images of this width.
fn window_positions(window: usize, width: usize) -> [usize; 4] {
    let first = window / (width / 2) * 2 * width + window % (width / 2) * 2;
    [first, first + 1, first + width, first + width + 1]
}

/// Calls `write(position, pixel)` for all pixels of `out`; and writes the maximum of each channel in each window, if they are
/// wanted, while the window's rows are in the cache.
pub(super) fn write_with_maxima<T: Real>(
    out: Output<T>,
    maxima: Option<Output<T>>,
    write: impl Fn(usize, &mut [T]) + Sync,
) {
    let Some(maxima) = maxima else { return out.for_each_pixel(write) };
    let width = out.shape().spatial[2];
    out.blocks(2 * width).zip(maxima.blocks(width / 2)).for_each(|(mut out, mut maxima)| {
        out.positions().for_each(|position| write(position, out.pixel(position)));
        for window in maxima.positions() {
            let maximum = maxima.pixel(window);
            let [first, others @ ..] = window_positions(window, width);
            maximum.copy_from_slice(out.pixel(first));
            others.into_iter().for_each(|position| keep_larger(maximum, out.pixel(position)));
        }
    });
}

/// Writes the maximum of each channel in each window of what `normalise` makes of `x`.
pub(super) fn write_maxima<T: Real>(
    cpu: &Cpu<T>,
    x: Input<T>,
    maxima: Output<T>,
    normalise: impl Fn(&[T], &mut [T]) + Sync,
) {
    let (width, channels) = (x.shape().spatial[2], x.channels());
    maxima.blocks(width / 2).for_each(|mut maxima| {
        cpu.with_scratch(channels, |scratch| {
            for window in maxima.positions() {
                let maximum = maxima.pixel(window);
                let [first, others @ ..] = window_positions(window, width);
                normalise(x.pixel(first), maximum);
                for position in others {
                    normalise(x.pixel(position), scratch);
                    keep_larger(maximum, scratch);
                }
            }
        });
    });
}

fn keep_larger<T: Real>(maximum: &mut [T], values: &[T]) {
    let pairs = maximum.iter_mut().zip(values);
    pairs.for_each(|(maximum, &value)| *maximum = if value > *maximum { value } else { *maximum });
}

/// What a window's gradient is made of.
#[derive(Clone, Copy)]
struct Given<'a, T> {
    dpooled: Input<'a, T>,
    dout: Option<Input<'a, T>>,
    x: Input<'a, T>,
    gamma: &'a [T],
}

impl<T: Real> Given<'_, T> {
    /// Calls `take(position, gradient)` for the pixels of a window, the gradient being that of the normalised pixel's
    /// channels. `scratch` has two elements for each channel.
    fn for_each_pixel(&self, window: usize, scratch: &mut [T], mut take: impl FnMut(usize, &[T])) {
        let (gradient, first) = scratch.split_at_mut(self.gamma.len());
        let positions = window_positions(window, self.x.shape().spatial[2]);
        let pixels = positions.map(|position| self.x.pixel(position));
        for (channel, (first, &gamma)) in first.iter_mut().zip(self.gamma).enumerate() {
            let mut best = 0;
            for index in 1..4 {
                // Times gamma, x is in the order of the results.
                best = if gamma * pixels[index][channel] > gamma * pixels[best][channel] { index } else { best };
            }
            *first = T::from_f64(best as f64);
        }
        let dpooled = self.dpooled.pixel(window);
        for (index, position) in positions.into_iter().enumerate() {
            match self.dout {
                Some(dout) => gradient.copy_from_slice(dout.pixel(position)),
                None => gradient.fill(T::ZERO),
            }
            let index = T::from_f64(index as f64);
            for (gradient, (&first, &dpooled)) in gradient.iter_mut().zip(first.iter().zip(dpooled)) {
                *gradient += if first == index { dpooled } else { T::ZERO };
            }
            take(position, gradient);
        }
    }
}

impl<T: Real> OnCpu<T> for PooledGradient {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[0].positions().div_ceil(CHUNK_WINDOWS) * inputs[0].channels.stored()
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (dpooled, x, gamma) = (call.input(0), call.input(1), call.input(2).dense());
        let (mean, inverse) = (call.input(3).dense(), call.input(4).dense());
        let [dout, scaled, added] = self.optional();
        let (dout, added) = (dout.map(|index| call.input(index)), added.map(|index| call.input(index)));
        let scaled = scaled.map(|first| [first, first + 1].map(|index| call.input(index).dense()));
        let given = Given { dpooled, dout, x, gamma };
        let (channels, windows) = (x.channels(), dpooled.shape().positions());
        let workspace = call.workspace();
        workspace.par_chunks_mut(2 * channels).enumerate().for_each(|(chunk, sums)| {
            sums.fill(T::ZERO);
            let (dbeta, dgamma) = sums.split_at_mut(channels);
            cpu.with_scratch(2 * channels, |scratch| {
                for window in chunk * CHUNK_WINDOWS..((chunk + 1) * CHUNK_WINDOWS).min(windows) {
                    given.for_each_pixel(window, scratch, |position, gradient| {
                        add_pixel([&mut *dbeta, &mut *dgamma], gradient, x.pixel(position), mean);
                    });
                }
            });
        });
        let [dgamma, dbeta] = [1, 2].map(|index| call.output(index).into_dense());
        let slopes = Slopes::new(workspace, [gamma, mean, inverse], [dgamma, dbeta], scaled, x.shape().positions());
        let width = x.shape().spatial[2];
        let masked = self.masked.start..self.masked.end.min(channels);
        call.output(0).blocks(2 * width).for_each(|mut dx| {
            let first = dx.positions().start / 4;
            cpu.with_scratch(2 * channels, |scratch| {
                for window in first..first + width / 2 {
                    given.for_each_pixel(window, scratch, |position, gradient| {
                        let (dx, x) = (dx.pixel(position), x.pixel(position));
                        slopes.apply(gradient, x, dx);
                        if let Some(added) = added {
                            dx.iter_mut().zip(added.pixel(position)).for_each(|(dx, &added)| *dx += added);
                        }
                        mask(&mut dx[masked.clone()], &x[masked.clone()]);
                    });
                }
            });
        });
    }
}

// ------------------------------------------------------------------ CUDA

/// Normalises `x` to `out`, if that is wanted, and writes the maxima; `vectors` are gamma, beta, mean, and
/// `1 / sqrt(variance + epsilon)`; or, if there is an epsilon, the variance.
pub(super) fn normalise_and_pool(
    launcher: &mut Launcher,
    out: Option<Operand>,
    [maxima, x]: [Operand; 2],
    vectors: [Operand; 4],
    epsilon: Option<f32>,
) -> Result<()> {
    let (windows, channels) = (maxima.positions(), x.channels());
    let grid = PixelGrid::new(channels, out.iter().chain([&maxima, &x]).chain(&vectors));
    let kernel = if epsilon.is_some() { BATCH_NORM_INFERENCE_POOLED } else { BATCH_NORM_FORWARD_POOLED };
    let (out, out_stride) = out.map_or((maxima.pointer.unused(maxima.element()), 0), |out| (out.pointer, out.stride));
    launcher
        .kernel(kernel)
        .pointers([out, maxima.pointer, x.pointer])
        .pointers(vectors.map(|operand| operand.pointer))
        .sizes([windows, channels, out_stride, maxima.stride, x.stride])
        .sizes([grid.width, x.shape.spatial[2]])
        .floats(epsilon)
        .launch(grid.over(windows, 1))
}

/// Chunks of the sums, at most: their kernel has registers for two blocks to a multiprocessor, and a second round of blocks
/// would be mostly empty.
const GRADIENT_CHUNKS: usize = 256;

impl OnCuda for PooledGradient {
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[0])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dpooled, x, gamma, mean, inverse] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let [dout, scaled, added] = self.optional();
        let [dout, added] = [dout, added].map(|index| index.map(|index| launcher.input(index)));
        let scaled = scaled.map(|first| [first, first + 1].map(|index| launcher.input(index)));
        let ([dx, dgamma, dbeta], partial) = ([0, 1, 2].map(|index| launcher.output(index)), launcher.workspace());
        let (windows, channels, [_, _, width]) = (dpooled.positions(), x.channels(), x.shape.spatial);
        let operands = [dx, dpooled, x, gamma, dgamma, dbeta, mean, inverse];
        let grid = PixelGrid::new(channels, operands.iter().chain(&dout).chain(&added));
        // Without a tensor the kernels get a pointer that they do not read, and a stride of 0.
        let none = (x.pointer.unused(x.element()), 0);
        let [dout, added] = [dout, added].map(|tensor| tensor.map(|tensor| (tensor.pointer, tensor.stride)));
        let (dout, dout_stride) = dout.unwrap_or(none);
        let chunks = grid.chunks_up_to(Chunks::most(windows, 1).min(GRADIENT_CHUNKS), windows);
        launcher
            .kernel(BATCH_NORM_BACKWARD_POOLED_CHUNKS)
            .pointers([partial, dpooled.pointer, dout, x.pointer, gamma.pointer, mean.pointer])
            .sizes([windows, channels, dpooled.stride, dout_stride, x.stride, chunks.pixels, grid.width, width])
            .launch(grid.with_blocks(chunks.count, 1))?;
        launch_parameters(launcher, [dgamma, dbeta], [mean, inverse], scaled, chunks)?;
        let kernel = if added.is_some() { BATCH_NORM_BACKWARD_POOLED_ADDED } else { BATCH_NORM_BACKWARD_POOLED };
        let (dout, dout_stride) = added.unwrap_or((dout, dout_stride));
        launcher
            .kernel(kernel)
            .pointers([dx.pointer, dpooled.pointer, dout, x.pointer])
            .pointers([gamma, dgamma, dbeta, mean, inverse].map(|operand| operand.pointer))
            .sizes([windows, channels, dx.stride, dpooled.stride, dout_stride, x.stride, grid.width, width])
            .sizes([self.masked.start, self.masked.end.min(channels)])
            .launch(grid.over(windows, 1))
    }
}

// ------------------------------------------------------------------ cases

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, height, width, channels) in [(1, 2, 4, 1), (2, 4, 2, 3), (3, 6, 10, 33)] {
        let x = Shape::image(batch, height, width, channels);
        let vector = Shape::vector(x.channels.clone());
        // The maxima alone, and both outputs.
        for whole in [false, true] {
            let (inputs, shape) = ([x.clone(), vector.clone(), vector.clone()], x.clone());
            let case = Case::new("batch_norm", inputs, move |graph, inputs| {
                let [mean, variance] = running(graph, &shape);
                let momentum = graph.input(Shape::flat(1));
                let operands = [inputs[0], inputs[1], inputs[2], mean, variance, momentum];
                let outputs = graph.apply(BatchNorm { pooled: true }, &operands)?;
                Ok([outputs[5]].into_iter().chain(whole.then_some(outputs[0])).collect())
            });
            cases.push(case.distinct());
        }
        // The maxima beside a scale and a shift, of a tensor that a layer reads, too, or none does.
        for read in [false, true] {
            let (inputs, shape) = ([x.clone(), vector.clone(), vector.clone(), x.clone()], x.clone());
            let case = Case::new("batch_norm_scale", inputs, move |graph, inputs| {
                let [mean, variance] = running(graph, &shape);
                let momentum = graph.input(Shape::flat(1));
                let operands = [inputs[0], inputs[1], inputs[2], mean, variance, momentum];
                let norm = graph.apply(BatchNormScale { pooled: true }, &operands)?;
                let sum = graph.apply_one(Add::default(), &[if read { inputs[0] } else { inputs[3] }, inputs[3]])?;
                Ok(vec![norm[6], norm[0], norm[1], sum])
            });
            cases.push(case.distinct());
        }
        let inputs = [x.clone(), vector.clone(), vector.clone(), vector.clone(), vector];
        let inference = Case::new("batch_norm_inference", inputs, |graph, inputs| {
            graph.apply(BatchNormInference { pooled: true }, inputs)
        });
        cases.push(inference.fraction(4).forward_only());
    }
    // Of a concatenation, one part of which ends in a ReLU.
    let x = Shape::image(2, 4, 6, 9);
    let both = x.with_channels(Channels::concat([&x.channels, &x.channels]));
    let vectors = Shape::vector(both.channels.clone());
    let inputs = [x.clone(), x, vectors.clone(), vectors];
    let case = Case::new("batch_norm", inputs, move |graph, inputs| {
        let [mean, variance] = running(graph, &both);
        let momentum = graph.input(Shape::flat(1));
        let part = graph.apply_one(Relu, &inputs[1..2])?;
        let whole = graph.concat(&[inputs[0], part])?;
        let operands = [whole, inputs[2], inputs[3], mean, variance, momentum];
        let outputs = graph.apply(BatchNorm { pooled: true }, &operands)?;
        Ok(vec![outputs[0], outputs[5]])
    });
    cases.push(case.distinct());
    cases
}
