//! What the losses share that are made of two sums over pixels: each sample's own loss, and one of the sums of all
//! samples, each times its weight.
//!
//! Inputs: prediction and target of one channel, and a weight for each sample. Outputs: the pooled loss, each
//! sample's loss, and the pooled fraction (numerator, denominator), which the gradient needs.

use super::Op;
use super::case::Case;
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda};
use crate::device::kernels::{Kernel, pixels::THREADS, pooled_loss::CHUNK_PIXELS};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// Added to the sums, so that the Dice of nothing with nothing is 1.
pub const SMOOTH: f64 = 1.0;

/// A loss of two sums.
pub(super) trait PooledLoss: Op {
    /// The kernels that sum the terms of each chunk of pixels, and that pool the chunks.
    const KERNELS: [Kernel; 2];

    /// What a pixel adds to the two sums.
    fn terms<T: Real>(prediction: T, target: T) -> [T; 2];

    /// Numerator and denominator.
    fn fraction(sums: [f64; 2]) -> [f64; 2];

    /// The loss.
    fn of(fraction: [f64; 2]) -> f64;
}

/// The outputs' shapes.
///
/// # Errors
/// If prediction, target and weights do not belong together.
pub(super) fn outputs(op: &'static str, inputs: &[&Shape]) -> Result<Vec<Shape>> {
    let (prediction, target, weight) = (inputs[0], inputs[1], inputs[2]);
    let samples = Shape::flat(prediction.batch);
    if prediction.channels.count() != 1 || prediction != target || *weight != samples {
        let message = format!("prediction {prediction}, target {target} and weights {weight} do not belong together");
        return Err(Error::shape(op, message));
    }
    Ok(vec![Shape::flat(1), samples, Shape::flat(2)])
}

// ------------------------------------------------------------------ CPU

/// Pixels that are summed together; runs are added in order.
const RUN: usize = 1024;

fn sample_sums<L: PooledLoss, T: Real>(prediction: Input<T>, target: Input<T>, sample: usize) -> [f64; 2] {
    let pixels = prediction.shape().pixels();
    let range = sample * pixels..(sample + 1) * pixels;
    let (prediction, target) = (&prediction.dense()[range.clone()], &target.dense()[range]);
    let mut sums = [0.0; 2];
    for (p, t) in prediction.chunks(RUN).zip(target.chunks(RUN)) {
        let terms = p.iter().zip(t).map(|(&p, &t)| L::terms(p, t));
        let run = terms.fold([T::ZERO; 2], |run, terms| [run[0] + terms[0], run[1] + terms[1]]);
        sums = [sums[0] + run[0].to_f64(), sums[1] + run[1].to_f64()];
    }
    sums
}

impl<L: PooledLoss, T: Real> OnCpu<T> for L {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[0].batch
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (prediction, target, weight) = (call.input(0), call.input(1), call.input(2));
        let sums = call.workspace();
        sums.par_chunks_mut(2).enumerate().for_each(|(sample, sums)| {
            sums.copy_from_slice(&sample_sums::<L, T>(prediction, target, sample).map(T::from_f64));
        });
        let mut pooled = [0.0; 2];
        let mut losses = call.output(1);
        for (sample, sums) in sums.chunks_exact(2).enumerate() {
            let sums = [sums[0].to_f64(), sums[1].to_f64()];
            losses.dense()[sample] = T::from_f64(L::of(L::fraction(sums)));
            let weight = weight.dense()[sample].to_f64();
            pooled = [pooled[0] + weight * sums[0], pooled[1] + weight * sums[1]];
        }
        let fraction = L::fraction(pooled);
        call.output(0).dense()[0] = T::from_f64(L::of(fraction));
        call.output(2).dense().copy_from_slice(&fraction.map(T::from_f64));
    }
}

// ------------------------------------------------------------------ CUDA

fn chunks(prediction: &Shape) -> usize {
    prediction.pixels().div_ceil(CHUNK_PIXELS)
}

impl<L: PooledLoss> OnCuda for L {
    /// Two sums for each chunk.
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].batch * chunks(inputs[0]) * 2
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [prediction, target, weight] = [0, 1, 2].map(|index| launcher.input(index));
        let outputs = [0, 1, 2].map(|index| launcher.output(index).pointer);
        assert!(prediction.is_dense() && target.is_dense(), "masks lie densely");
        let (batch, chunks, sums) = (prediction.shape.batch, chunks(prediction.shape), launcher.workspace());
        let [of_chunks, pooled] = L::KERNELS;
        launcher
            .kernel(of_chunks)
            .pointers([sums, prediction.pointer, target.pointer])
            .sizes([prediction.shape.pixels()])
            .launch(Grid::new([chunks, 1, batch], THREADS))?;
        launcher
            .kernel(pooled)
            .pointers(outputs)
            .pointers([sums, weight.pointer])
            .sizes([batch, chunks])
            .floats([SMOOTH as f32])
            .launch(Grid::new([1, 1, 1], THREADS))
    }
}

// ------------------------------------------------------------------ cases

/// Cases of one sample, of several, and of more pixels than a warp has lanes.
pub(super) fn cases<L: PooledLoss + Copy>(loss: L) -> Vec<Case> {
    let cases = [(1, 1), (2, 3), (3, 40)].into_iter().map(|(batch, height)| {
        let prediction = Shape::image(batch, height, 5, 1).with_channels(Channels::new(1));
        let inputs = [prediction.clone(), prediction, Shape::flat(batch)];
        Case::new(loss.name(), inputs, move |graph, inputs| Ok(graph.apply(loss, inputs)?[..2].to_vec()))
            .fraction(0)
            .binary(1)
            .binary(2)
            .seeded(1)
    });
    cases.collect()
}
