//! What CBAM makes of its tensor: the tensor times its map of pixels and its map of channels, which is the sigmoid of the
//! sum of the shared MLP's two outputs (equations 3, 4).

use super::attention::{AttentionGradient, AttentionMapGradient, check_map};
use super::case::Case;
use super::sigmoid::sigmoid;
use super::{Gradient, Op};
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Chunks, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{CHANNEL_GATE_BACKWARD, CHANNEL_GATE_BACKWARD_CHUNKS, CHANNEL_GATE_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// `out = x * map * gate` with `gate[n] = sigmoid(logits[n] + logits[batch + n])`: the first half of the logits comes from
/// the means, the second from the maxima. Inputs: `x`, `map` (one factor a pixel), `logits`. Outputs: `out`, `gate`.
#[derive(Debug)]
pub struct ChannelGate;

impl Op for ChannelGate {
    fn name(&self) -> &'static str {
        "channel_gate"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (x, logits) = (inputs[0], inputs[2]);
        check_map("channel_gate", x, inputs[1])?;
        let vectors = |rows: usize| Shape::volume(rows, [1; 3], x.channels.clone()).stored_in(Storage::Full);
        if *logits != vectors(2 * x.batch) {
            return Err(Error::shape("channel_gate", format!("{logits} are not two values for each channel of {x}")));
        }
        Ok(vec![x.clone(), vectors(x.batch)])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let ([x, map], dout, gate) = ([context.inputs[0], context.inputs[1]], context.of(0), context.outputs[1]);
        let dx = AttentionGradient::of_gate(graph.shape(x));
        let dmap = AttentionMapGradient::of_gate();
        Ok(vec![
            context.wanted[0].then(|| graph.apply_one(dx, &[map, dout, gate])).transpose()?,
            context.wanted[1].then(|| graph.apply_one(dmap, &[x, dout, gate])).transpose()?,
            context.wanted[2].then(|| graph.apply_one(ChannelGateGradient, &[dout, x, map, gate])).transpose()?,
        ])
    }
}

/// `dlogits[n] = dlogits[batch + n] = dgate[n] gate[n] (1 - gate[n])`, where `dgate[n]` is the sum over the pixels of
/// `dout * x * map`. Inputs `dout`, `x`, `map`, `gate`.
#[derive(Debug)]
pub struct ChannelGateGradient;

impl Op for ChannelGateGradient {
    fn name(&self) -> &'static str {
        "channel_gate_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![Shape { batch: 2 * inputs[3].batch, ..inputs[3].clone() }])
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for ChannelGate {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (x, map, logits) = (call.input(0), call.input(1), call.input(2));
        let (batch, pixels) = (x.shape().batch, x.shape().pixels());
        let (channels, count) = (x.channels(), x.shape().channels.count());
        let mut gate = call.output(1);
        for sample in 0..batch {
            let halves = logits.pixel(sample).iter().zip(logits.pixel(batch + sample));
            let gate = gate.pixel(sample);
            gate.iter_mut().zip(halves).for_each(|(gate, (&mean, &maximum))| *gate = sigmoid(mean + maximum));
            gate[count..].fill(T::ZERO);
        }
        let gate: &[T] = gate.dense();
        call.output(0).for_each_pixel(|position, out| {
            let factor = map.pixel(position)[0];
            let values = x.pixel(position).iter().zip(&gate[position / pixels * channels..]);
            out.iter_mut().zip(values).for_each(|(out, (&x, &gate))| *out = x * factor * gate);
        });
    }
}

/// Pixels that are summed together; chunks are added in order.
const CHUNK_PIXELS: usize = 1024;

impl<T: Real> OnCpu<T> for ChannelGateGradient {
    /// A sum for each chunk and channel.
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[1].batch * inputs[1].pixels().div_ceil(CHUNK_PIXELS) * inputs[1].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x, map, gate) = (call.input(0), call.input(1), call.input(2), call.input(3));
        let (batch, pixels, channels) = (x.shape().batch, x.shape().pixels(), x.channels());
        let chunks = pixels.div_ceil(CHUNK_PIXELS);
        let workspace = call.workspace();
        workspace.par_chunks_mut(channels).enumerate().for_each(|(index, sums)| {
            let (sample, chunk) = (index / chunks, index % chunks);
            sums.fill(T::ZERO);
            for pixel in chunk * CHUNK_PIXELS..((chunk + 1) * CHUNK_PIXELS).min(pixels) {
                let position = sample * pixels + pixel;
                let factor = map.pixel(position)[0];
                let values = dout.pixel(position).iter().zip(x.pixel(position));
                sums.iter_mut().zip(values).for_each(|(sum, (&dout, &x))| *sum += dout * (x * factor));
            }
        });
        let parts: &[T] = workspace;
        call.output(0).for_each_pixel(|row, dlogits| {
            let sample = row % batch;
            let parts = &parts[sample * chunks * channels..(sample + 1) * chunks * channels];
            for (channel, (dlogit, &gate)) in dlogits.iter_mut().zip(gate.pixel(sample)).enumerate() {
                let dgate: T = parts.iter().skip(channel).step_by(channels).copied().sum();
                *dlogit = dgate * gate * (T::ONE - gate);
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for ChannelGate {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, gate) = (launcher.output(0), launcher.output(1));
        let (x, map, logits) = (launcher.input(0), launcher.input(1), launcher.input(2));
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        let grid = PixelGrid::new(channels, [&out, &gate, &x, &logits]);
        launcher
            .kernel(CHANNEL_GATE_FORWARD)
            .pointers([out.pointer, gate.pointer, x.pointer, map.pointer, logits.pointer])
            .sizes([pixels, channels, x.shape.channels.count()])
            .sizes([out.stride, gate.stride, x.stride, map.stride, logits.stride, grid.width])
            .launch(grid.over(pixels, batch))
    }
}

impl OnCuda for ChannelGateGradient {
    /// A sum for each chunk and channel.
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let x = inputs[1];
        x.batch * Chunks::most(x.pixels(), x.batch) * x.channels.stored()
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dlogits, sums) = (launcher.output(0), launcher.workspace());
        let [dout, x, map, gate] = [0, 1, 2, 3].map(|index| launcher.input(index));
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        let grid = PixelGrid::new(channels, [&dout, &x]);
        let chunks = grid.chunks(pixels, batch);
        launcher
            .kernel(CHANNEL_GATE_BACKWARD_CHUNKS)
            .pointers([sums, dout.pointer, x.pointer, map.pointer])
            .sizes([pixels, channels, dout.stride, x.stride, map.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, batch))?;
        launcher
            .kernel(CHANNEL_GATE_BACKWARD)
            .pointers([dlogits.pointer, sums, gate.pointer])
            .sizes([channels, dlogits.stride, gate.stride, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1, 1), (2, 3, 3), (3, 5, 33), (1, 420, 9)].into_iter().map(|(batch, height, channels)| {
        let x = Shape::image(batch, height, 3, channels);
        let map = x.with_channels(Channels::new(1));
        let logits = Shape::image(2 * batch, 1, 1, channels).stored_in(Storage::Full);
        Case::new("channel_gate", [x, map, logits], |graph, inputs| graph.apply(ChannelGate, inputs)).seeded(1)
    });
    cases.collect()
}
