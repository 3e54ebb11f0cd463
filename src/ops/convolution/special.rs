//! Convolutions that have kernels of their own on CUDA: those of a few vectors, those between one channel and many (the
//! first layer, the head), and CBAM's spatial attention.

use super::cuda::{Geometry, MOST_VECTORS, PART_BLOCKS, PART_PIXELS};
use super::{ConvolutionWeightGradient, Window};
use crate::Result;
use crate::device::cuda::{Grid, Launcher, Operand, Pointer};
use crate::device::kernels::convolution_7x7::{
    ATTENTION_CHANNELS, ATTENTION_THREADS, ATTENTION_WEIGHT_ROWS, ATTENTION_WIDTH,
};
use crate::device::kernels::convolution_one_channel::ONE_CHANNEL_THREADS;
use crate::device::kernels::convolution_tile::VECTORS_THREADS;
use crate::device::kernels::*;
use crate::tensor::{Shape, Storage};

/// Channels that a block has threads for: each thread has 16 bytes, four of f32.
pub(super) const MOST_CHANNELS: usize = 4 * ONE_CHANNEL_THREADS;

/// The kinds of weight gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 1x1 of few pixels, in f32.
    Vectors,
    /// 3x3 of an image of one channel.
    OneInput,
    /// 1x1 to an image of one channel.
    OneOutput,
    /// 7x7 of two channels to one.
    Attention,
}

impl Kind {
    fn of(op: &ConvolutionWeightGradient, dout: &Shape, x: &Shape) -> Option<Kind> {
        let Window { kernel, stride, padding } = op.window;
        let [outputs, inputs] = [dout, x].map(|image| image.channels.stored());
        let [from_full, to_full] = [x, dout].map(|image| image.storage == Storage::Full);
        let plain = stride == [1; 3] && padding == kernel.map(|size| size / 2);
        match (kernel, inputs, outputs) {
            _ if op.groups > 1 => None,
            ([1, 1, 1], ..) if plain && dout.positions() <= MOST_VECTORS => Some(Kind::Vectors),
            ([1, 3, 3], 1, 2..=MOST_CHANNELS) if from_full => Some(Kind::OneInput),
            ([1, 1, 1], 2..=MOST_CHANNELS, 1) if plain && to_full => Some(Kind::OneOutput),
            ([1, 7, 7], ATTENTION_CHANNELS, 1) if plain && from_full && to_full => Some(Kind::Attention),
            _ => None,
        }
    }
}

/// A weight gradient, and how the pixels are divided: by shape alone, as the order of the sum depends on it.
pub(super) struct SpecialWeights {
    kind: Kind,
    window: Window,
    has_bias: bool,
    /// Pixels, rows of pixels or tiles of pixels, of all parts and of each.
    count: usize,
    part: usize,
    pub parts: usize,
}

impl SpecialWeights {
    pub(super) fn of(op: &ConvolutionWeightGradient, dout: &Shape, x: &Shape) -> Option<Self> {
        let kind = Kind::of(op, dout, x)?;
        let [_, height, width] = dout.spatial;
        let rows = dout.positions() / width;
        let (count, least) = match kind {
            Kind::Vectors => (1, 1),
            Kind::OneInput => (rows, PART_PIXELS.div_ceil(width)),
            Kind::OneOutput => (dout.positions(), PART_PIXELS),
            Kind::Attention => {
                (rows / height * height.div_ceil(ATTENTION_WEIGHT_ROWS) * width.div_ceil(ATTENTION_WIDTH), 1)
            }
        };
        let part = count.div_ceil(PART_BLOCKS).max(least);
        let parts = count.div_ceil(part);
        Some(SpecialWeights { kind, window: op.window, has_bias: op.bias, count, part, parts })
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
    pub(super) fn launch(
        &self,
        launcher: &mut Launcher,
        parts: Pointer,
        bias_parts: Option<Pointer>,
        dout: Operand,
        x: Operand,
    ) -> Result<()> {
        let (inputs, outputs, strides) = (x.channels(), dout.channels(), [dout.stride, x.stride]);
        let [_, height, width] = dout.shape.spatial;
        let (kernel, blocks, threads) = match self.kind {
            Kind::Vectors => {
                let elements = (inputs + usize::from(self.has_bias)) * outputs;
                (CONVOLUTION_BACKWARD_WEIGHT_VECTORS, elements.div_ceil(VECTORS_THREADS), VECTORS_THREADS)
            }
            Kind::OneInput => (CONVOLUTION_BACKWARD_WEIGHT_ONE_INPUT, self.parts, ONE_CHANNEL_THREADS),
            Kind::OneOutput => (CONVOLUTION_BACKWARD_WEIGHT_ONE_OUTPUT, self.parts, ONE_CHANNEL_THREADS),
            Kind::Attention => (CONVOLUTION_BACKWARD_WEIGHT_7X7, self.parts, ATTENTION_THREADS),
        };
        let launch = launcher.kernel(kernel).pointers([
            parts,
            bias_parts.unwrap_or(parts.unused(Element::F32)),
            dout.pointer,
            x.pointer,
        ]);
        let launch = match self.kind {
            Kind::Vectors => launch.sizes([dout.positions(), inputs, outputs]).sizes(strides),
            Kind::OneInput => {
                let geometry = Geometry::forward(self.window, x.shape, dout.shape);
                launch.sizes(geometry.sizes()).sizes([outputs]).sizes(strides).sizes([self.part])
            }
            Kind::OneOutput => launch.sizes([self.count, inputs]).sizes(strides).sizes([self.part]),
            Kind::Attention => launch.sizes([height, width]).sizes(strides).sizes([self.count, self.part]),
        };
        launch.flag(self.has_bias).launch(Grid::new([blocks, 1, 1], threads))
    }
}
