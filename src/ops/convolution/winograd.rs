//! Winograd's convolution F(4 x 4, 3 x 3) on the CPU, for 3x3 convolutions that keep the size: 36 products for each
//! tile of 4 x 4 output pixels instead of 144.
//!
//! The products of many tiles at one point are a matrix product for the tile kernel. A task takes a block of tiles whose
//! points stay in the second-level cache: their inputs are transformed, multiplied with the weights' points, and
//! transformed back. The weight gradient adds its products over a chunk of tiles, and the chunks in order.

use super::cpu::MIN_TASKS;
use super::epilogue::CpuEpilogue;
use super::{Convolution, ConvolutionInputGradient, ConvolutionWeightGradient, Window};
use crate::device::cpu::operand::{Span, SpanMut};
use crate::device::cpu::tile::{Product, Start};
use crate::device::cpu::winograd::{OUTPUTS, POINTS, Square, Transform, Transformation};
use crate::device::cpu::{Cpu, Input, Output, Real};
use crate::tensor::Shape;
use rayon::prelude::*;
use std::ops::Range;

/// With fewer channels the transforms take longer than the products that they save.
const MIN_CHANNELS: usize = 16;
/// Output pixels of an average tile at least; others lie outside of the image.
const MIN_TILE_PIXELS: usize = 8;
/// Tiles that a weight gradient sums over at least. Behind a ReLU, all of a weight's products of few pixels may be zero;
/// over points their sum is nearly so, and the little that is left is a whole step of Adam's.
const MIN_GRADIENT_TILES: usize = 16;
/// Bytes of a block's points: they stay in the second-level cache.
const BLOCK_BYTES: usize = 1 << 19;
/// Tiles of a block at least, if there are so many: weights are read once a block.
const MIN_BLOCK_TILES: usize = 24;
/// Elements between points' matrices, so that they do not all fall on the same places of a cache.
const GAP: usize = 16;

/// The tiles of an image, and how they are divided: by shape alone.
#[derive(Clone, Copy)]
struct Tiling {
    images: usize,
    height: usize,
    width: usize,
    /// Images of a block, and rows of pixels of each.
    block_images: usize,
    block_rows: usize,
}

/// The place of a tile: its image, and its first pixel's row and column.
type Place = [usize; 3];

impl Tiling {
    /// Divides images into blocks of about `tiles` tiles.
    fn new(shape: &Shape, tiles: usize) -> Self {
        let [depth, height, width] = shape.spatial;
        let images = shape.batch * depth;
        let (rows, columns) = (height.div_ceil(OUTPUTS), width.div_ceil(OUTPUTS));
        let block_images = (tiles / (rows * columns)).clamp(1, images);
        let bands = (tiles / columns).clamp(1, rows);
        // Blocks of nearly the same size.
        let block_images = images.div_ceil(images.div_ceil(block_images));
        let block_rows = OUTPUTS * rows.div_ceil(rows.div_ceil(bands));
        Tiling { images, height, width, block_images, block_rows: block_rows.min(height) }
    }

    fn image_blocks(&self) -> usize {
        self.height.div_ceil(self.block_rows)
    }

    fn blocks(&self) -> usize {
        self.images.div_ceil(self.block_images) * self.image_blocks()
    }

    /// Tiles of a block at most.
    fn block_tiles(&self) -> usize {
        self.block_images * self.block_rows.div_ceil(OUTPUTS) * self.width.div_ceil(OUTPUTS)
    }

    /// The rows of pixels of a block, counted over all images.
    fn rows(&self, block: usize) -> Range<usize> {
        let (image, part) = (block / self.image_blocks() * self.block_images, block % self.image_blocks());
        let first = image * self.height + part * self.block_rows;
        let end = (image + self.block_images).min(self.images) * self.height;
        first..(first + self.block_images * self.block_rows).min(end)
    }

    /// The tiles of some rows of pixels, in order.
    fn tiles(&self, rows: Range<usize>) -> impl Iterator<Item = Place> {
        let Tiling { height, width, .. } = *self;
        let bands = rows.filter(move |row| row % height % OUTPUTS == 0);
        bands.flat_map(move |row| (0..width).step_by(OUTPUTS).map(move |x| [row / height, row % height, x]))
    }

    /// The 6 x 6 input pixels of a tile of an image with this stride, zero outside of the image.
    fn inputs(&self, [image, y, x]: Place, stride: usize) -> Square {
        let Tiling { height, width, .. } = *self;
        let first = ((image * height + y) * width + x) as isize - width as isize - 1;
        Square {
            start: first * stride as isize,
            row: width * stride,
            column: stride,
            from: [usize::from(y == 0), usize::from(x == 0)],
            to: [height + 1 - y, width + 1 - x],
        }
    }

    /// The 4 x 4 output pixels of a tile; row `first` of pixels is the first of what is written or read.
    fn outputs(&self, [image, y, x]: Place, stride: usize, first: usize) -> Square {
        let Tiling { height, width, .. } = *self;
        Square {
            start: (((image * height + y - first) * width + x) * stride) as isize,
            row: width * stride,
            column: stride,
            from: [0; 2],
            to: [height - y, width - x],
        }
    }
}

/// A transform without bias and ReLU.
fn plain<T>(transform: Transform, from: Square, to: Square, channels: usize) -> Transformation<'static, T> {
    Transformation { transform, from, to, channels, bias: None, relu: false }
}

/// Tiles of an image.
fn tiles(image: &Shape) -> usize {
    let [depth, height, width] = image.spatial;
    image.batch * depth * height.div_ceil(OUTPUTS) * width.div_ceil(OUTPUTS)
}

/// Whether a convolution between these images is computed in this way.
fn pays(window: Window, groups: usize, x: &Shape, out: &Shape) -> bool {
    window == Window::same(3)
        && groups == 1
        && x.channels.used().min(out.channels.used()) >= MIN_CHANNELS
        && x.positions() >= MIN_TILE_PIXELS * tiles(x)
}

impl Convolution {
    pub(super) fn is_winograd<T: Real>(&self, cpu: &Cpu<T>, x: &Shape, out: &Shape) -> bool {
        cpu.winograd() && pays(self.window, self.groups, x, out)
    }
}

impl ConvolutionInputGradient {
    pub(super) fn is_winograd<T: Real>(&self, cpu: &Cpu<T>, dout: &Shape) -> bool {
        cpu.winograd() && pays(self.window, self.groups, &self.input, dout)
    }
}

impl ConvolutionWeightGradient {
    pub(super) fn is_winograd<T: Real>(&self, cpu: &Cpu<T>, dout: &Shape, x: &Shape) -> bool {
        cpu.winograd() && tiles(x) >= MIN_GRADIENT_TILES && pays(self.window, self.groups, x, dout)
    }
}

// ------------------------------------------------------------------ forward and input gradient

/// The points of weights: for each block of columns and each point a matrix with a row for each input channel.
pub(super) struct WeightPoints<'a, T> {
    points: &'a [T],
    inputs: usize,
    outputs: usize,
}

/// Elements of the points of weights.
pub(super) fn weight_points(weight: &Shape) -> usize {
    weight.elements() / 9 * POINTS
}

impl<'a, T: Real> WeightPoints<'a, T> {
    /// Of a convolution's weights, into `buffer`.
    pub(super) fn forward(cpu: &Cpu<T>, buffer: &'a mut [T], weight: Input<T>, inputs: usize) -> Self {
        let outputs = weight.channels();
        let tap = weight.shape().elements() / 9;
        Self::fill(cpu, buffer, [inputs, outputs], |target, first, columns| {
            for input in 0..inputs {
                let from = Square::whole(input * outputs + first, 3 * tap, tap);
                let to = Square::points(input * columns, inputs * columns);
                cpu.tiles().transform(weight.span(), target, &plain(Transform::Weights, from, to, columns));
            }
        })
    }

    /// Of its input gradient: the kernel is flipped, and its `inputs` and output channels change places.
    pub(super) fn flipped(cpu: &Cpu<T>, buffer: &'a mut [T], weight: Input<T>, inputs: usize) -> Self {
        let (rows, dense, stride) = (weight.shape().positions() / 9, weight.dense(), weight.channels());
        Self::fill(cpu, buffer, [inputs, rows], |target, first, columns| {
            cpu.with_scratch(9 * inputs * columns, |scratch| {
                for (tap, part) in scratch.chunks_exact_mut(inputs * columns).enumerate() {
                    for column in 0..columns {
                        let from = &dense[((8 - tap) * rows + first + column) * stride..][..inputs];
                        from.iter().enumerate().for_each(|(input, &value)| part[input * columns + column] = value);
                    }
                }
                for input in 0..inputs {
                    let from = Square::whole(input * columns, 3 * inputs * columns, inputs * columns);
                    let to = Square::points(input * columns, inputs * columns);
                    let transformation = plain(Transform::Weights, from, to, columns);
                    cpu.tiles().transform(Span::from(&*scratch), target, &transformation);
                }
            });
        })
    }

    /// Calls `fill` for each block of columns with its points, its first column and how many it has.
    fn fill(
        cpu: &Cpu<T>,
        buffer: &'a mut [T],
        [inputs, outputs]: [usize; 2],
        fill: impl Fn(&mut SpanMut<T>, usize, usize) + Sync,
    ) -> Self {
        let block = cpu.tiles().max_columns();
        let points = &mut buffer[..POINTS * inputs * outputs];
        points.par_chunks_mut(POINTS * inputs * block).enumerate().for_each(|(index, part)| {
            let first = index * block;
            fill(&mut SpanMut::from(part), first, block.min(outputs - first));
        });
        WeightPoints { points, inputs, outputs }
    }

    /// Correlates `x` with the weights.
    pub(super) fn correlate(
        &self,
        cpu: &Cpu<T>,
        x: Input<T>,
        out: Output<T>,
        bias: Option<&[T]>,
        epilogue: CpuEpilogue<T>,
    ) {
        let columns = cpu.tiles().max_columns();
        let tiling = self.tiling(x.shape(), columns);
        let channels = x.channels();
        let width = tiling.width;
        let (x_point, out_point) = (tiling.block_tiles() * channels + GAP, tiling.block_tiles() * columns + GAP);
        let images = out.blocks(tiling.block_images * tiling.height * width);
        let blocks = images.flat_map(|part| part.blocks(tiling.block_images * tiling.block_rows * width));
        blocks.for_each(|mut out| {
            let positions = out.positions();
            let rows = positions.start / width..positions.end / width;
            cpu.with_scratch(POINTS * (x_point + out_point), |scratch| {
                let (x_points, out_points) = scratch.split_at_mut(POINTS * x_point);
                let mut target = SpanMut::from(&mut *x_points);
                let mut tiles = 0;
                for (tile, place) in tiling.tiles(rows.clone()).enumerate() {
                    let (from, to) = (tiling.inputs(place, x.stride()), Square::points(tile * channels, x_point));
                    cpu.tiles().transform(x.span(), &mut target, &plain(Transform::Input, from, to, channels));
                    tiles = tile + 1;
                }
                for first in (0..self.outputs).step_by(columns) {
                    let count = columns.min(self.outputs - first);
                    self.multiply(cpu, x_points, [x_point, channels], first, out_points, [out_point, tiles]);
                    let stride = out.stride();
                    for (tile, place) in tiling.tiles(rows.clone()).enumerate() {
                        let transformation = Transformation {
                            transform: Transform::Output,
                            from: Square::points(tile * columns, out_point),
                            to: shifted(tiling.outputs(place, stride, rows.start), first),
                            channels: count,
                            bias: bias.map(|bias| &bias[first..]),
                            relu: epilogue.relu_alone(),
                        };
                        cpu.tiles().transform(Span::from(&*out_points), &mut out.span(), &transformation);
                    }
                }
            });
            epilogue.apply(cpu, &mut out);
        });
    }

    /// Blocks whose points stay in the second-level cache, enough of them for all threads, and not too small.
    fn tiling(&self, x: &Shape, columns: usize) -> Tiling {
        let tile_bytes = POINTS * (x.channels.stored() + columns) * size_of::<T>();
        Tiling::new(x, (BLOCK_BYTES / tile_bytes).min(tiles(x) / MIN_TASKS).max(MIN_BLOCK_TILES))
    }

    /// The products of a block's tiles with the block of columns from `first` on, point by point.
    fn multiply(
        &self,
        cpu: &Cpu<T>,
        x_points: &[T],
        [x_point, channels]: [usize; 2],
        first: usize,
        out_points: &mut [T],
        [out_point, tiles]: [usize; 2],
    ) {
        let block = cpu.tiles().max_columns();
        let columns = block.min(self.outputs - first);
        let mut out = SpanMut::from(out_points);
        for point in 0..POINTS {
            let product = Product {
                a: Span::from(x_points),
                a_start: point * x_point,
                a_row: channels,
                a_step: 1,
                b: Span::from(self.points),
                b_start: POINTS * self.inputs * first + point * self.inputs * columns,
                b_step: columns,
                terms: &[(0, 0)],
                depth: self.inputs,
                out_start: point * out_point,
                out_row: block,
                rows: tiles,
                columns,
                start: Start::Zero,
                relu: false,
            };
            cpu.tiles().run(&mut out, &product);
        }
    }
}

/// A square of the channels from `channel` on.
fn shifted(square: Square, channel: usize) -> Square {
    Square { start: square.start + channel as isize, ..square }
}

// ------------------------------------------------------------------ weight gradient

/// All chunks' sums together have at most this many elements, if there are several.
const CHUNK_ELEMENTS: usize = 1 << 21;
/// Input channels of a task at least, if there are so many.
const MIN_TASK_INPUTS: usize = 32;

/// How the weight gradient's work is divided: by shape alone.
struct Division {
    tiling: Tiling,
    /// Chunks of blocks that are summed apart and added in order.
    chunks: usize,
    chunk_blocks: usize,
    /// Stored input channels, and those of a task.
    inputs: usize,
    task_inputs: usize,
    outputs: usize,
}

impl Division {
    fn new<T: Real>(dout: &Shape, x: &Shape) -> Self {
        let (inputs, outputs) = (x.channels.stored(), dout.channels.stored());
        let most_chunks = (CHUNK_ELEMENTS / (POINTS * inputs * outputs)).clamp(1, MIN_TASKS);
        let parts = MIN_TASKS.div_ceil(most_chunks).min(inputs.div_ceil(MIN_TASK_INPUTS));
        // Vectors of eight channels: what channels are stored in.
        let task_inputs = inputs.div_ceil(parts).next_multiple_of(8);
        let tile_bytes = POINTS * (task_inputs + outputs) * size_of::<T>();
        let block_tiles = (BLOCK_BYTES / tile_bytes).min(tiles(x) / most_chunks).max(MIN_BLOCK_TILES);
        let tiling = Tiling::new(x, block_tiles);
        let chunk_blocks = tiling.blocks().div_ceil(most_chunks);
        let chunks = tiling.blocks().div_ceil(chunk_blocks);
        Division { tiling, chunks, chunk_blocks, inputs, task_inputs, outputs }
    }

    /// Elements of a chunk's sums: for each input channel and point, a row of output channels.
    fn chunk_elements(&self) -> usize {
        self.inputs * POINTS * self.outputs
    }
}

impl ConvolutionWeightGradient {
    pub(super) fn winograd_workspace<T: Real>(dout: &Shape, x: &Shape) -> usize {
        let division = Division::new::<T>(dout, x);
        division.chunks * division.chunk_elements()
    }

    pub(super) fn run_winograd<T: Real>(
        cpu: &Cpu<T>,
        workspace: &mut [T],
        [dout, x]: [Input<T>; 2],
        dweight: Output<T>,
    ) {
        let division = Division::new::<T>(dout.shape(), x.shape());
        let (elements, row) = (division.chunk_elements(), POINTS * division.outputs);
        let sums = &mut workspace[..division.chunks * elements];
        sums.par_chunks_mut(elements).enumerate().for_each(|(chunk, sums)| {
            sums.par_chunks_mut(division.task_inputs * row).enumerate().for_each(|(task, sums)| {
                division.add_chunk(cpu, dout, x, [chunk, task * division.task_inputs], sums);
            });
        });
        let (sums, others) = sums.split_at_mut(elements);
        let outputs = division.outputs;
        sums.par_chunks_mut(row).enumerate().for_each(|(input, sums)| {
            for other in others.chunks_exact(elements) {
                sums.iter_mut().zip(&other[input * row..]).for_each(|(sum, &other)| *sum += other);
            }
            cpu.with_scratch(9 * outputs, |scratch| {
                let (from, to) = (Square::points(0, outputs), Square::whole(0, 3 * outputs, outputs));
                let transformation = plain(Transform::WeightGradient, from, to, outputs);
                cpu.tiles().transform(Span::from(&*sums), &mut SpanMut::from(&mut *scratch), &transformation);
                sums[..9 * outputs].copy_from_slice(scratch);
            });
        });
        let (rows, used) = (dweight.shape().positions() / 9, x.shape().channels.used());
        let sums = &*sums;
        dweight.for_each_pixel(|position, out| {
            let (tap, input) = (position / rows, position % rows);
            match input < used {
                true => out.copy_from_slice(&sums[input * row + tap * outputs..][..outputs]),
                false => out.fill(T::ZERO),
            }
        });
    }
}

impl Division {
    /// Sums the products of a chunk's tiles for the input channels from `first` on.
    fn add_chunk<T: Real>(
        &self,
        cpu: &Cpu<T>,
        dout: Input<T>,
        x: Input<T>,
        [chunk, first]: [usize; 2],
        sums: &mut [T],
    ) {
        let Division { tiling, chunk_blocks, outputs, .. } = *self;
        let inputs = sums.len() / (POINTS * outputs);
        let (x_point, out_point) = (tiling.block_tiles() * inputs + GAP, tiling.block_tiles() * outputs + GAP);
        let blocks = chunk * chunk_blocks..((chunk + 1) * chunk_blocks).min(tiling.blocks());
        cpu.with_scratch(POINTS * (x_point + out_point), |scratch| {
            let (x_points, out_points) = scratch.split_at_mut(POINTS * x_point);
            for block in blocks.clone() {
                let (mut x_target, mut out_target) = (SpanMut::from(&mut *x_points), SpanMut::from(&mut *out_points));
                let mut tiles = 0;
                for (tile, place) in tiling.tiles(tiling.rows(block)).enumerate() {
                    let from = shifted(tiling.inputs(place, x.stride()), first);
                    let t = plain(Transform::Input, from, Square::points(tile * inputs, x_point), inputs);
                    cpu.tiles().transform(x.span(), &mut x_target, &t);
                    let from = tiling.outputs(place, dout.stride(), 0);
                    let t = plain(Transform::OutputGradient, from, Square::points(tile * outputs, out_point), outputs);
                    cpu.tiles().transform(dout.span(), &mut out_target, &t);
                    tiles = tile + 1;
                }
                let fresh = block == blocks.start;
                self.multiply(cpu, (x_points, x_point), (out_points, out_point), [inputs, tiles], fresh, sums);
            }
        });
    }

    /// Adds the products of a block's tiles, point by point.
    fn multiply<T: Real>(
        &self,
        cpu: &Cpu<T>,
        (x_points, x_point): (&[T], usize),
        (out_points, out_point): (&[T], usize),
        [inputs, tiles]: [usize; 2],
        fresh: bool,
        sums: &mut [T],
    ) {
        let block = cpu.tiles().max_columns();
        let mut out = SpanMut::from(sums);
        for point in 0..POINTS {
            for first in (0..self.outputs).step_by(block) {
                let product = Product {
                    a: Span::from(x_points),
                    a_start: point * x_point,
                    a_row: 1,
                    a_step: inputs,
                    b: Span::from(out_points),
                    b_start: point * out_point + first,
                    b_step: self.outputs,
                    terms: &[(0, 0)],
                    depth: tiles,
                    out_start: point * self.outputs + first,
                    out_row: POINTS * self.outputs,
                    rows: inputs,
                    columns: block.min(self.outputs - first),
                    start: if fresh { Start::Zero } else { Start::Out },
                    relu: false,
                };
                cpu.tiles().run(&mut out, &product);
            }
        }
    }
}
