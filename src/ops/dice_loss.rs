//! Soft Dice loss, pooled over the batch (section 3.1), and each sample's own beside it.
//!
//! The pooled loss trains: `1 - (2 S(p t) + 1) / (S(p) + S(t) + 1)`, S summing over the pixels of the samples
//! whose weight is 1. A sample's own loss, of the same formula, ranks masks for adaptive denoising learning.

use super::case::Case;
use super::pooled_loss::{self, PooledLoss, SMOOTH};
use super::{Gradient, Op};
use crate::Result;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{DICE_LOSS_BACKWARD, DICE_LOSS_FORWARD, DICE_LOSS_FORWARD_CHUNKS, Kernel};
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;

/// Inputs: prediction, target, and a weight for each sample (0 or 1).
/// Outputs: the loss, each sample's loss, and the fraction (numerator, denominator).
#[derive(Debug, Clone, Copy)]
pub struct DiceLoss;

impl Op for DiceLoss {
    fn name(&self) -> &'static str {
        "dice_loss"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        pooled_loss::outputs("dice_loss", inputs)
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (target, weight) = (context.inputs[1], context.inputs[2]);
        let dprediction = graph.apply_one(DiceLossGradient, &[context.of(0), target, weight, context.outputs[2]])?;
        Ok(vec![Some(dprediction), None, None])
    }
}

impl PooledLoss for DiceLoss {
    const KERNELS: [Kernel; 2] = [DICE_LOSS_FORWARD_CHUNKS, DICE_LOSS_FORWARD];

    fn terms<T: Real>(prediction: T, target: T) -> [T; 2] {
        [prediction * target, prediction + target]
    }

    fn fraction([both, all]: [f64; 2]) -> [f64; 2] {
        [2.0 * both + SMOOTH, all + SMOOTH]
    }

    fn of([numerator, denominator]: [f64; 2]) -> f64 {
        1.0 - numerator / denominator
    }
}

/// Inputs: `dloss`, target, weight, fraction. Output: the prediction's gradient.
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

impl<T: Real> OnCpu<T> for DiceLossGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dloss, target, weight) = (call.input(0).scalar(), call.input(1), call.input(2));
        let [numerator, denominator] = [0, 1].map(|index| call.input(3).dense()[index]);
        // d(-numerator / denominator)/dp = (numerator - 2 t denominator) / denominator^2
        let inverse = T::ONE / denominator;
        let (constant, slope) = (dloss * numerator * inverse * inverse, -(dloss + dloss) * inverse);
        let pixels = target.shape().pixels();
        call.output(0).for_each_pixel(|position, dprediction| {
            let weight = weight.dense()[position / pixels];
            dprediction[0] = weight * (constant + slope * target.pixel(position)[0]);
        });
    }
}

// ------------------------------------------------------------------ CUDA

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
    pooled_loss::cases(DiceLoss)
}
