//! Convolution on the CPU, without columns: the tile kernel reads the pixels where they lie.
//!
//! Forward and input gradient are one routine, [`Correlation`]: a band of output rows is a task; the input
//! rows it needs are copied once into a small bordered buffer (unless there is no border), and every tile of
//! pixels and output channels runs over all taps with its sums in registers.
//! The weight gradient sums over fixed chunks of rows, added in order at the end.
//!
//! 3x3 convolutions of many channels go another way, in `winograd.rs`.

use super::bias::{bias_sums, sum_bias};
use super::epilogue::CpuEpilogue;
use super::winograd::{WeightPoints, weight_points};
use super::{BiasOf, Convolution, ConvolutionInputGradient, ConvolutionWeightGradient, SHORTCUT, Window};
use crate::device::cpu::operand::{Span, SpanMut};
use crate::device::cpu::tile::{Product, Start};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Output, Real};
use crate::ops::affine::AffineTerms;
use crate::ops::residual::BitsInput;
use crate::tensor::Shape;
use rayon::prelude::*;

/// The largest kernel has 7 x 7 x 7 elements.
const MAX_TAPS: usize = 343;
/// Elements of the bordered buffer: it and a block of weights share the second-level cache.
const BAND_ELEMENTS: usize = 1 << 16;
/// Output pixels of a band: enough to use each weight often.
const BAND_PIXELS: usize = 512;
/// Tasks to make at least, if there are that many rows.
pub(super) const MIN_TASKS: usize = 8;

/// Weights packed for the tile kernel: for each group and block of output channels, a matrix with a row
/// for each tap and input channel.
pub(in crate::ops) struct Weights<'a, T> {
    packed: &'a [T],
    inputs: usize,
    outputs: usize,
}

impl<'a, T: Real> Weights<'a, T> {
    /// Packs into `buffer`, of `taps * inputs * outputs * groups` elements; `weight(group, tap, input, output)`
    /// says what is where, with the channels counted within the group.
    pub(in crate::ops) fn pack(
        cpu: &Cpu<T>,
        buffer: &'a mut [T],
        [groups, taps, inputs, outputs]: [usize; 4],
        weight: impl Fn(usize, usize, usize, usize) -> T + Sync,
    ) -> Self {
        let block = cpu.tiles().max_columns();
        let buffer = &mut buffer[..groups * taps * inputs * outputs];
        buffer.par_chunks_mut(taps * inputs * outputs).enumerate().for_each(|(group, part)| {
            part.par_chunks_mut(taps * inputs * block).enumerate().for_each(|(index, part)| {
                let start = index * block;
                let columns = block.min(outputs - start);
                for (row, part) in part.chunks_exact_mut(columns).enumerate() {
                    let (tap, input) = (row / inputs, row % inputs);
                    for (column, value) in part.iter_mut().enumerate() {
                        *value = weight(group, tap, input, start + column);
                    }
                }
            });
        });
        Weights { packed: buffer, inputs, outputs }
    }
}

/// Every output pixel is the sum, over the taps of a window, of an input pixel times the tap's weights.
pub(in crate::ops) struct Correlation<'a, T> {
    pub window: Window,
    /// Zeros between the input's rows and columns: the stride of the convolution whose gradient this is.
    pub dilation: [usize; 3],
    pub groups: usize,
    pub weights: Weights<'a, T>,
    /// What the sums begin with, output channel by output channel.
    pub start: Start<'a, T>,
    pub epilogue: CpuEpilogue<'a, T>,
}

impl<T: Real> Correlation<'_, T> {
    pub(in crate::ops) fn run(&self, cpu: &Cpu<T>, x: Input<T>, out: Output<T>) {
        assert!(self.window.taps() <= MAX_TAPS, "a kernel has at most {MAX_TAPS} elements");
        let [_, height, width] = out.shape().spatial;
        let bordered = self.window.padding != [0; 3] || self.dilation != [1; 3];
        let rows = self.band_rows(x.shape(), out.shape());
        let [kernel_depth, kernel_height, kernel_width] = self.window.kernel;
        let band = [
            kernel_depth,
            (rows - 1) * self.window.stride[1] + kernel_height,
            (width - 1) * self.window.stride[2] + kernel_width,
        ];
        let channels = self.groups * self.weights.inputs;
        out.blocks(rows * width).for_each(|mut out| {
            let row = out.positions().start / width;
            let [sample, z, y] = split_row(row, out.shape());
            debug_assert_eq!(y % rows, 0, "a band lies in one image: {height}");
            let corner = [z * self.window.stride[0], y * self.window.stride[1]];
            if bordered {
                cpu.with_scratch(band.iter().product::<usize>() * channels, |scratch| {
                    self.copy_band(x, sample, corner, band, channels, scratch);
                    self.run_band(cpu, Span::from(&*scratch), 0, band, channels, &mut out);
                });
            } else {
                let [depth, height, width] = x.shape().spatial;
                let start = ((sample * depth + corner[0]) * height + corner[1]) * width * x.stride();
                self.run_band(cpu, x.span(), start, [depth, height, width], x.stride(), &mut out);
            }
            self.epilogue.apply(cpu, &mut out);
        });
    }

    /// Output rows of a band: a divisor of the height, so that no band crosses from one image to the next.
    fn band_rows(&self, x: &Shape, out: &Shape) -> usize {
        let [depth, height, width] = out.spatial;
        let in_width = (width - 1) * self.window.stride[2] + self.window.kernel[2];
        let row_elements = in_width * self.window.kernel[0] * x.channels.stored();
        let fits = |rows: usize| {
            let in_rows = (rows - 1) * self.window.stride[1] + self.window.kernel[1];
            rows * width <= BAND_PIXELS
                && in_rows * row_elements <= BAND_ELEMENTS
                && out.batch * depth * height / rows >= MIN_TASKS
        };
        (1..=height).rev().find(|&rows| height % rows == 0 && (rows == 1 || fits(rows))).unwrap_or(1)
    }

    /// Copies the input rows of a band, with zeros where there is no input.
    fn copy_band(
        &self,
        x: Input<T>,
        sample: usize,
        corner: [usize; 2],
        [band_depth, band_height, band_width]: [usize; 3],
        channels: usize,
        scratch: &mut [T],
    ) {
        let [depth, height, width] = x.shape().spatial;
        let source = |axis: usize, at: usize, size: usize| {
            let inside = at.checked_sub(self.window.padding[axis])?;
            let index = inside / self.dilation[axis];
            (inside % self.dilation[axis] == 0 && index < size).then_some(index)
        };
        for (line, pixels) in scratch.chunks_exact_mut(band_width * channels).enumerate().take(band_depth * band_height)
        {
            let z = source(0, corner[0] + line / band_height, depth);
            let y = source(1, corner[1] + line % band_height, height);
            let (Some(z), Some(y)) = (z, y) else {
                pixels.fill(T::ZERO);
                continue;
            };
            let first = ((sample * depth + z) * height + y) * width;
            for (at, pixel) in pixels.chunks_exact_mut(channels).enumerate() {
                match source(2, at, width) {
                    Some(index) => pixel.copy_from_slice(&x.pixel(first + index)[..channels]),
                    None => pixel.fill(T::ZERO),
                }
            }
        }
    }

    /// Computes a band of output rows from input rows of the given size and pixel stride.
    fn run_band(&self, cpu: &Cpu<T>, a: Span<T>, a_start: usize, size: [usize; 3], stride: usize, out: &mut Output<T>) {
        let [_, in_height, in_width] = size;
        let (width, out_stride) = (out.shape().spatial[2], out.stride());
        let rows = out.positions().len() / width;
        let Weights { packed, inputs, outputs } = self.weights;
        let (taps, block) = (self.window.taps(), cpu.tiles().max_columns());
        let mut terms = [(0, 0); MAX_TAPS];
        for group in 0..self.groups {
            for start in (0..outputs).step_by(block) {
                let columns = block.min(outputs - start);
                let channel = group * outputs + start;
                for (tap, [z, y, x]) in self.window.offsets().enumerate() {
                    terms[tap] = (((z * in_height + y) * in_width + x) * stride, tap * inputs * columns);
                }
                for row in 0..rows {
                    let product = Product {
                        a,
                        a_start: a_start + row * self.window.stride[1] * in_width * stride + group * inputs,
                        a_row: self.window.stride[2] * stride,
                        a_step: 1,
                        b: Span::from(packed),
                        b_start: (group * outputs + start) * taps * inputs,
                        b_step: columns,
                        terms: &terms[..taps],
                        depth: inputs,
                        out_start: row * width * out_stride + channel,
                        out_row: out_stride,
                        rows: width,
                        columns,
                        start: match self.start {
                            Start::Bias(bias) => Start::Bias(&bias[channel..]),
                            start => start,
                        },
                        relu: self.epilogue.relu_alone(),
                    };
                    cpu.tiles().run(&mut out.span(), &product);
                }
            }
        }
    }
}

/// Sample, depth and height of a row of pixels.
fn split_row(row: usize, shape: &Shape) -> [usize; 3] {
    let [depth, height, _] = shape.spatial;
    [row / height / depth, row / height % depth, row % height]
}

/// Input channels that take part, of each group.
fn group_inputs(x: &Shape, groups: usize) -> usize {
    x.channels.used() / groups
}

impl<T: Real> OnCpu<T> for Convolution {
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        self.packed(cpu, [inputs[0], inputs[1]], outputs[0])
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (x, weight) = (call.input(0), call.input(1));
        let bias = self.has_bias(call.inputs()).then(|| call.input(2));
        let first = self.first_added(call.inputs());
        let out = call.output(0);
        let saturates = self.is_limited(call.inputs(), x.shape(), out.shape());
        let epilogue = CpuEpilogue {
            added: self.add.then(|| call.input(first)),
            affine: self.affine.then(|| AffineTerms::new(first, |index| call.input(index))),
            relu: self.relu,
            mask: None,
            saturates,
        };
        let start = bias.map_or(Start::Zero, |bias| Start::Bias(bias.dense()));
        self.compute(cpu, call.workspace(), [x, weight], out, start, epilogue);
    }
}

impl Convolution {
    /// Elements of the weights as [`Convolution::compute`] packs them.
    pub(in crate::ops) fn packed<T: Real>(&self, cpu: &Cpu<T>, [x, weight]: [&Shape; 2], out: &Shape) -> usize {
        if self.is_winograd(cpu, x, out) { weight_points(weight) } else { weight.elements() }
    }

    /// Adds the products of `x` and `weight` to what the sums start from; packs the weights into `workspace`.
    pub(in crate::ops) fn compute<T: Real>(
        &self,
        cpu: &Cpu<T>,
        workspace: &mut [T],
        [x, weight]: [Input<T>; 2],
        out: Output<T>,
        start: Start<T>,
        epilogue: CpuEpilogue<T>,
    ) {
        if self.is_winograd(cpu, x.shape(), out.shape()) {
            let bias = match start {
                Start::Zero => None,
                Start::Bias(bias) => Some(bias),
                Start::Out => unreachable!("Winograd's products are not added to others"),
            };
            let weights = WeightPoints::forward(cpu, workspace, weight, x.shape().channels.used());
            return weights.correlate(cpu, x, out, bias, epilogue);
        }
        let rows = weight.shape().positions() / self.window.taps();
        let outputs = weight.channels() / self.groups;
        let inputs = group_inputs(x.shape(), self.groups);
        let dense = weight.dense();
        let columns = weight.channels();
        let weights = Weights::pack(
            cpu,
            workspace,
            [self.groups, self.window.taps(), inputs, outputs],
            |group, tap, input, output| dense[(tap * rows + input) * columns + group * outputs + output],
        );
        let correlation =
            Correlation { window: self.window, dilation: [1; 3], groups: self.groups, weights, start, epilogue };
        correlation.run(cpu, x, out);
    }
}

impl<T: Real> OnCpu<T> for ConvolutionInputGradient {
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let main = if self.is_winograd(cpu, inputs[0]) { weight_points(inputs[1]) } else { inputs[1].elements() };
        if self.residual { inputs[0].elements() + main.max(inputs[2].elements()) } else { main }
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (dout, weight, workspace) = (call.input(0), call.input(1), call.workspace());
        let first = self.first_added();
        let epilogue = CpuEpilogue {
            added: self.add.then(|| call.input(first)),
            affine: self.affine.then(|| AffineTerms::new(first, |index| call.input(index))),
            relu: false,
            mask: self.mask.then(|| call.input(call.inputs() - 1)),
            saturates: false,
        };
        let mut dx = call.output(0);
        if !self.residual {
            let main = Factors { window: self.window, dout, weight };
            return self.add_products(cpu, workspace, main, dx, Start::Zero, epilogue);
        }
        let (shortcut, positive) = (call.input(2), BitsInput::new(call.input(3), dout.channels()));
        let (masked, workspace) = positive.mask_into(workspace, dout);
        let main = Factors { window: self.window, dout: masked, weight };
        self.add_products(cpu, workspace, main, dx.lend(), Start::Zero, CpuEpilogue::default());
        let shortcut = Factors { window: SHORTCUT, dout, weight: shortcut };
        self.add_products(cpu, workspace, shortcut, dx, Start::Out, epilogue);
    }
}

/// What an input gradient is a product of.
struct Factors<'a, T> {
    window: Window,
    dout: Input<'a, T>,
    weight: Input<'a, T>,
}

impl ConvolutionInputGradient {
    /// Adds products to what `dx` starts from.
    fn add_products<T: Real>(
        &self,
        cpu: &Cpu<T>,
        workspace: &mut [T],
        Factors { window, dout, weight }: Factors<T>,
        dx: Output<T>,
        start: Start<T>,
        epilogue: CpuEpilogue<T>,
    ) {
        if window == self.window && self.is_winograd(cpu, dout.shape()) {
            let weights = WeightPoints::flipped(cpu, workspace, weight, dout.shape().channels.used());
            return weights.correlate(cpu, dout, dx, None, epilogue);
        }
        let taps = window.taps();
        let rows = weight.shape().positions() / taps;
        let columns = weight.channels();
        let inputs = group_inputs(dout.shape(), self.groups);
        let dense = weight.dense();
        // The kernel is flipped, and its input and output channels change places.
        let weights = Weights::pack(cpu, workspace, [self.groups, taps, inputs, rows], |group, tap, input, output| {
            dense[((taps - 1 - tap) * rows + output) * columns + group * inputs + input]
        });
        let Window { kernel, stride, padding } = window;
        let padding = std::array::from_fn(|axis| kernel[axis] - 1 - padding[axis]);
        let window = Window { kernel, stride: [1; 3], padding };
        let correlation = Correlation { window, dilation: stride, groups: self.groups, weights, start, epilogue };
        correlation.run(cpu, dout, dx);
    }
}

/// How the weight gradient's work is divided: by shape alone.
struct Division {
    /// Rows of output pixels that are summed apart and added in order.
    chunks: usize,
    rows_per_chunk: usize,
    /// Rows that a tile sums before it is written back.
    rows_per_pass: usize,
    /// Input channels of a tile.
    tile: usize,
    tiles: usize,
    /// Tiles of a task.
    tiles_per_task: usize,
}

/// A tile sums over this many pixels before it is written back: they stay in the second-level cache.
const PASS_PIXELS: usize = 2048;
const MAX_PASS_ROWS: usize = 256;
const MAX_CHUNKS: usize = 16;
/// All chunks' sums together have at most this many elements, if there are several.
const CHUNK_ELEMENTS: usize = 1 << 21;

impl ConvolutionWeightGradient {
    fn division<T: Real>(&self, cpu: &Cpu<T>, dout: &Shape, x: &Shape) -> Division {
        let width = dout.spatial[2];
        let rows = dout.positions() / width;
        let rows_per_pass = (PASS_PIXELS / width).clamp(1, MAX_PASS_ROWS);
        let tile = cpu.tiles().max_rows();
        let tiles = group_inputs(x, self.groups).div_ceil(tile);
        let elements = tiles * tile * self.window.taps() * dout.channels.stored();
        let passes = rows.div_ceil(rows_per_pass);
        let chunks = passes.min(MAX_CHUNKS).min((CHUNK_ELEMENTS / elements).max(1));
        let rows_per_chunk = passes.div_ceil(chunks) * rows_per_pass;
        let chunks = rows.div_ceil(rows_per_chunk);
        let tasks_per_chunk = MIN_TASKS.div_ceil(chunks).min(tiles);
        let tiles_per_task = tiles.div_ceil(tasks_per_chunk);
        Division { chunks, rows_per_chunk, rows_per_pass, tile, tiles, tiles_per_task }
    }

    /// Adds the rows from `first` to `last` to the sums of the tiles from `first_tile` on, which `sums` holds:
    /// for each tile a matrix with a row for each tap and input channel of the tile.
    fn add_rows<T: Real>(&self, cpu: &Cpu<T>, operands: &Operands<T>, tiles: TileRange, fresh: bool, sums: &mut [T]) {
        let Operands { dout, x, rows: (first, last) } = *operands;
        let outputs = dout.channels() / self.groups;
        let inputs = group_inputs(x.shape(), self.groups);
        let block = cpu.tiles().max_columns();
        let mut terms = [(0, 0); MAX_PASS_ROWS];
        let tile_elements = tiles.size * self.window.taps() * dout.channels();
        for (index, sums) in sums.chunks_exact_mut(tile_elements).enumerate() {
            let input = (tiles.first + index) * tiles.size;
            let mut out = SpanMut::from(sums);
            for channel in
                (0..self.groups).flat_map(|group| (0..outputs).step_by(block).map(move |start| (group, start)))
            {
                let (group, start) = channel;
                for (tap, offset) in self.window.offsets().enumerate() {
                    let Some(overlap) = Overlap::new(self.window, offset, x.shape(), dout.shape()) else { continue };
                    let mut count = 0;
                    for row in first..last {
                        if let Some(source) = overlap.source_row(row) {
                            let (a, b) = (source * x.shape().spatial[2], row * dout.shape().spatial[2]);
                            terms[count] = (a * x.stride(), b * dout.stride());
                            count += 1;
                        }
                    }
                    let product = Product {
                        a: x.span(),
                        a_start: overlap.first_input * x.stride() + group * inputs + input,
                        a_row: 1,
                        a_step: self.window.stride[2] * x.stride(),
                        b: dout.span(),
                        b_start: overlap.first_output * dout.stride() + group * outputs + start,
                        b_step: dout.stride(),
                        terms: &terms[..count],
                        depth: overlap.pixels,
                        out_start: tap * tiles.size * dout.channels() + group * outputs + start,
                        out_row: dout.channels(),
                        rows: tiles.size.min(inputs - input),
                        columns: block.min(outputs - start),
                        start: if fresh { Start::Zero } else { Start::Out },
                        relu: false,
                    };
                    cpu.tiles().run(&mut out, &product);
                }
            }
        }
    }
}

/// The operands of a pass over some rows of output pixels.
struct Operands<'a, T> {
    dout: Input<'a, T>,
    x: Input<'a, T>,
    rows: (usize, usize),
}

#[derive(Clone, Copy)]
struct TileRange {
    first: usize,
    size: usize,
}

/// The part of a row of output pixels whose input, at one tap, is not padding.
struct Overlap<'a> {
    window: Window,
    offset: [usize; 3],
    x: &'a Shape,
    dout: &'a Shape,
    first_input: usize,
    first_output: usize,
    pixels: usize,
}

impl<'a> Overlap<'a> {
    fn new(window: Window, offset: [usize; 3], x: &'a Shape, dout: &'a Shape) -> Option<Self> {
        let (stride, padding) = (window.stride[2], window.padding[2]);
        let first_output = padding.saturating_sub(offset[2]).div_ceil(stride);
        let first_input = first_output * stride + offset[2] - padding;
        let room = x.spatial[2].checked_sub(first_input + 1)? / stride + 1;
        let pixels = room.min(dout.spatial[2].checked_sub(first_output)?);
        (pixels > 0).then_some(Overlap { window, offset, x, dout, first_input, first_output, pixels })
    }

    /// The row of input pixels that a row of output pixels meets, unless it is padding.
    fn source_row(&self, row: usize) -> Option<usize> {
        let [sample, z, y] = split_row(row, self.dout);
        let [depth, height, _] = self.x.spatial;
        let axis = |axis: usize, at: usize, size: usize| {
            let index = (at * self.window.stride[axis] + self.offset[axis]).checked_sub(self.window.padding[axis])?;
            (index < size).then_some(index)
        };
        Some((sample * depth + axis(0, z, depth)?) * height + axis(1, y, height)?)
    }
}

impl<T: Real> OnCpu<T> for ConvolutionWeightGradient {
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        self.cpu_workspace(cpu, [inputs[0], inputs[1]])
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (inputs, workspace) = ([call.input(0), call.input(1)], call.workspace());
        let (dweight, dbias) = (call.output(0), (self.bias != BiasOf::Nothing).then(|| call.output(1)));
        self.compute(cpu, workspace, inputs, dweight, dbias);
    }
}

impl ConvolutionWeightGradient {
    /// Elements of workspace.
    pub(in crate::ops) fn cpu_workspace<T: Real>(&self, cpu: &Cpu<T>, [dout, x]: [&Shape; 2]) -> usize {
        let sums = if self.is_winograd(cpu, dout, x) {
            Self::winograd_workspace::<T>(dout, x)
        } else {
            let Division { chunks, tiles, tile, .. } = self.division(cpu, dout, x);
            chunks * tiles * tile * self.window.taps() * dout.channels.stored()
        };
        sums.max(self.bias_terms(dout, x).map_or(0, |(terms, kernel)| bias_sums(terms, kernel)))
    }

    /// Computes the gradients of the weights and, if there is one, of the bias.
    pub(in crate::ops) fn compute<T: Real>(
        &self,
        cpu: &Cpu<T>,
        workspace: &mut [T],
        [dout, x]: [Input<T>; 2],
        dweight: Output<T>,
        dbias: Option<Output<T>>,
    ) {
        if let Some((dbias, (terms, kernel))) = dbias.zip(self.bias_terms(dout, x)) {
            sum_bias(terms, kernel, workspace, dbias);
        }
        if self.is_winograd(cpu, dout.shape(), x.shape()) {
            return Self::run_winograd(cpu, workspace, [dout, x], dweight);
        }
        let division = self.division(cpu, dout.shape(), x.shape());
        let Division { rows_per_chunk, rows_per_pass, tile, tiles, tiles_per_task, .. } = division;
        let (taps, columns) = (self.window.taps(), dout.channels());
        let rows = dout.shape().positions() / dout.shape().spatial[2];
        let tile_elements = taps * tile * columns;
        let sums = &mut workspace[..division.chunks * tiles * tile_elements];
        let chunk_rows = |chunk: usize| chunk * rows_per_chunk..((chunk + 1) * rows_per_chunk).min(rows);
        sums.par_chunks_mut(tiles * tile_elements).enumerate().for_each(|(chunk, sums)| {
            sums.par_chunks_mut(tiles_per_task * tile_elements).enumerate().for_each(|(task, sums)| {
                let range = chunk_rows(chunk);
                for first in range.clone().step_by(rows_per_pass) {
                    let operands = Operands { dout, x, rows: (first, (first + rows_per_pass).min(range.end)) };
                    let tiles = TileRange { first: task * tiles_per_task, size: tile };
                    self.add_rows(cpu, &operands, tiles, first == range.start, sums);
                }
            });
        });
        let inputs = group_inputs(x.shape(), self.groups);
        let matrix_rows = dweight.shape().positions() / taps;
        let sums = &*sums;
        dweight.for_each_pixel(|row, out| {
            let (tap, input) = (row / matrix_rows, row % matrix_rows);
            out.fill(T::ZERO);
            // Taps that only ever met padding were never written.
            if input < inputs
                && Overlap::new(self.window, tap_offset(self.window.kernel, tap), x.shape(), dout.shape()).is_some()
            {
                let start = (input / tile) * tile_elements + (tap * tile + input % tile) * columns;
                for chunk in sums.chunks_exact(tiles * tile_elements) {
                    out.iter_mut().zip(&chunk[start..]).for_each(|(out, &sum)| *out += sum);
                }
            }
        });
    }
}

pub(super) fn tap_offset([_, height, width]: [usize; 3], tap: usize) -> [usize; 3] {
    [tap / (height * width), tap / width % height, tap % width]
}
