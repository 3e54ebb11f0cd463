//! Soft Dice loss, pooled over the batch (section 3.1), and each sample's own beside it.
//!
//! The pooled loss trains: `1 - (2 S(p t) + 1) / (S(p) + S(t) + 1)`, S summing over the pixels of the samples
//! whose weight is 1. A sample's own loss, of the same formula, ranks masks for adaptive denoising learning.

use super::case::Case;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    DICE_LOSS_BACKWARD, DICE_LOSS_FORWARD, DICE_LOSS_FORWARD_CHUNKS, dice_loss::CHUNK_PIXELS, pixels::THREADS,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// Added above and below the fraction: the Dice of nothing with nothing is 1.
pub const SMOOTH: f64 = 1.0;

/// Inputs: prediction, target, and a weight for each sample (0 or 1).
/// Outputs: the loss, each sample's loss, and the sums of the gradient (numerator, denominator).
#[derive(Debug)]
pub struct DiceLoss;

impl Op for DiceLoss {
    fn name(&self) -> &'static str {
        "dice_loss"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        check_shapes("dice_loss", inputs)
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (target, weight) = (context.inputs[1], context.inputs[2]);
        let dprediction = graph.apply_one(DiceLossGradient, &[context.of(0), target, weight, context.outputs[2]])?;
        Ok(vec![Some(dprediction), None, None])
    }
}

/// The outputs of a loss over a batch: the loss, each sample's, and two sums.
///
/// # Errors
/// If prediction, target and weights do not belong together.
pub(super) fn check_shapes(op: &'static str, inputs: &[&Shape]) -> Result<Vec<Shape>> {
    let (prediction, target, weight) = (inputs[0], inputs[1], inputs[2]);
    let samples = Shape::flat(prediction.batch);
    if prediction.channels.count() != 1 || prediction != target || *weight != samples {
        let message = format!("prediction {prediction}, target {target} and weights {weight} do not belong together");
        return Err(Error::shape(op, message));
    }
    Ok(vec![Shape::flat(1), samples, Shape::flat(2)])
}

/// Inputs: `dloss`, target, weight, sums. Output: the prediction's gradient.
#[derive(Debug)]
pub struct DiceLossGradient;

impl Op for DiceLossGradient {
    fn name(&self) -> &'static str {
        "dice_loss_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[1].clone()])
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels that are summed together; runs are added in order.
const RUN: usize = 1024;

/// `S(p t)` and `S(p) + S(t)` of one sample.
fn sample_sums<T: Real>(prediction: Input<T>, target: Input<T>, sample: usize) -> [f64; 2] {
    let pixels = prediction.shape().pixels();
    let range = sample * pixels..(sample + 1) * pixels;
    let (prediction, target) = (&prediction.dense()[range.clone()], &target.dense()[range]);
    let mut sums = [0.0; 2];
    for (p, t) in prediction.chunks(RUN).zip(target.chunks(RUN)) {
        sums[0] += p.iter().zip(t).map(|(&p, &t)| p * t).sum::<T>().to_f64();
        sums[1] += p.iter().zip(t).map(|(&p, &t)| p + t).sum::<T>().to_f64();
    }
    sums
}

fn loss<T: Real>([both, all]: [f64; 2]) -> T {
    T::from_f64(1.0 - (2.0 * both + SMOOTH) / (all + SMOOTH))
}

impl<T: Real> OnCpu<T> for DiceLoss {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[0].batch
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (prediction, target, weight) = (call.input(0), call.input(1), call.input(2));
        let sums = call.workspace();
        sums.par_chunks_mut(2).enumerate().for_each(|(sample, sums)| {
            sums.copy_from_slice(&sample_sums(prediction, target, sample).map(T::from_f64));
        });
        let mut pooled = [0.0; 2];
        let (mut losses, mut total) = (call.output(1), call.output(2));
        for (sample, sums) in sums.chunks_exact(2).enumerate() {
            let sums = [sums[0].to_f64(), sums[1].to_f64()];
            losses.dense()[sample] = loss(sums);
            let weight = weight.dense()[sample].to_f64();
            pooled = [pooled[0] + weight * sums[0], pooled[1] + weight * sums[1]];
        }
        call.output(0).dense()[0] = loss(pooled);
        total.dense().copy_from_slice(&[2.0 * pooled[0] + SMOOTH, pooled[1] + SMOOTH].map(T::from_f64));
    }
}

impl<T: Real> OnCpu<T> for DiceLossGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dloss, target, weight) = (call.input(0).scalar(), call.input(1), call.input(2));
        let sums = call.input(3).dense();
        // d(-numerator / denominator)/dp = (numerator - 2 t denominator) / denominator^2
        let inverse = T::ONE / sums[1];
        let (constant, slope) = (dloss * sums[0] * inverse * inverse, -(dloss + dloss) * inverse);
        let pixels = target.shape().pixels();
        call.output(0).for_each_pixel(|position, dprediction| {
            let weight = weight.dense()[position / pixels];
            dprediction[0] = weight * (constant + slope * target.pixel(position)[0]);
        });
    }
}

// ------------------------------------------------------------------ CUDA

fn chunks(prediction: &Shape) -> usize {
    prediction.pixels().div_ceil(CHUNK_PIXELS)
}

impl OnCuda for DiceLoss {
    /// Two sums for each chunk.
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].batch * chunks(inputs[0]) * 2
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [prediction, target, weight] = [0, 1, 2].map(|index| launcher.input(index));
        let outputs = [0, 1, 2].map(|index| launcher.output(index).pointer);
        assert!(prediction.is_dense() && target.is_dense(), "masks lie densely");
        let (batch, chunks, sums) = (prediction.shape.batch, chunks(prediction.shape), launcher.workspace());
        launcher
            .kernel(DICE_LOSS_FORWARD_CHUNKS)
            .pointers([sums, prediction.pointer, target.pointer])
            .sizes([prediction.shape.pixels()])
            .launch(Grid::new([chunks, 1, batch], THREADS))?;
        launcher
            .kernel(DICE_LOSS_FORWARD)
            .pointers(outputs)
            .pointers([sums, weight.pointer])
            .sizes([batch, chunks])
            .floats([SMOOTH as f32])
            .launch(Grid::new([1, 1, 1], THREADS))
    }
}

impl OnCuda for DiceLossGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dprediction, target) = (launcher.output(0), launcher.input(1));
        assert!(dprediction.is_dense() && target.is_dense(), "masks lie densely");
        let inputs = [0, 1, 2, 3].map(|index| launcher.input(index).pointer);
        let pixels = target.shape.pixels();
        launcher
            .kernel(DICE_LOSS_BACKWARD)
            .pointers([dprediction.pointer])
            .pointers(inputs)
            .sizes([pixels])
            .launch(PixelGrid::single(1).over(pixels, target.shape.batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1), (2, 3), (3, 40)].into_iter().map(|(batch, height)| {
        let prediction = Shape::image(batch, height, 5, 1).with_channels(Channels::new(1));
        let inputs = [prediction.clone(), prediction, Shape::flat(batch)];
        Case::new("dice_loss", inputs, |graph, inputs| Ok(graph.apply(DiceLoss, inputs)?[..2].to_vec()))
            .fraction(0)
            .binary(1)
            .binary(2)
            .seeded(1)
    });
    cases.collect()
}
