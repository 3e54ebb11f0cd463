//! Convolutions that have kernels of their own on CUDA: those of a few vectors, those between one channel and many (the
//! first layer, the head), and CBAM's spatial attention.

use super::cuda::{MOST_VECTORS, PART_BLOCKS, PART_PIXELS};
use super::sums::Sums;
use super::{BiasOf, ConvolutionWeightGradient, Window};
use crate::Result;
use crate::device::cuda::{Grid, Launcher, Operand};
use crate::device::kernels::convolution_7x7::{
    ATTENTION_CHANNELS, ATTENTION_ROWS, ATTENTION_THREADS, ATTENTION_WEIGHT_ROWS, ATTENTION_WIDTH,
};
use crate::device::kernels::convolution_one_channel::{HEAD_LANES, HEAD_PIXELS, ONE_CHANNEL_THREADS};
use crate::device::kernels::convolution_tile::VECTORS_THREADS;
use crate::device::kernels::*;
use crate::tensor::Shape;

/// Channels that a block has threads for: each thread has 16 bytes, four of f32.
pub(super) const MOST_CHANNELS: usize = 4 * ONE_CHANNEL_THREADS;

/// What is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 1x1 of few pixels.
    Vectors,
    /// 3x3 of an image of one channel.
    OneInput,
    /// 1x1 to an image of one channel.
    OneOutput,
    /// 7x7 of two channels to one.
    Attention,
}

impl Kind {
    /// Of a convolution from `x` to `out`; images of one channel, and of two, are stored in full.
    fn of(window: Window, groups: usize, [x, out]: [&Shape; 2]) -> Option<Kind> {
        let Window { kernel, stride, padding } = window;
        if groups > 1 || stride != [1; 3] || padding != kernel.map(|size| size / 2) {
            return None;
        }
        match (kernel, x.channels.stored(), out.channels.stored()) {
            ([1, 1, 1], ..) if out.positions() <= MOST_VECTORS => Some(Kind::Vectors),
            ([1, 3, 3], 1, 2..=MOST_CHANNELS) => Some(Kind::OneInput),
            ([1, 1, 1], 2..=MOST_CHANNELS, 1) => Some(Kind::OneOutput),
            ([1, 7, 7], ATTENTION_CHANNELS, 1) => Some(Kind::Attention),
            _ => None,
        }
    }
}

/// Rows of all images, and the height and width of one.
fn sides(image: &Shape) -> [usize; 3] {
    let [_, height, width] = image.spatial;
    [image.positions() / width, height, width]
}

/// Tiles of so many rows that cover an image.
fn attention_tiles(image: &Shape, tile_rows: usize) -> usize {
    let [rows, height, width] = sides(image);
    rows / height * height.div_ceil(tile_rows) * width.div_ceil(ATTENTION_WIDTH)
}

// ------------------------------------------------------------------ forward and input gradient

/// A launch from source to target pixels: the kernel, and the sizes that it is given.
pub(super) struct SpecialProduct {
    pub kernel: Kernel,
    pub grid: Grid,
    pub sizes: Vec<usize>,
}

impl SpecialProduct {
    /// Forward, from `x` to `out`; `aligned` says whether weights and bias are.
    pub(super) fn forward(window: Window, groups: usize, [out, x]: [Operand; 2], aligned: bool) -> Option<Self> {
        let (pixels, [rows, height, width], strides) = (out.positions(), sides(out.shape), [out.stride, x.stride]);
        match Kind::of(window, groups, [x.shape, out.shape])? {
            Kind::OneInput if aligned && out.is_aligned() => {
                let part = rows.div_ceil(PART_BLOCKS);
                let sizes = [rows, height, width, out.channels(), out.stride, x.stride, part];
                Some(Self::new(CONVOLUTION_FORWARD_ONE_INPUT, rows.div_ceil(part), ONE_CHANNEL_THREADS, &sizes))
            }
            Kind::OneOutput if aligned && x.is_aligned() => {
                let blocks = pixels.div_ceil(ONE_CHANNEL_THREADS / HEAD_LANES * HEAD_PIXELS);
                let sizes = [pixels, x.channels(), out.stride, x.stride];
                Some(Self::new(CONVOLUTION_FORWARD_ONE_OUTPUT, blocks, ONE_CHANNEL_THREADS, &sizes))
            }
            Kind::Attention => Some(Self::attention(CONVOLUTION_FORWARD_7X7, out.shape, strides)),
            _ => None,
        }
    }

    /// The input gradient, from `dout` to `dx`.
    pub(super) fn backward(window: Window, groups: usize, [dx, dout]: [Operand; 2], aligned: bool) -> Option<Self> {
        let (pixels, strides) = (dx.positions(), [dx.stride, dout.stride]);
        match Kind::of(window, groups, [dx.shape, dout.shape])? {
            Kind::OneOutput if aligned && dx.is_aligned() => {
                let part = pixels.div_ceil(PART_BLOCKS).max(PART_PIXELS);
                let sizes = [pixels, dx.channels(), dx.stride, dout.stride, part];
                let kernel = CONVOLUTION_BACKWARD_INPUT_ONE_OUTPUT;
                Some(Self::new(kernel, pixels.div_ceil(part), ONE_CHANNEL_THREADS, &sizes))
            }
            Kind::Attention => Some(Self::attention(CONVOLUTION_BACKWARD_INPUT_7X7, dx.shape, strides)),
            _ => None,
        }
    }

    fn new(kernel: Kernel, blocks: usize, threads: usize, sizes: &[usize]) -> Self {
        SpecialProduct { kernel, grid: Grid::new([blocks, 1, 1], threads), sizes: sizes.to_vec() }
    }

    fn attention(kernel: Kernel, target: &Shape, [target_stride, source_stride]: [usize; 2]) -> Self {
        let [_, height, width] = sides(target);
        let sizes = [height, width, target_stride, source_stride];
        Self::new(kernel, attention_tiles(target, ATTENTION_ROWS), ATTENTION_THREADS, &sizes)
    }
}

// ------------------------------------------------------------------ weight gradient

/// A weight gradient, and how the pixels are divided: by shape alone, as the order of the sum depends on it.
pub(super) struct SpecialWeights {
    kind: Kind,
    has_bias: bool,
    /// Pixels, rows of pixels or tiles of pixels, of all parts and of each.
    count: usize,
    part: usize,
    pub parts: usize,
}

impl SpecialWeights {
    pub(super) fn of(op: &ConvolutionWeightGradient, dout: &Shape, x: &Shape) -> Option<Self> {
        let kind = Kind::of(op.window, op.groups, [x, dout]).filter(|_| op.bias != BiasOf::Taps)?;
        let [rows, _, width] = sides(dout);
        let (count, least) = match kind {
            Kind::Vectors => (1, 1),
            Kind::OneInput => (rows, PART_PIXELS.div_ceil(width)),
            Kind::OneOutput => (dout.positions(), PART_PIXELS),
            Kind::Attention => (attention_tiles(dout, ATTENTION_WEIGHT_ROWS), 1),
        };
        let part = count.div_ceil(PART_BLOCKS).max(least);
        let parts = count.div_ceil(part);
        Some(SpecialWeights { kind, has_bias: op.bias == BiasOf::Out, count, part, parts })
    }

    /// Whether the kernel can read these operands.
    pub(super) fn takes(&self, dout: Operand, x: Operand) -> bool {
        match self.kind {
            Kind::Vectors => [dout, x].iter().all(|operand| operand.element() == Element::F32),
            Kind::OneInput => dout.is_aligned(),
            Kind::OneOutput => x.is_aligned(),
            Kind::Attention => true,
        }
    }

    /// Launches the kernel that writes each part's sums, of the bias's gradient, too, if there is one.
    pub(super) fn launch(&self, launcher: &mut Launcher, sums: &Sums, dout: Operand, x: Operand) -> Result<()> {
        let (inputs, outputs, strides) = (x.channels(), dout.channels(), [dout.stride, x.stride]);
        let [rows, height, width] = sides(dout.shape);
        let (kernel, blocks, threads) = match self.kind {
            Kind::Vectors => {
                let elements = (inputs + usize::from(self.has_bias)) * outputs;
                (CONVOLUTION_BACKWARD_WEIGHT_VECTORS, elements.div_ceil(VECTORS_THREADS), VECTORS_THREADS)
            }
            Kind::OneInput => (CONVOLUTION_BACKWARD_WEIGHT_ONE_INPUT, self.parts, ONE_CHANNEL_THREADS),
            Kind::OneOutput => (CONVOLUTION_BACKWARD_WEIGHT_ONE_OUTPUT, self.parts, ONE_CHANNEL_THREADS),
            Kind::Attention => (CONVOLUTION_BACKWARD_WEIGHT_7X7, self.parts, ATTENTION_THREADS),
        };
        let pointers = [sums.parts(0), sums.parts_if_any(1), dout.pointer, x.pointer];
        let launch = launcher.kernel(kernel).pointers(pointers);
        let launch = match self.kind {
            Kind::Vectors => launch.sizes([dout.positions(), inputs, outputs]).sizes(strides),
            Kind::OneInput => launch.sizes([rows, height, width, outputs]).sizes(strides).sizes([self.part]),
            Kind::OneOutput => launch.sizes([self.count, inputs]).sizes(strides).sizes([self.part]),
            Kind::Attention => launch.sizes([height, width]).sizes(strides).sizes([self.count, self.part]),
        };
        launch.flag(self.has_bias).launch(Grid::new([blocks, 1, 1], threads))
    }
}
