//! The ops: one file each, or a folder, in this order: the op and its shape rule, its gradient, its CPU code, its CUDA launch.
//!
//! | file | op | in the paper |
//! |---|---|---|
//! | [`convolution`] | convolution, with bias and ReLU | every block |
//! | [`transposed_convolution`] | 2x2 convolution that doubles the size | decoder |
//! | [`batch_norm`] | batch normalisation, and max pooling of its result | every block, encoder |
//! | [`fold`] | batch normalisation given to a linear layer | |
//! | [`fold_residual`] | batch normalisation given to a residual block | |
//! | [`border`] | what is added at the border of an image | |
//! | [`affine`] | a scale and an offset for each channel | |
//! | [`relu`], [`sigmoid`] | activations | |
//! | [`residual`] | a residual block's two convolutions and their sum | equation 1 |
//! | [`add`] | sums of two tensors, of gradients above all | |
//! | [`transpose_weight`] | weights for the gradient of a convolution's input | |
//! | [`concat`] | concatenation of channels | section 2.1 |
//! | [`channel_pool`], [`pixel_pool`] | CBAM's mean and max over channels, over pixels | equations 2, 3 |
//! | [`channel_gate`] | a tensor times its maps of pixels and of channels, the sigmoid of what the shared MLP gives | equations 3, 4 |
//! | [`attention`] | what these give to the gradients of CBAM's tensor and of its map of pixels | |
//! | [`dice_loss`] | soft Dice loss | section 3.1 |
//! | [`robust_dice_loss`] | Dice loss that bears noisy masks | compared with section 2.4 |
//! | [`adam`] | the optimizer | |

pub mod adam;
pub mod add;
pub mod affine;
pub mod attention;
pub mod batch_norm;
pub mod border;
pub mod case;
pub mod channel_gate;
pub mod channel_pool;
pub mod concat;
pub mod convolution;
pub mod dice_loss;
pub mod fold;
pub mod fold_residual;
pub mod pixel_pool;
mod pooled_loss;
pub mod relu;
pub mod residual;
pub mod robust_dice_loss;
pub mod sigmoid;
pub mod transpose_weight;
pub mod transposed_convolution;
pub mod window;

use crate::Result;
use crate::device::cpu::OnCpu;
use crate::device::cuda::OnCuda;
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;
use case::Case;
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// An op: what a graph, a plan and the devices need to know of it.
pub trait Op: OnCpu<f32> + OnCpu<f64> + OnCuda + Any + Debug + Send + Sync {
    /// The op's name: the stem of its file, with the part of it if there are several.
    fn name(&self) -> &'static str;

    /// The outputs' shapes for these inputs.
    ///
    /// # Errors
    /// If the op cannot work on them; the message names them.
    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>>;

    /// Adds the nodes that compute the gradient of each input that is wanted.
    ///
    /// # Errors
    /// If a node cannot be built, which is a bug in the op.
    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let _ = graph;
        Ok(vec![None; context.inputs.len()])
    }

    /// Whether output 0 ends in a ReLU. The gradient that [`Op::gradient`] gets of it is then zero where it is.
    fn ends_in_relu(&self) -> bool {
        false
    }

    /// What computes the same of `inputs`, with `added` added to output 0, if a pass over the tensors is saved by it.
    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let _ = (inputs, added);
        None
    }

    /// What computes output 0 of this op, of `inputs`, plus that of `other`, of `others`, if it takes one pass for both.
    fn joined(&self, inputs: &[ValueId], other: &dyn Op, others: &[ValueId]) -> Option<Rewritten> {
        let _ = (inputs, other, others);
        None
    }

    /// What computes the same of `inputs`, but zero in output 0 wherever `mask` is not above 0, if a pass over the
    /// tensors is saved by it.
    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        let _ = (inputs, mask);
        None
    }

    /// As [`Op::masked`], but in these stored channels alone.
    fn masked_channels(&self, inputs: &[ValueId], mask: ValueId, channels: Range<usize>) -> Option<Rewritten> {
        let _ = (inputs, mask, channels);
        None
    }

    /// Whether output 0, where tensor cores compute it and fp16 cannot hold it, is the largest that fp16 holds: in the
    /// forward pass that does no harm, while gradients have to overflow, so that the loss scale is lowered.
    fn saturates(&self, inputs: &[&Shape], outputs: &[&Shape]) -> bool {
        let _ = (inputs, outputs);
        false
    }

    /// Pairs (output, input): that output may be stored over that input, element by element.
    /// An input that lives in state is updated in this way.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Floating-point operations of one run, a multiply-add counting two. Zero where memory decides.
    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        let _ = (inputs, outputs);
        0
    }

    /// Whether it is small and only makes an input of a later op ready: it may run beside what comes before that.
    fn only_prepares(&self) -> bool {
        false
    }

    /// Whether there is nothing to run: the op only says where values lie.
    fn is_free(&self) -> bool {
        false
    }
}

/// An op and its inputs, in place of another.
pub type Rewritten = (Arc<dyn Op>, Vec<ValueId>);

/// What an op sees of itself when it is differentiated.
pub struct Gradient<'a> {
    pub inputs: &'a [ValueId],
    pub outputs: &'a [ValueId],
    /// The gradient of each output, if it has any.
    pub gradients: &'a [Option<ValueId>],
    /// Whether each input's gradient is wanted.
    pub wanted: &'a [bool],
}

impl Gradient<'_> {
    /// The gradient of output `index`, which must have one.
    pub fn of(&self, index: usize) -> ValueId {
        self.gradients[index].expect("the op's main output has a gradient")
    }
}

/// The cases that check and time every op.
pub fn cases() -> Vec<Case> {
    [
        adam::cases(),
        add::cases(),
        affine::cases(),
        attention::cases(),
        batch_norm::cases(),
        border::cases(),
        channel_gate::cases(),
        channel_pool::cases(),
        concat::cases(),
        convolution::cases(),
        dice_loss::cases(),
        fold::cases(),
        fold_residual::cases(),
        pixel_pool::cases(),
        relu::cases(),
        residual::cases(),
        robust_dice_loss::cases(),
        sigmoid::cases(),
        transpose_weight::cases(),
        transposed_convolution::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
