//! CBAM's spatial pooling: the mean and the maximum over the channels of each pixel (equation 2).

use super::case::Case;
use super::relu::Relu;
use super::{Gradient, Op, Rewritten};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{LaneGrid, Launcher, OnCuda};
use crate::device::kernels::{CHANNEL_POOL_BACKWARD, CHANNEL_POOL_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use std::sync::Arc;

/// `out[p] = [mean over c of x[p, c], max over c of x[p, c]]`
#[derive(Debug)]
pub struct ChannelPool;

impl Op for ChannelPool {
    fn name(&self) -> &'static str {
        "channel_pool"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if !inputs[0].channels.is_single() {
            return Err(Error::shape("channel_pool", "a concatenation has padding between its channels"));
        }
        Ok(vec![inputs[0].with_channels(Channels::new(2))])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let gradient = ChannelPoolGradient::default();
        Ok(vec![Some(graph.apply_one(gradient, &[context.of(0), context.inputs[0]])?)])
    }
}

/// `dx[p, c] = dout[p, mean] / channels`, and `dout[p, max]` for the first maximum. Inputs `dout`, `x`, and what is added
/// to that, if anything is.
#[derive(Debug, Clone, Default)]
pub struct ChannelPoolGradient {
    add: bool,
    /// Whether `dx` is zero where `x`, which ends in a ReLU, is.
    mask: bool,
}

impl Op for ChannelPoolGradient {
    fn name(&self) -> &'static str {
        "channel_pool_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[1].clone()])
    }

    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let op = (!self.add && !self.mask).then(|| ChannelPoolGradient { add: true, ..self.clone() })?;
        Some((Arc::new(op), [inputs, &[added]].concat()))
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        let op = (inputs[1] == mask).then(|| ChannelPoolGradient { mask: true, ..self.clone() })?;
        Some((Arc::new(op), inputs.to_vec()))
    }
}

// ------------------------------------------------------------------ CPU

/// Partial sums and maxima are kept in this many lanes, which the compiler makes vectors of.
const LANES: usize = 8;

/// The sum and the maximum of a pixel's channels.
fn sum_and_maximum<T: Real>(pixel: &[T]) -> (T, T) {
    let (mut sums, mut maxima) = ([T::ZERO; LANES], [pixel[0]; LANES]);
    let chunks = pixel.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
            maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
        }
    }
    let sum = sums.into_iter().chain(rest.iter().copied()).sum();
    let maximum = maxima.into_iter().chain(rest.iter().copied());
    (sum, maximum.fold(pixel[0], |a, b| if b > a { b } else { a }))
}

impl<T: Real> OnCpu<T> for ChannelPool {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let count = x.shape().channels.count();
        let scale = T::ONE / T::from_f64(count as f64);
        call.output(0).for_each_pixel(|position, out| {
            let (sum, maximum) = sum_and_maximum(&x.pixel(position)[..count]);
            out.copy_from_slice(&[sum * scale, maximum]);
        });
    }
}

impl<T: Real> OnCpu<T> for ChannelPoolGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x) = (call.input(0), call.input(1));
        let added = self.add.then(|| call.input(2));
        let count = x.shape().channels.count();
        let scale = T::ONE / T::from_f64(count as f64);
        call.output(0).for_each_pixel(|position, dx| {
            let (pixel, dout) = (&x.pixel(position)[..count], dout.pixel(position));
            let (_, maximum) = sum_and_maximum(pixel);
            let winner = pixel.iter().position(|&value| value == maximum);
            dx[..count].fill(dout[0] * scale);
            dx[count..].fill(T::ZERO);
            if let Some(winner) = winner {
                dx[winner] += dout[1];
            }
            if let Some(added) = added {
                dx.iter_mut().zip(added.pixel(position)).for_each(|(dx, &added)| *dx += added);
            }
            if self.mask {
                dx.iter_mut().zip(pixel).for_each(|(dx, &x)| *dx = if x > T::ZERO { *dx } else { T::ZERO });
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for ChannelPool {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let grid = LaneGrid::new(x.channels(), [&x]);
        launcher
            .kernel(CHANNEL_POOL_FORWARD)
            .pointers([out.pointer, x.pointer])
            .sizes([x.positions(), x.shape.channels.count(), out.stride, x.stride, grid.width])
            .launch(grid.over(x.positions()))
    }
}

impl OnCuda for ChannelPoolGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dx, dout, x) = (launcher.output(0), launcher.input(0), launcher.input(1));
        let added = self.add.then(|| launcher.input(2));
        let grid = LaneGrid::new(x.channels(), [&dx, &x].into_iter().chain(&added));
        launcher
            .kernel(CHANNEL_POOL_BACKWARD)
            .pointers([dx.pointer, dout.pointer, x.pointer])
            .pointers([added.map_or(x.pointer.unused(x.element()), |added| added.pointer)])
            .sizes([x.positions(), x.shape.channels.count(), x.channels()])
            .sizes([dx.stride, dout.stride, x.stride, added.map_or(0, |added| added.stride), grid.width])
            .flag(self.mask)
            .launch(grid.over(x.positions()))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1), (2, 3), (3, 33), (1, 97)].into_iter().map(|(batch, channels)| {
        let shape = Shape::image(batch, 3, 5, channels);
        Case::new("channel_pool", [shape], |graph, inputs| graph.apply(ChannelPool, inputs)).distinct()
    });
    // The gradient is added to another, and masked.
    let shared = [9, 33].into_iter().map(|channels| {
        let shape = Shape::image(2, 3, 5, channels);
        let build = |graph: &mut Graph, inputs: &[ValueId]| {
            let x = graph.apply_one(Relu, inputs)?;
            Ok(vec![graph.apply_one(ChannelPool, &[x])?, graph.apply_one(Relu, &[x])?])
        };
        Case::new("channel_pool", [shape], build).distinct()
    });
    cases.chain(shared).collect()
}
