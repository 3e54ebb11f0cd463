//! Batch normalisation of each channel over batch and pixels.
//!
//! Training normalises by the batch's mean and biased variance and moves the running statistics towards the
//! batch's mean and unbiased variance; inference uses the running ones. With momentum 1/k in the k-th batch
//! of a pass, the running statistics are the pass's plain mean.

use super::add::Add;
use super::case::Case;
use super::relu::Relu;
use super::{Gradient, Op, Rewritten};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Chunks, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    BATCH_NORM_BACKWARD, BATCH_NORM_BACKWARD_BESIDE, BATCH_NORM_BACKWARD_CHUNKS, BATCH_NORM_BACKWARD_PARAMETERS,
    BATCH_NORM_FORWARD, BATCH_NORM_FORWARD_CHUNKS, BATCH_NORM_FORWARD_STATISTICS, BATCH_NORM_INFERENCE,
};
use crate::graph::{Graph, Region, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Added to the variance.
pub const EPSILON: f64 = 1e-5;

/// `out = (x - mean) / sqrt(variance + epsilon) * gamma + beta` with the batch's statistics.
///
/// Inputs: `x`, `gamma`, `beta`, running mean, running variance (both updated), momentum (a scalar).
/// Outputs: `out`, the batch's mean, `1 / sqrt(variance + epsilon)`, and the updated running statistics.
#[derive(Debug)]
pub struct BatchNorm;

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = channel_vectors(&inputs[..5])?;
        Ok(vec![inputs[0].clone(), vector.clone(), vector.clone(), vector.clone(), vector])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(3, 3), (4, 4)]
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, gamma, mean, inverse_deviation) =
            (context.inputs[0], context.inputs[1], context.outputs[1], context.outputs[2]);
        let op = BatchNormGradient { masked: 0..0, beside: false };
        let gradients = graph.apply(op, &[context.of(0), x, gamma, mean, inverse_deviation])?;
        Ok(gradients.into_iter().map(Some).chain([None; 3]).collect())
    }
}

/// Inputs: `dout`, `x`, `gamma`, mean, `1 / sqrt(variance + epsilon)`, and a mask if `beside`. Outputs: `dx`, `dgamma`,
/// `dbeta`, and if `beside`, `dx` again, but zero wherever the mask is not above 0.
#[derive(Debug)]
pub struct BatchNormGradient {
    /// The stored channels, perhaps more than there are, in which `dx` is zero where `x`, which ends in a ReLU, is.
    masked: Range<usize>,
    beside: bool,
}

impl Op for BatchNormGradient {
    fn name(&self) -> &'static str {
        "batch_norm_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = channel_vectors(&inputs[1..5])?;
        let beside = self.beside.then(|| inputs[1].clone());
        Ok([inputs[1].clone(), vector.clone(), vector].into_iter().chain(beside).collect())
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        self.masked_channels(inputs, mask, 0..usize::MAX)
    }

    fn masked_channels(&self, inputs: &[ValueId], mask: ValueId, channels: Range<usize>) -> Option<Rewritten> {
        let possible = inputs[1] == mask && self.masked.is_empty() && !self.beside;
        let op = possible.then_some(BatchNormGradient { masked: channels, beside: false })?;
        Some((Arc::new(op), inputs.to_vec()))
    }

    fn masked_beside(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        let op = (!self.beside).then(|| BatchNormGradient { masked: self.masked.clone(), beside: true })?;
        Some((Arc::new(op), [inputs, &[mask]].concat()))
    }
}

/// As [`BatchNorm`], with the running statistics. Inputs: `x`, `gamma`, `beta`, running mean, running variance.
#[derive(Debug)]
pub struct BatchNormInference;

impl Op for BatchNormInference {
    fn name(&self) -> &'static str {
        "batch_norm_inference"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        channel_vectors(inputs)?;
        Ok(vec![inputs[0].clone()])
    }
}

/// The shape of one value per channel, which all inputs after the first must have.
fn channel_vectors(inputs: &[&Shape]) -> Result<Shape> {
    let vector = Shape::vector(inputs[0].channels.clone());
    match inputs[1..].iter().find(|&&shape| *shape != vector) {
        Some(shape) => Err(Error::shape("batch_norm", format!("{} needs a value per channel, not {shape}", inputs[0]))),
        None => Ok(vector),
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels whose statistics are taken together, in the second-level cache; chunks are merged in order.
const CHUNK_PIXELS: usize = 512;

fn chunk(index: usize, shape: &Shape) -> Range<usize> {
    index * CHUNK_PIXELS..((index + 1) * CHUNK_PIXELS).min(shape.positions())
}

/// Two sums for each chunk and channel.
fn chunk_sums(x: &Shape) -> usize {
    2 * x.positions().div_ceil(CHUNK_PIXELS) * x.channels.stored()
}

/// The mean and the sum of squared deviations of each channel, chunk by chunk, then merged.
fn moments<T: Real>(x: Input<T>, workspace: &mut [T], mean: &mut [T], squares: &mut [T]) {
    let channels = x.channels();
    workspace.par_chunks_mut(2 * channels).enumerate().for_each(|(index, sums)| {
        let positions = chunk(index, x.shape());
        let scale = T::ONE / T::from_f64(positions.len() as f64);
        let (mean, squares) = sums.split_at_mut(channels);
        mean.fill(T::ZERO);
        squares.fill(T::ZERO);
        for position in positions.clone() {
            mean.iter_mut().zip(x.pixel(position)).for_each(|(sum, &x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum = *sum * scale);
        for position in positions {
            for ((square, &mean), &x) in squares.iter_mut().zip(&*mean).zip(x.pixel(position)) {
                *square += (x - mean) * (x - mean);
            }
        }
    });
    for channel in 0..channels {
        // Chan, Golub and LeVeque's merge of two sets' means and squared deviations.
        let (mut count, mut m, mut s) = (0.0, 0.0, 0.0);
        for (index, sums) in workspace.chunks_exact(2 * channels).enumerate() {
            let more = chunk(index, x.shape()).len() as f64;
            let delta = sums[channel].to_f64() - m;
            m += delta * more / (count + more);
            s += sums[channels + channel].to_f64() + delta * delta * count * more / (count + more);
            count += more;
        }
        (mean[channel], squares[channel]) = (T::from_f64(m), T::from_f64(s));
    }
}

impl<T: Real> OnCpu<T> for BatchNorm {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_sums(inputs[0])
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (x, gamma, beta, momentum) = (call.input(0), call.input(1), call.input(2), call.input(5).scalar());
        let (mut mean, mut inverse) = (call.output(1), call.output(2));
        let (mean, inverse) = (mean.dense(), inverse.dense());
        moments(x, call.workspace(), mean, inverse);
        let (mut running_mean, mut running_variance) = (call.output(3), call.output(4));
        let (running_mean, running_variance) = (running_mean.dense(), running_variance.dense());
        let count = x.shape().positions() as f64;
        for channel in 0..x.channels() {
            let squares = inverse[channel].to_f64();
            let towards = |running: &mut T, value: f64| {
                *running = *running + momentum * (T::from_f64(value) - *running);
            };
            towards(&mut running_mean[channel], mean[channel].to_f64());
            towards(&mut running_variance[channel], squares / (count - 1.0).max(1.0));
            inverse[channel] = T::from_f64(1.0 / (squares / count + EPSILON).sqrt());
        }
        let (mean, inverse, gamma, beta) = (&*mean, &*inverse, gamma.dense(), beta.dense());
        call.output(0).for_each_pixel(|position, out| {
            let statistics = mean.iter().zip(inverse).zip(gamma.iter().zip(beta));
            for ((out, &x), ((&mean, &inverse), (&gamma, &beta))) in
                out.iter_mut().zip(x.pixel(position)).zip(statistics)
            {
                *out = (x - mean) * (inverse * gamma) + beta;
            }
        });
    }
}

/// Zero where `mask` is not above 0.
fn mask<T: Real>(values: &mut [T], mask: &[T]) {
    values.iter_mut().zip(mask).for_each(|(value, &mask)| *value = if mask > T::ZERO { *value } else { T::ZERO });
}

impl<T: Real> OnCpu<T> for BatchNormGradient {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_sums(inputs[1])
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x, gamma) = (call.input(0), call.input(1), call.input(2));
        let (mean, inverse) = (call.input(3).dense(), call.input(4).dense());
        let channels = x.channels();
        let workspace = call.workspace();
        workspace.par_chunks_mut(2 * channels).enumerate().for_each(|(index, sums)| {
            sums.fill(T::ZERO);
            let (dbeta, dgamma) = sums.split_at_mut(channels);
            for position in chunk(index, x.shape()) {
                let pixels = dout.pixel(position).iter().zip(x.pixel(position)).zip(mean);
                for ((dbeta, dgamma), ((&dout, &x), &mean)) in dbeta.iter_mut().zip(dgamma.iter_mut()).zip(pixels) {
                    *dbeta += dout;
                    *dgamma += dout * (x - mean);
                }
            }
        });
        let (mut dgamma, mut dbeta) = (call.output(1), call.output(2));
        let (dgamma, dbeta) = (dgamma.dense(), dbeta.dense());
        for channel in 0..channels {
            let sum = |offset: usize| {
                workspace.chunks_exact(2 * channels).map(|sums| sums[offset + channel].to_f64()).sum::<f64>()
            };
            dbeta[channel] = T::from_f64(sum(0));
            dgamma[channel] = T::from_f64(sum(channels) * inverse[channel].to_f64());
        }
        // dx = gamma / deviation * (dout - mean(dout) - x_hat mean(dout x_hat))
        //    = factor * dout + slope * (x - mean) + offset
        let count = T::from_f64(x.shape().positions() as f64);
        let (slopes, offsets) = workspace[..2 * channels].split_at_mut(channels);
        for channel in 0..channels {
            let factor = gamma.dense()[channel] * inverse[channel];
            slopes[channel] = -factor * inverse[channel] * dgamma[channel] / count;
            offsets[channel] = -factor * dbeta[channel] / count;
        }
        let (slopes, offsets, gamma) = (&*slopes, &*offsets, gamma.dense());
        let masked = self.masked.start..self.masked.end.min(channels);
        let differentiate = |position, dx: &mut [T]| {
            let pixels = dout.pixel(position).iter().zip(x.pixel(position));
            let statistics = mean.iter().zip(inverse).zip(gamma);
            let terms = slopes.iter().zip(offsets);
            for (((dx, (&dout, &x)), ((&mean, &inverse), &gamma)), (&slope, &offset)) in
                dx.iter_mut().zip(pixels).zip(statistics).zip(terms)
            {
                *dx = gamma * inverse * dout + slope * (x - mean) + offset;
            }
            mask(&mut dx[masked.clone()], &x.pixel(position)[masked.clone()]);
        };
        call.output(0).for_each_pixel(differentiate);
        if self.beside {
            let other = call.input(5);
            call.output(3).for_each_pixel(|position, dx| {
                differentiate(position, dx);
                mask(dx, other.pixel(position));
            });
        }
    }
}

impl<T: Real> OnCpu<T> for BatchNormInference {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[0].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|index| call.input(index).dense());
        let (scale, shift) = call.workspace().split_at_mut(x.channels());
        for channel in 0..x.channels() {
            scale[channel] = gamma[channel] / (variance[channel] + T::from_f64(EPSILON)).sqrt();
            shift[channel] = beta[channel] - mean[channel] * scale[channel];
        }
        let (scale, shift) = (&*scale, &*shift);
        call.output(0).for_each_pixel(|position, out| {
            for ((out, &x), (&scale, &shift)) in out.iter_mut().zip(x.pixel(position)).zip(scale.iter().zip(shift)) {
                *out = x * scale + shift;
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

/// Two numbers for each chunk and channel.
fn chunk_elements(x: &Shape) -> usize {
    Chunks::most(x.positions(), 1) * 2 * x.channels.stored()
}

/// Chunks of the gradient's sums, at most: their kernel has registers for three blocks to a multiprocessor, and a second
/// round of blocks would be mostly empty.
const GRADIENT_CHUNKS: usize = 384;

impl OnCuda for BatchNorm {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[0])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [x, gamma, beta] = [0, 1, 2].map(|index| launcher.input(index));
        let [out, mean, inverse, running_mean, running_variance] = [0, 1, 2, 3, 4].map(|index| launcher.output(index));
        let (momentum, partial) = (launcher.input(5), launcher.workspace());
        let (pixels, channels) = (x.positions(), x.channels());
        let grid = PixelGrid::new(channels, [&x, &out, &gamma, &beta, &mean, &inverse]);
        let chunks = grid.chunks(pixels, 1);
        launcher
            .kernel(BATCH_NORM_FORWARD_CHUNKS)
            .pointers([partial, x.pointer])
            .sizes([pixels, channels, x.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, 1))?;
        launcher
            .kernel(BATCH_NORM_FORWARD_STATISTICS)
            .pointers([mean, inverse, running_mean, running_variance].map(|operand| operand.pointer))
            .pointers([partial, momentum.pointer])
            .sizes([pixels, channels, chunks.pixels, chunks.count])
            .floats([EPSILON as f32])
            .launch(PixelGrid::merging(channels).with_blocks(1, 1))?;
        launcher
            .kernel(BATCH_NORM_FORWARD)
            .pointers([out, x, gamma, beta, mean, inverse].map(|operand| operand.pointer))
            .sizes([pixels, channels, out.stride, x.stride, grid.width])
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for BatchNormGradient {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[1])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dout, x, gamma, mean, inverse] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let ([dx, dgamma, dbeta], partial) = ([0, 1, 2].map(|index| launcher.output(index)), launcher.workspace());
        let (pixels, channels) = (x.positions(), x.channels());
        let grid = PixelGrid::new(channels, [&dx, &dgamma, &dbeta, &dout, &x, &gamma, &mean, &inverse]);
        let chunks = grid.chunks_up_to(Chunks::most(pixels, 1).min(GRADIENT_CHUNKS), pixels);
        launcher
            .kernel(BATCH_NORM_BACKWARD_CHUNKS)
            .pointers([partial, dout.pointer, x.pointer, mean.pointer])
            .sizes([pixels, channels, dout.stride, x.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, 1))?;
        launcher
            .kernel(BATCH_NORM_BACKWARD_PARAMETERS)
            .pointers([dgamma.pointer, dbeta.pointer, partial, inverse.pointer])
            .sizes([channels, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, 1))?;
        let vectors = [gamma, dgamma, dbeta, mean, inverse];
        let masked = [self.masked.start, self.masked.end.min(channels)];
        if self.beside {
            let (beside, mask) = (launcher.output(3), launcher.input(5));
            let operands = [dx, beside, dout, x, mask];
            return launcher
                .kernel(BATCH_NORM_BACKWARD_BESIDE)
                .pointers(operands.iter().chain(&vectors).map(|operand| operand.pointer))
                .sizes([pixels, channels].into_iter().chain(operands.map(|operand| operand.stride)).chain([grid.width]))
                .sizes(masked)
                .launch(grid.over(pixels, 1));
        }
        launcher
            .kernel(BATCH_NORM_BACKWARD)
            .pointers([dx, dout, x].iter().chain(&vectors).map(|operand| operand.pointer))
            .sizes([pixels, channels, dx.stride, dout.stride, x.stride, grid.width])
            .sizes(masked)
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for BatchNormInference {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [x, gamma, beta, mean, variance] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let out = launcher.output(0);
        let (pixels, channels) = (x.positions(), x.channels());
        let grid = PixelGrid::new(channels, [&out, &x, &gamma, &beta, &mean, &variance]);
        launcher
            .kernel(BATCH_NORM_INFERENCE)
            .pointers([out, x, gamma, beta, mean, variance].map(|operand| operand.pointer))
            .sizes([pixels, channels, out.stride, x.stride, grid.width])
            .floats([EPSILON as f32])
            .launch(grid.over(pixels, 1))
    }
}

// ------------------------------------------------------------------ cases

/// The statistics' place among a case's state: means, then variances.
fn running(graph: &mut Graph, x: &Shape) -> [ValueId; 2] {
    let vector = Shape::vector(x.channels.clone());
    [0, vector.elements()].map(|start| graph.state(vector.clone(), Region::Statistics, start))
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, height, channels) in [(1, 3, 1), (2, 3, 3), (3, 40, 33)] {
        let x = Shape::image(batch, height, 5, channels);
        let vector = Shape::vector(x.channels.clone());
        let inputs = [x.clone(), vector.clone(), vector.clone()];
        let shape = x.clone();
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &shape);
            let momentum = graph.input(Shape::flat(1));
            let outputs = graph.apply(BatchNorm, &[inputs[0], inputs[1], inputs[2], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        // Behind a ReLU, whose gradient takes no pass of its own.
        let (inputs, shape) = ([x.clone(), x.clone(), vector.clone(), vector.clone()], x.clone());
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &shape);
            let momentum = graph.input(Shape::flat(1));
            let sum = graph.apply_one(Add { relu: true }, &inputs[..2])?;
            let outputs = graph.apply(BatchNorm, &[sum, inputs[2], inputs[3], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        // Of a residual block, whose two ReLUs' gradients are written in one pass.
        let (inputs, shape) = ([x.clone(), x.clone(), vector.clone(), vector.clone()], x.clone());
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &shape);
            let momentum = graph.input(Shape::flat(1));
            let main = graph.apply_one(Relu, &inputs[..1])?;
            let sum = graph.apply_one(Add { relu: true }, &[main, inputs[1]])?;
            let outputs = graph.apply(BatchNorm, &[sum, inputs[2], inputs[3], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        // Of a concatenation, one part of which ends in a ReLU.
        let both = x.with_channels(Channels::concat([&x.channels, &x.channels]));
        let vectors = Shape::vector(both.channels.clone());
        let inputs = [x.clone(), x.clone(), vectors.clone(), vectors];
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &both);
            let momentum = graph.input(Shape::flat(1));
            let part = graph.apply_one(Relu, &inputs[1..2])?;
            let whole = graph.concat(&[inputs[0], part])?;
            let outputs = graph.apply(BatchNorm, &[whole, inputs[2], inputs[3], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        let inputs = [x, vector.clone(), vector.clone(), vector.clone(), vector];
        cases.push(
            Case::new("batch_norm_inference", inputs, |graph, inputs| graph.apply(BatchNormInference, inputs))
                .fraction(4)
                .forward_only(),
        );
    }
    cases
}
