//! CBAM's channel pooling: the mean and the maximum over the pixels of each channel (equation 3).

use super::attention::{AttentionGradient, AttentionMapGradient, check_map};
use super::case::Case;
use super::{Gradient, Op};
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Chunks, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{PIXEL_POOL_FORWARD, PIXEL_POOL_FORWARD_CHUNKS};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// Of `x * map`, which is not stored: the means of all samples, then the maxima of all samples, a batch twice as large of
/// one pixel each, so that the shared MLP is applied to both as one; and the pixel, of its sample, of each first maximum.
/// Inputs `x` and `map`, one factor a pixel.
#[derive(Debug)]
pub struct PixelPool;

/// A pixel's number is exact in f32 up to here.
const MOST_PIXELS: usize = 1 << 24;

impl Op for PixelPool {
    fn name(&self) -> &'static str {
        "pixel_pool"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let x = inputs[0];
        check_map("pixel_pool", x, inputs[1])?;
        if x.pixels() > MOST_PIXELS {
            return Err(Error::shape("pixel_pool", format!("{x} has more than {MOST_PIXELS} pixels")));
        }
        let each = |rows: usize| Shape::volume(rows, [1; 3], x.channels.clone()).stored_in(Storage::Full);
        Ok(vec![each(2 * x.batch), each(x.batch)])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let ([x, map], dout, places) = ([context.inputs[0], context.inputs[1]], context.of(0), context.outputs[1]);
        let dx = AttentionGradient::of_pixel_pool(graph.shape(x));
        let dx = context.wanted[0].then(|| graph.apply_one(dx, &[map, dout, places])).transpose()?;
        let dmap = AttentionMapGradient::of_pixel_pool();
        Ok(vec![dx, context.wanted[1].then(|| graph.apply_one(dmap, &[x, dout, places])).transpose()?])
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels that are pooled together; chunks are merged in order.
const CHUNK_PIXELS: usize = 1024;

fn chunks(x: &Shape) -> usize {
    x.pixels().div_ceil(CHUNK_PIXELS)
}

impl<T: Real> OnCpu<T> for PixelPool {
    /// A sum, a maximum and its place for each chunk and channel.
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].batch * chunks(inputs[0]) * 3 * inputs[0].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (x, map) = (call.input(0), call.input(1));
        let (channels, pixels, chunks) = (x.channels(), x.shape().pixels(), chunks(x.shape()));
        let workspace = call.workspace();
        workspace.par_chunks_mut(3 * channels).enumerate().for_each(|(index, part)| {
            let (sample, chunk) = (index / chunks, index % chunks);
            let (sums, rest) = part.split_at_mut(channels);
            let (maxima, places) = rest.split_at_mut(channels);
            sums.fill(T::ZERO);
            maxima.fill(T::from_f64(f64::NEG_INFINITY));
            places.fill(T::ZERO);
            for pixel in chunk * CHUNK_PIXELS..((chunk + 1) * CHUNK_PIXELS).min(pixels) {
                let (position, place) = (sample * pixels + pixel, T::from_f64(pixel as f64));
                let factor = map.pixel(position)[0];
                let best = maxima.iter_mut().zip(&mut *places);
                for ((sum, (maximum, its)), &x) in sums.iter_mut().zip(best).zip(x.pixel(position)) {
                    let refined = x * factor;
                    *sum += refined;
                    let wins = refined > *maximum;
                    *maximum = if wins { refined } else { *maximum };
                    *its = if wins { place } else { *its };
                }
            }
        });
        let (mut out, mut places) = (call.output(0), call.output(1));
        let (scale, batch) = (1.0 / pixels as f64, x.shape().batch);
        for (sample, parts) in workspace.chunks_exact(chunks * 3 * channels).enumerate() {
            for channel in 0..channels {
                let (mut sum, mut maximum, mut place) = (0.0, T::from_f64(f64::NEG_INFINITY), T::ZERO);
                for part in parts.chunks_exact(3 * channels) {
                    sum += part[channel].to_f64();
                    if part[channels + channel] > maximum {
                        (maximum, place) = (part[channels + channel], part[2 * channels + channel]);
                    }
                }
                out.pixel(sample)[channel] = T::from_f64(sum * scale);
                out.pixel(batch + sample)[channel] = maximum;
                places.pixel(sample)[channel] = place;
            }
        }
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for PixelPool {
    /// As on the CPU.
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let x = inputs[0];
        x.batch * Chunks::most(x.pixels(), x.batch) * 3 * x.channels.stored()
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, places, pooled) = (launcher.output(0), launcher.output(1), launcher.workspace());
        let (x, map) = (launcher.input(0), launcher.input(1));
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        let grid = PixelGrid::new(channels, [&x]);
        let chunks = grid.chunks(pixels, batch);
        launcher
            .kernel(PIXEL_POOL_FORWARD_CHUNKS)
            .pointers([pooled, x.pointer, map.pointer])
            .sizes([pixels, channels, x.stride, map.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, batch))?;
        launcher
            .kernel(PIXEL_POOL_FORWARD)
            .pointers([out.pointer, places.pointer, pooled])
            .sizes([pixels, channels, out.stride, places.stride, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1, 1), (2, 3, 3), (3, 5, 33), (1, 420, 9)].into_iter().map(|(batch, height, channels)| {
        let x = Shape::image(batch, height, 3, channels);
        let map = x.with_channels(Channels::new(1));
        let case = Case::new("pixel_pool", [x, map], |graph, inputs| graph.apply(PixelPool, inputs));
        case.distinct().fraction(1).seeded(1)
    });
    cases.collect()
}
