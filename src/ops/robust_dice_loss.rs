//! Noise-robust Dice loss, pooled over the batch, and each sample's own beside it: what the paper's strategy
//! against noisy masks is compared with. (Wang et al., IEEE TMI 2020, COPLE-Net.)
//!
//! `S(|p - t|^1.5) / (S(p^2 + t^2) + 1)`, S summing over the pixels of the samples, each times its weight. With the
//! exponent 2 it would be a Dice loss; with 1 a pixel that is all wrong weighs no more than several that are partly
//! wrong, and outliers lose their pull.

use super::case::Case;
use super::dice_loss::{SMOOTH, check_shapes};
use super::{Gradient, Op};
use crate::Result;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    ROBUST_DICE_LOSS_BACKWARD_F32, ROBUST_DICE_LOSS_FORWARD_CHUNKS_F32, ROBUST_DICE_LOSS_FORWARD_F32, pixels::THREADS,
    robust_dice_loss::CHUNK_PIXELS,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use rayon::prelude::*;

/// Inputs: prediction, target, and a weight for each sample.
/// Outputs: the loss, each sample's loss, and the sums of the gradient (numerator, denominator).
#[derive(Debug)]
pub struct RobustDiceLoss;

impl Op for RobustDiceLoss {
    fn name(&self) -> &'static str {
        "robust_dice_loss"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        check_shapes("robust_dice_loss", inputs)
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let &[prediction, target, weight] = context.inputs else { unreachable!("the loss has three inputs") };
        let inputs = [context.of(0), prediction, target, weight, context.outputs[2]];
        let dprediction = graph.apply_one(RobustDiceLossGradient, &inputs)?;
        Ok(vec![Some(dprediction), None, None])
    }
}

/// Inputs: `dloss`, prediction, target, weight, sums. Output: the prediction's gradient.
#[derive(Debug)]
pub struct RobustDiceLossGradient;

impl Op for RobustDiceLossGradient {
    fn name(&self) -> &'static str {
        "robust_dice_loss_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[1].clone()])
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels that are summed together; runs are added in order.
const RUN: usize = 1024;

/// `S(|p - t|^1.5)` and `S(p^2 + t^2)` of one sample.
fn sample_sums<T: Real>(prediction: Input<T>, target: Input<T>, sample: usize) -> [f64; 2] {
    let pixels = prediction.shape().pixels();
    let range = sample * pixels..(sample + 1) * pixels;
    let (prediction, target) = (&prediction.dense()[range.clone()], &target.dense()[range]);
    let mut sums = [0.0; 2];
    for (p, t) in prediction.chunks(RUN).zip(target.chunks(RUN)) {
        let difference = |(&p, &t): (&T, &T)| distance(p, t) * distance(p, t).sqrt();
        sums[0] += p.iter().zip(t).map(difference).sum::<T>().to_f64();
        sums[1] += p.iter().zip(t).map(|(&p, &t)| p * p + t * t).sum::<T>().to_f64();
    }
    sums
}

fn distance<T: Real>(a: T, b: T) -> T {
    if a < b { b - a } else { a - b }
}

fn loss<T: Real>([difference, squares]: [f64; 2]) -> T {
    T::from_f64(difference / (squares + SMOOTH))
}

impl<T: Real> OnCpu<T> for RobustDiceLoss {
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
        total.dense().copy_from_slice(&[pooled[0], pooled[1] + SMOOTH].map(T::from_f64));
    }
}

impl<T: Real> OnCpu<T> for RobustDiceLossGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dloss, prediction, target, weight) = (call.input(0).scalar(), call.input(1), call.input(2), call.input(3));
        let sums = call.input(4).dense();
        // d(numerator / denominator)/dp = (1.5 |d|^0.5 sign(d) - 2 p numerator / denominator) / denominator
        let inverse = T::ONE / sums[1];
        let (slope, constant) = (T::from_f64(1.5) * dloss * inverse, (dloss + dloss) * sums[0] * inverse * inverse);
        let pixels = target.shape().pixels();
        call.output(0).for_each_pixel(|position, dprediction| {
            let (p, t) = (prediction.pixel(position)[0], target.pixel(position)[0]);
            let root = distance(p, t).sqrt();
            let signed = if p < t { T::ZERO - root } else { root };
            dprediction[0] = weight.dense()[position / pixels] * (slope * signed - constant * p);
        });
    }
}

// ------------------------------------------------------------------ CUDA

fn chunks(prediction: &Shape) -> usize {
    prediction.pixels().div_ceil(CHUNK_PIXELS)
}

impl OnCuda for RobustDiceLoss {
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
            .kernel(ROBUST_DICE_LOSS_FORWARD_CHUNKS_F32)
            .pointers([sums, prediction.pointer, target.pointer])
            .sizes([prediction.shape.pixels()])
            .launch(Grid::new([chunks, 1, batch], THREADS))?;
        launcher
            .kernel(ROBUST_DICE_LOSS_FORWARD_F32)
            .pointers(outputs)
            .pointers([sums, weight.pointer])
            .sizes([batch, chunks])
            .floats([SMOOTH as f32])
            .launch(Grid::new([1, 1, 1], THREADS))
    }
}

impl OnCuda for RobustDiceLossGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dprediction, target) = (launcher.output(0), launcher.input(2));
        assert!(dprediction.is_dense() && target.is_dense(), "masks lie densely");
        let inputs = [0, 1, 2, 3, 4].map(|index| launcher.input(index).pointer);
        let pixels = target.shape.pixels();
        launcher
            .kernel(ROBUST_DICE_LOSS_BACKWARD_F32)
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
        Case::new("robust_dice_loss", inputs, |graph, inputs| Ok(graph.apply(RobustDiceLoss, inputs)?[..2].to_vec()))
            .fraction(0)
            .binary(1)
            .binary(2)
            .seeded(1)
    });
    cases.collect()
}
