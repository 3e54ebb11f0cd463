//! CBAM's spatial pooling: the mean and the maximum over the channels of each pixel (equation 2).

use super::attention::AttentionGradient;
use super::case::Case;
use super::relu::Relu;
use super::{Gradient, Op};
use crate::device::cpu::operand::task_positions;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{LaneGrid, Launcher, OnCuda};
use crate::device::kernels::CHANNEL_POOL_FORWARD;
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// `out[p] = [mean over c of x[p, c], max over c of x[p, c]]`. Outputs: `out`, and the channel of the first maximum.
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
        Ok([2, 1].map(|channels| inputs[0].with_channels(Channels::new(channels))).to_vec())
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let op = AttentionGradient::of_channel_pool(graph.shape(context.inputs[0]));
        Ok(vec![Some(graph.apply_one(op, &[context.of(0), context.outputs[1]])?)])
    }
}

// ------------------------------------------------------------------ CPU

/// Partial sums and maxima are kept in this many lanes, which the compiler makes vectors of.
const LANES: usize = 8;

/// A sum, a maximum, and the first channel that has it.
struct Pooled<T> {
    sum: T,
    maximum: T,
    winner: T,
}

/// Pools the channels of a pixel.
fn pool<T: Real>(pixel: &[T]) -> Pooled<T> {
    let (mut sums, mut maxima, mut winners) = ([T::ZERO; LANES], [pixel[0]; LANES], [T::ZERO; LANES]);
    let mut channels: [T; LANES] = std::array::from_fn(|lane| T::from_f64(lane as f64));
    let step = T::from_f64(LANES as f64);
    let chunks = pixel.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
            let wins = chunk[lane] > maxima[lane];
            maxima[lane] = if wins { chunk[lane] } else { maxima[lane] };
            winners[lane] = if wins { channels[lane] } else { winners[lane] };
            channels[lane] += step;
        }
    }
    // Pairs of lanes, without a branch that no processor could predict.
    for half in [4, 2, 1] {
        for lane in 0..half {
            let (maximum, winner) = (maxima[lane + half], winners[lane + half]);
            let wins = (maximum > maxima[lane]) | ((maximum == maxima[lane]) & (winner < winners[lane]));
            maxima[lane] = if wins { maximum } else { maxima[lane] };
            winners[lane] = if wins { winner } else { winners[lane] };
            sums[lane] += sums[lane + half];
        }
    }
    let mut pooled = Pooled { sum: sums[0], maximum: maxima[0], winner: winners[0] };
    for (&value, &channel) in rest.iter().zip(&channels) {
        pooled.sum += value;
        if value > pooled.maximum {
            (pooled.maximum, pooled.winner) = (value, channel);
        }
    }
    pooled
}

impl<T: Real> OnCpu<T> for ChannelPool {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let count = x.shape().channels.count();
        let scale = T::ONE / T::from_f64(count as f64);
        let pixels = task_positions(x.channels());
        let (out, winners) = (call.output(0).blocks(pixels), call.output(1).blocks(pixels));
        out.zip(winners).for_each(|(mut out, mut winners)| {
            for position in out.positions() {
                let Pooled { sum, maximum, winner } = pool(&x.pixel(position)[..count]);
                out.pixel(position).copy_from_slice(&[sum * scale, maximum]);
                winners.pixel(position)[0] = winner;
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for ChannelPool {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, winners, x) = (launcher.output(0), launcher.output(1), launcher.input(0));
        let grid = LaneGrid::new(x.channels(), [&x]);
        launcher
            .kernel(CHANNEL_POOL_FORWARD)
            .pointers([out.pointer, winners.pointer, x.pointer])
            .sizes([x.positions(), x.shape.channels.count(), out.stride, winners.stride, x.stride, grid.width])
            .launch(grid.over(x.positions(), 1))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1), (2, 3), (3, 33), (1, 97)].into_iter().map(|(batch, channels)| {
        let shape = Shape::image(batch, 3, 5, channels);
        Case::new("channel_pool", [shape], |graph, inputs| graph.apply(ChannelPool, inputs)).distinct().seeded(1)
    });
    // The gradient is masked.
    let masked = [9, 33].into_iter().map(|channels| {
        let shape = Shape::image(2, 3, 5, channels);
        let build = |graph: &mut Graph, inputs: &[ValueId]| {
            let x = graph.apply_one(Relu, inputs)?;
            graph.apply(ChannelPool, &[x])
        };
        Case::new("channel_pool", [shape], build).distinct().seeded(1)
    });
    cases.chain(masked).collect()
}
