//! Noise-robust Dice loss, pooled over the batch, and each sample's own beside it: what the paper's strategy
//! against noisy masks is compared with. (Wang et al., IEEE TMI 2020, COPLE-Net.)
//!
//! `S(|p - t|^1.5) / (S(p^2 + t^2) + 1)`, S summing over the pixels of the samples, each times its weight. With the
//! exponent 2 it would be a Dice loss; with 1 a pixel that is all wrong weighs no more than several that are partly
//! wrong, and outliers lose their pull.

use super::case::Case;
use super::pooled_loss::{self, PooledLoss, SMOOTH};
use super::{Gradient, Op};
use crate::Result;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    Kernel, ROBUST_DICE_LOSS_BACKWARD, ROBUST_DICE_LOSS_FORWARD, ROBUST_DICE_LOSS_FORWARD_CHUNKS,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;

/// Inputs: prediction, target, and a weight for each sample.
/// Outputs: the loss, each sample's loss, and the fraction (numerator, denominator).
#[derive(Debug, Clone, Copy)]
pub struct RobustDiceLoss;

impl Op for RobustDiceLoss {
    fn name(&self) -> &'static str {
        "robust_dice_loss"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        pooled_loss::outputs("robust_dice_loss", inputs)
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let &[prediction, target, weight] = context.inputs else { unreachable!("the loss has three inputs") };
        let inputs = [context.of(0), prediction, target, weight, context.outputs[2]];
        let dprediction = graph.apply_one(RobustDiceLossGradient, &inputs)?;
        Ok(vec![Some(dprediction), None, None])
    }
}

impl PooledLoss for RobustDiceLoss {
    const KERNELS: [Kernel; 2] = [ROBUST_DICE_LOSS_FORWARD_CHUNKS, ROBUST_DICE_LOSS_FORWARD];

    fn terms<T: Real>(prediction: T, target: T) -> [T; 2] {
        let distance = distance(prediction, target);
        [distance * distance.sqrt(), prediction * prediction + target * target]
    }

    fn fraction([difference, squares]: [f64; 2]) -> [f64; 2] {
        [difference, squares + SMOOTH]
    }

    fn of([numerator, denominator]: [f64; 2]) -> f64 {
        numerator / denominator
    }
}

fn distance<T: Real>(a: T, b: T) -> T {
    if a < b { b - a } else { a - b }
}

/// Inputs: `dloss`, prediction, target, weight, fraction. Output: the prediction's gradient.
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

impl<T: Real> OnCpu<T> for RobustDiceLossGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dloss, prediction, target, weight) = (call.input(0).scalar(), call.input(1), call.input(2), call.input(3));
        let [numerator, denominator] = [0, 1].map(|index| call.input(4).dense()[index]);
        // d(numerator / denominator)/dp = (1.5 |d|^0.5 sign(d) - 2 p numerator / denominator) / denominator
        let inverse = T::ONE / denominator;
        let (slope, constant) = (T::from_f64(1.5) * dloss * inverse, (dloss + dloss) * numerator * inverse * inverse);
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

impl OnCuda for RobustDiceLossGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dprediction, target) = (launcher.output(0), launcher.input(2));
        assert!(dprediction.is_dense() && target.is_dense(), "masks lie densely");
        let inputs = [0, 1, 2, 3, 4].map(|index| launcher.input(index).pointer);
        let pixels = target.shape.pixels();
        launcher
            .kernel(ROBUST_DICE_LOSS_BACKWARD)
            .pointers([dprediction.pointer])
            .pointers(inputs)
            .sizes([pixels])
            .launch(PixelGrid::single(1).over(pixels, target.shape.batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    pooled_loss::cases(RobustDiceLoss)
}
