//! What becomes of a convolution's sums, of any direction, before they are stored.

use crate::Result;
use crate::device::cpu::{Cpu, Input, Output, Real};
use crate::device::cuda::{Elements, Launcher, Operand};
use crate::device::kernels::{ADD_FORWARD, RELU_BACKWARD};
use crate::ops::affine::AffineTerms;
use crate::tensor::Storage;

// ------------------------------------------------------------------ CPU

/// What becomes of an output once its sums are there, in this order.
#[derive(Clone, Copy)]
pub(in crate::ops) struct CpuEpilogue<'a, T> {
    /// Added, of the output's shape.
    pub added: Option<Input<'a, T>>,
    /// Added likewise.
    pub affine: Option<AffineTerms<Input<'a, T>>>,
    /// Negative values become zero,
    pub relu: bool,
    /// and so do those where this is not above zero.
    pub mask: Option<Input<'a, T>>,
    /// As [`Op::saturates`] says.
    pub saturates: bool,
}

impl<T> Default for CpuEpilogue<'_, T> {
    fn default() -> Self {
        CpuEpilogue { added: None, affine: None, relu: false, mask: None, saturates: false }
    }
}

impl<T: Real> CpuEpilogue<'_, T> {
    /// Whether a ReLU is all there is, which the sums' own code does.
    pub(super) fn relu_alone(&self) -> bool {
        self.relu && !self.has_tensors()
    }

    fn has_tensors(&self) -> bool {
        self.added.is_some() || self.affine.is_some() || self.mask.is_some()
    }

    pub(super) fn apply(&self, cpu: &Cpu<T>, out: &mut Output<T>) {
        if !self.has_tensors() {
            return;
        }
        let reduced = out.shape().storage == Storage::Reduced;
        for position in out.positions() {
            let pixel = out.pixel(position);
            // A GPU adds to what it has rounded.
            if reduced && (self.added.is_some() || self.affine.is_some()) {
                cpu.round(pixel, self.saturates);
            }
            if let Some(added) = self.added {
                pixel.iter_mut().zip(added.pixel(position)).for_each(|(out, &added)| *out += added);
            }
            if let Some(affine) = self.affine {
                affine.for_each(position, pixel, |out, value| *out += value);
            }
            if self.relu {
                pixel.iter_mut().for_each(|out| *out = if *out > T::ZERO { *out } else { T::ZERO });
            }
            if let Some(mask) = self.mask {
                let masked = pixel.iter_mut().zip(mask.pixel(position));
                masked.for_each(|(out, &mask)| *out = if mask > T::ZERO { *out } else { T::ZERO });
            }
        }
    }
}

// ------------------------------------------------------------------ CUDA

/// What becomes of a target once its sums are there, in this order.
#[derive(Clone, Copy, Default)]
pub(in crate::ops) struct Epilogue<'a> {
    /// Added, of the target's shape.
    pub added: Option<Operand<'a>>,
    /// Added likewise.
    pub affine: Option<AffineTerms<Operand<'a>>>,
    /// Negative values become zero,
    pub relu: bool,
    /// and so do those where this is not above zero.
    pub mask: Option<Operand<'a>>,
}

impl Epilogue<'_> {
    /// In passes of their own, behind kernels that do no more than a ReLU.
    pub(super) fn launch(&self, launcher: &mut Launcher, target: Operand) -> Result<()> {
        let pass = |launcher: &mut Launcher, kernel, other: Operand, relu: Option<bool>| {
            let operands = [target, target, other];
            let elements = Elements::new(&operands);
            let launch = launcher.kernel(kernel).pointers(operands.map(|operand| operand.pointer));
            let launch = launch.sizes(elements.sizes()).sizes(relu.map(usize::from));
            launch.launch(elements.grid())
        };
        if let Some(added) = self.added {
            pass(launcher, ADD_FORWARD, added, Some(self.relu))?;
        }
        if let Some(affine) = self.affine {
            affine.add(launcher, target)?;
        }
        self.mask.map_or(Ok(()), |mask| pass(launcher, RELU_BACKWARD, mask, None))
    }
}
