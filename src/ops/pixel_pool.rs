//! CBAM's channel pooling: the mean and the maximum over the pixels of each channel (equation 3).

use super::case::Case;
use super::relu::Relu;
use super::{Gradient, Op, Rewritten};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Chunks, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    PIXEL_POOL_BACKWARD, PIXEL_POOL_BACKWARD_CHUNKS, PIXEL_POOL_BACKWARD_PLACE, PIXEL_POOL_FORWARD,
    PIXEL_POOL_FORWARD_CHUNKS,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// The means of all samples, then the maxima of all samples: a batch twice as large of one pixel each, so that
/// the shared MLP is applied to both as one.
#[derive(Debug)]
pub struct PixelPool;

impl Op for PixelPool {
    fn name(&self) -> &'static str {
        "pixel_pool"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let x = inputs[0];
        if !x.channels.is_single() {
            return Err(Error::shape("pixel_pool", "a concatenation has padding between its channels"));
        }
        Ok(vec![Shape::volume(2 * x.batch, [1; 3], x.channels.clone()).stored_in(Storage::Full)])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let inputs = [context.of(0), context.inputs[0], context.outputs[0]];
        Ok(vec![Some(graph.apply_one(PixelPoolGradient::default(), &inputs)?)])
    }
}

/// `dx = dmean / pixels`, and `dmax` for the first maximum. Inputs `dout`, `x`, `out`, and what is added to that, if
/// anything is.
#[derive(Debug, Default)]
pub struct PixelPoolGradient {
    add: bool,
}

impl Op for PixelPoolGradient {
    fn name(&self) -> &'static str {
        "pixel_pool_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[1].clone()])
    }

    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let op = (!self.add).then_some(PixelPoolGradient { add: true })?;
        Some((Arc::new(op), [inputs, &[added]].concat()))
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels that are pooled together; chunks are merged in order.
const CHUNK_PIXELS: usize = 1024;

fn chunks(x: &Shape) -> usize {
    x.pixels().div_ceil(CHUNK_PIXELS)
}

/// Calls `pool` for every chunk of pixels, with `size` elements of the workspace each.
fn for_each_chunk<T: Real>(
    x: Input<T>,
    workspace: &mut [T],
    size: usize,
    pool: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync,
) {
    let (pixels, chunks) = (x.shape().pixels(), chunks(x.shape()));
    workspace.par_chunks_mut(size).enumerate().for_each(|(index, part)| {
        let (sample, chunk) = (index / chunks, index % chunks);
        let end = ((chunk + 1) * CHUNK_PIXELS).min(pixels);
        pool(sample * pixels + chunk * CHUNK_PIXELS..sample * pixels + end, part);
    });
}

impl<T: Real> OnCpu<T> for PixelPool {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].batch * chunks(inputs[0]) * 2 * inputs[0].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let channels = x.channels();
        let workspace = call.workspace();
        for_each_chunk(x, workspace, 2 * channels, |positions, part| {
            let (sums, maxima) = part.split_at_mut(channels);
            sums.fill(T::ZERO);
            maxima.copy_from_slice(x.pixel(positions.start));
            for position in positions {
                for ((sum, maximum), &x) in sums.iter_mut().zip(maxima.iter_mut()).zip(x.pixel(position)) {
                    *sum += x;
                    *maximum = if x > *maximum { x } else { *maximum };
                }
            }
        });
        let mut out = call.output(0);
        let scale = 1.0 / x.shape().pixels() as f64;
        let batch = x.shape().batch;
        for (sample, parts) in workspace.chunks_exact(chunks(x.shape()) * 2 * channels).enumerate() {
            for channel in 0..channels {
                let values = |offset: usize| parts.chunks_exact(2 * channels).map(move |part| part[offset + channel]);
                let sum: f64 = values(0).map(Real::to_f64).sum();
                let maximum = values(channels).fold(parts[channels + channel], |a, b| if b > a { b } else { a });
                out.pixel(sample)[channel] = T::from_f64(sum * scale);
                out.pixel(batch + sample)[channel] = maximum;
            }
        }
    }
}

impl<T: Real> OnCpu<T> for PixelPoolGradient {
    /// For each chunk and channel, whether the maximum stands in it: 1 or 0.
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[1].batch * chunks(inputs[1]) * inputs[1].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x, out) = (call.input(0), call.input(1), call.input(2));
        let added = self.add.then(|| call.input(3));
        let (channels, pixels, batch) = (x.channels(), x.shape().pixels(), x.shape().batch);
        let workspace = call.workspace();
        for_each_chunk(x, workspace, channels, |positions, found| {
            let maxima = out.pixel(batch + positions.start / pixels);
            found.fill(T::ZERO);
            for position in positions {
                for ((found, &maximum), &x) in found.iter_mut().zip(maxima).zip(x.pixel(position)) {
                    *found = if x == maximum { T::ONE } else { *found };
                }
            }
        });
        // What is left to give of each channel's dmax, at the start of each chunk.
        for (sample, parts) in workspace.chunks_exact_mut(chunks(x.shape()) * channels).enumerate() {
            for channel in 0..channels {
                let mut rest = dout.pixel(batch + sample)[channel];
                for found in parts.chunks_exact_mut(channels) {
                    let given = if found[channel] == T::ONE { rest } else { T::ZERO };
                    rest = rest - given;
                    found[channel] = given;
                }
            }
        }
        let scale = T::ONE / T::from_f64(pixels as f64);
        let chunks = chunks(x.shape());
        let dx = call.output(0);
        let parts: &[T] = workspace;
        // Whole samples, so that a block is a run of chunks.
        dx.blocks(pixels).for_each(|mut dx| {
            let sample = dx.positions().start / pixels;
            let (dmean, maxima) = (dout.pixel(sample), out.pixel(batch + sample));
            let rest = &parts[sample * chunks * channels..(sample + 1) * chunks * channels];
            for position in dx.positions() {
                let dx = dx.pixel(position);
                dx.iter_mut().zip(dmean).for_each(|(dx, &dmean)| *dx = dmean * scale);
                if let Some(added) = added {
                    dx.iter_mut().zip(added.pixel(position)).for_each(|(dx, &added)| *dx += added);
                }
            }
            for (chunk, rest) in rest.chunks_exact(channels).enumerate() {
                let start = sample * pixels + chunk * CHUNK_PIXELS;
                let end = (sample * pixels + pixels).min(start + CHUNK_PIXELS);
                for (channel, &given) in rest.iter().enumerate().filter(|&(_, &given)| given != T::ZERO) {
                    if let Some(winner) = (start..end).find(|&position| x.pixel(position)[channel] == maxima[channel]) {
                        dx.pixel(winner)[channel] += given;
                    }
                }
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for PixelPool {
    /// A sum and a maximum for each chunk and channel.
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let x = inputs[0];
        x.batch * Chunks::most(x.pixels(), x.batch) * 2 * x.channels.stored()
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x, pooled) = (launcher.output(0), launcher.input(0), launcher.workspace());
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        let grid = PixelGrid::new(channels, [&x]);
        let chunks = grid.chunks(pixels, batch);
        launcher
            .kernel(PIXEL_POOL_FORWARD_CHUNKS)
            .pointers([pooled, x.pointer])
            .sizes([pixels, channels, x.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, batch))?;
        launcher
            .kernel(PIXEL_POOL_FORWARD)
            .pointers([out.pointer, pooled])
            .sizes([pixels, channels, out.stride, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, batch))
    }
}

impl OnCuda for PixelPoolGradient {
    /// The place of each chunk's and channel's maximum, then of each channel's.
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let x = inputs[1];
        x.batch * (Chunks::most(x.pixels(), x.batch) + 1) * x.channels.stored()
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dx, dout, x, out) = (launcher.output(0), launcher.input(0), launcher.input(1), launcher.input(2));
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        let added = self.add.then(|| launcher.input(3));
        let grid = PixelGrid::new(channels, [&dx, &dout, &x, &out].into_iter().chain(&added));
        let chunks = grid.chunks(pixels, batch);
        let (each, all) = (batch * chunks.count * channels, batch * channels);
        let [places, place] = [0..each, each..each + all].map(|range| launcher.workspace().part(range));
        launcher
            .kernel(PIXEL_POOL_BACKWARD_CHUNKS)
            .pointers([places, x.pointer, out.pointer])
            .sizes([pixels, channels, x.stride, out.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, batch))?;
        launcher
            .kernel(PIXEL_POOL_BACKWARD_PLACE)
            .pointers([place, places])
            .sizes([channels, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, batch))?;
        launcher
            .kernel(PIXEL_POOL_BACKWARD)
            .pointers([dx.pointer, dout.pointer, place])
            .pointers([added.map_or(x.pointer.unused(x.element()), |added| added.pointer)])
            .sizes([pixels, channels, dx.stride, dout.stride, added.map_or(0, |added| added.stride), grid.width])
            .launch(grid.over(pixels, batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1, 1), (2, 3, 3), (3, 5, 33), (1, 420, 9)].into_iter().map(|(batch, height, channels)| {
        let shape = Shape::image(batch, height, 3, channels);
        Case::new("pixel_pool", [shape], |graph, inputs| graph.apply(PixelPool, inputs)).distinct()
    });
    // The gradient is added to another.
    let shared = [3, 33].into_iter().map(|channels| {
        let build = |graph: &mut Graph, inputs: &[ValueId]| {
            Ok(vec![graph.apply_one(PixelPool, inputs)?, graph.apply_one(Relu, inputs)?])
        };
        Case::new("pixel_pool", [Shape::image(2, 3, 5, channels)], build).distinct()
    });
    cases.chain(shared).collect()
}
