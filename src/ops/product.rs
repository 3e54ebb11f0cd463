//! A tensor times its attention map (equation 4): one factor a pixel (spatial) or one a channel (channel attention).

use super::case::Case;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Chunks, LaneGrid, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{
    PRODUCT_BACKWARD_MAP_CHANNEL, PRODUCT_BACKWARD_MAP_CHANNEL_CHUNKS, PRODUCT_BACKWARD_MAP_PIXEL,
    PRODUCT_FORWARD_CHANNEL, PRODUCT_FORWARD_PIXEL,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// Which factor a product has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    /// One factor for all channels of a pixel.
    Pixel,
    /// One factor for a channel of all pixels of a sample.
    Channel,
}

impl Map {
    fn of(x: &Shape, map: &Shape) -> Result<Self> {
        if map.batch == x.batch && map.spatial == x.spatial && map.channels.count() == 1 {
            Ok(Map::Pixel)
        } else if map.batch == x.batch && map.pixels() == 1 && map.channels == x.channels {
            Ok(Map::Channel)
        } else {
            Err(Error::shape("product", format!("{map} has neither a factor per pixel nor one per channel of {x}")))
        }
    }
}

/// `out = x * map`; inputs `x`, `map`.
#[derive(Debug)]
pub struct Product;

impl Op for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Map::of(inputs[0], inputs[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, map, dout) = (context.inputs[0], context.inputs[1], context.of(0));
        let dmap = graph.shape(map).clone();
        Ok(vec![
            context.wanted[0].then(|| graph.apply_one(Product, &[dout, map])).transpose()?,
            context.wanted[1].then(|| graph.apply_one(ProductMapGradient { map: dmap }, &[dout, x])).transpose()?,
        ])
    }
}

/// `dmap`: the sum of `dout * x` over what each factor multiplies. Inputs `dout`, `x`.
#[derive(Debug)]
pub struct ProductMapGradient {
    /// The shape of the map.
    map: Shape,
}

impl Op for ProductMapGradient {
    fn name(&self) -> &'static str {
        "product_map_gradient"
    }

    fn outputs(&self, _: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![self.map.clone()])
    }
}

// ------------------------------------------------------------------ CPU

/// The factor's kind, of shapes that were checked when the graph was built.
fn kind(x: &Shape, map: &Shape) -> Map {
    Map::of(x, map).expect("shapes were checked when the graph was built")
}

impl<T: Real> OnCpu<T> for Product {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (x, map) = (call.input(0), call.input(1));
        let pixels = x.shape().pixels();
        match kind(x.shape(), map.shape()) {
            Map::Pixel => call.output(0).for_each_pixel(|position, out| {
                let factor = map.pixel(position)[0];
                out.iter_mut().zip(x.pixel(position)).for_each(|(out, &x)| *out = x * factor);
            }),
            Map::Channel => call.output(0).for_each_pixel(|position, out| {
                let factors = map.pixel(position / pixels);
                let values = x.pixel(position).iter().zip(factors);
                out.iter_mut().zip(values).for_each(|(out, (&x, &factor))| *out = x * factor);
            }),
        }
    }
}

/// Pixels that are summed together; chunks are added in order.
const CHUNK_PIXELS: usize = 1024;
/// Partial sums of a pixel's channels, which the compiler makes vectors of.
const LANES: usize = 8;

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: T = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.into_iter().sum::<T>() + rest
}

fn channel_sums<T: Real>(dout: Input<T>, x: Input<T>, chunks: usize, workspace: &mut [T]) {
    let pixels = x.shape().pixels();
    workspace.par_chunks_mut(x.channels()).enumerate().for_each(|(index, sums)| {
        let (sample, chunk) = (index / chunks, index % chunks);
        let end = ((chunk + 1) * CHUNK_PIXELS).min(pixels);
        sums.fill(T::ZERO);
        for position in sample * pixels + chunk * CHUNK_PIXELS..sample * pixels + end {
            let values = dout.pixel(position).iter().zip(x.pixel(position));
            sums.iter_mut().zip(values).for_each(|(sum, (&dout, &x))| *sum += dout * x);
        }
    });
}

impl<T: Real> OnCpu<T> for ProductMapGradient {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        match kind(inputs[1], &self.map) {
            Map::Pixel => 0,
            Map::Channel => inputs[1].batch * inputs[1].pixels().div_ceil(CHUNK_PIXELS) * inputs[1].channels.stored(),
        }
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x) = (call.input(0), call.input(1));
        match kind(x.shape(), &self.map) {
            Map::Pixel => call.output(0).for_each_pixel(|position, dmap| {
                dmap[0] = dot(dout.pixel(position), x.pixel(position));
            }),
            Map::Channel => {
                let chunks = x.shape().pixels().div_ceil(CHUNK_PIXELS);
                let channels = x.channels();
                let workspace = call.workspace();
                channel_sums(dout, x, chunks, workspace);
                let sums = &*workspace;
                call.output(0).for_each_pixel(|sample, dmap| {
                    let parts = &sums[sample * chunks * channels..(sample + 1) * chunks * channels];
                    for (channel, dmap) in dmap.iter_mut().enumerate() {
                        *dmap = parts.iter().skip(channel).step_by(channels).copied().sum();
                    }
                });
            }
        }
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Product {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x, map) = (launcher.output(0), launcher.input(0), launcher.input(1));
        // A factor a channel goes sample by sample.
        let (kernel, grid, samples) = match kind(x.shape, map.shape) {
            Map::Pixel => (PRODUCT_FORWARD_PIXEL, PixelGrid::new(x.channels(), [&out, &x]), 1),
            Map::Channel => (PRODUCT_FORWARD_CHANNEL, PixelGrid::new(x.channels(), [&out, &x, &map]), x.shape.batch),
        };
        let pixels = x.positions() / samples;
        launcher
            .kernel(kernel)
            .pointers([out.pointer, x.pointer, map.pointer])
            .sizes([pixels, x.channels(), out.stride, x.stride, map.stride, grid.width])
            .launch(grid.over(pixels, samples))
    }
}

impl OnCuda for ProductMapGradient {
    /// A sum for each chunk and channel.
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let x = inputs[1];
        match kind(x, &self.map) {
            Map::Pixel => 0,
            Map::Channel => x.batch * Chunks::most(x.pixels(), x.batch) * x.channels.stored(),
        }
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dmap, dout, x) = (launcher.output(0), launcher.input(0), launcher.input(1));
        let (batch, pixels, channels) = (x.shape.batch, x.shape.pixels(), x.channels());
        if kind(x.shape, &self.map) == Map::Pixel {
            let grid = LaneGrid::new(channels, [&dout, &x]);
            return launcher
                .kernel(PRODUCT_BACKWARD_MAP_PIXEL)
                .pointers([dmap.pointer, dout.pointer, x.pointer])
                .sizes([x.positions(), channels, dmap.stride, dout.stride, x.stride, grid.width])
                .launch(grid.over(x.positions()));
        }
        let (grid, sums) = (PixelGrid::new(channels, [&dout, &x]), launcher.workspace());
        let chunks = grid.chunks(pixels, batch);
        launcher
            .kernel(PRODUCT_BACKWARD_MAP_CHANNEL_CHUNKS)
            .pointers([sums, dout.pointer, x.pointer])
            .sizes([pixels, channels, dout.stride, x.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, batch))?;
        launcher
            .kernel(PRODUCT_BACKWARD_MAP_CHANNEL)
            .pointers([dmap.pointer, sums])
            .sizes([channels, dmap.stride, chunks.count])
            .launch(PixelGrid::merging(channels).with_blocks(1, batch))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, height, channels) in [(1, 1, 1), (2, 3, 3), (3, 5, 33), (1, 420, 9)] {
        let x = Shape::image(batch, height, 3, channels);
        let spatial = x.with_channels(Channels::new(1));
        let channel = Shape { spatial: [1; 3], ..x.clone() }.stored_in(Storage::Full);
        for map in [spatial, channel] {
            cases.push(Case::new("product", [x.clone(), map], |graph, inputs| graph.apply(Product, inputs)));
        }
    }
    cases
}
