//! A scale and an offset for each channel: what batch norm's statistics add to a gradient.

use super::case::Case;
use super::convolution::{Convolution, ConvolutionInputGradient};
use super::{Op, Rewritten};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, Operand, PixelGrid};
use crate::device::kernels::{AFFINE_ADD, AFFINE_FORWARD, Kernel};
use crate::graph::ValueId;
use crate::tensor::Shape;
use crate::{Error, Result};
use std::any::Any;

/// `out = x * scale + offset`; inputs `x`, `scale`, `offset`. It has no gradient: it is part of one.
#[derive(Debug)]
pub struct Affine;

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = Shape::vector(inputs[0].channels.clone());
        match inputs[1..].iter().find(|&&shape| *shape != vector) {
            Some(shape) => Err(Error::shape("affine", format!("{} needs a value per channel, not {shape}", inputs[0]))),
            None => Ok(vec![inputs[0].clone()]),
        }
    }

    fn joined(&self, inputs: &[ValueId], other: &dyn Op, others: &[ValueId]) -> Option<Rewritten> {
        let other: &dyn Any = other;
        let convolution = other.downcast_ref::<Convolution>().and_then(|op| op.with_affine(others.len()));
        let op = convolution.or_else(|| other.downcast_ref::<ConvolutionInputGradient>()?.with_affine())?;
        Some((op, [others, inputs].concat()))
    }
}

/// `x * scale + offset`, of `T`'s operands, which another op adds to its output.
#[derive(Clone, Copy)]
pub(super) struct AffineTerms<T> {
    pub x: T,
    pub scale: T,
    pub offset: T,
}

impl<T> AffineTerms<T> {
    /// The three inputs from `first` on.
    pub fn new(first: usize, input: impl Fn(usize) -> T) -> Self {
        AffineTerms { x: input(first), scale: input(first + 1), offset: input(first + 2) }
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> AffineTerms<Input<'_, T>> {
    /// Calls `write(out, value)` for each channel of a pixel.
    pub fn for_each(&self, position: usize, pixel: &mut [T], write: impl Fn(&mut T, T)) {
        let vectors = self.scale.dense().iter().zip(self.offset.dense());
        for ((out, &x), (&scale, &offset)) in pixel.iter_mut().zip(self.x.pixel(position)).zip(vectors) {
            write(out, x * scale + offset);
        }
    }
}

impl<T: Real> OnCpu<T> for Affine {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let terms = AffineTerms::new(0, |index| call.input(index));
        call.output(0).for_each_pixel(|position, out| terms.for_each(position, out, |out, value| *out = value));
    }
}

// ------------------------------------------------------------------ CUDA

impl AffineTerms<Operand<'_>> {
    /// Whether all of it can be read by 16 bytes.
    pub fn is_aligned(&self) -> bool {
        [self.x, self.scale, self.offset].iter().all(Operand::is_aligned)
    }

    /// Adds the terms to `target`, in a pass of its own.
    pub fn add(&self, launcher: &mut Launcher, target: Operand) -> Result<()> {
        self.launch(launcher, target, AFFINE_ADD)
    }

    fn launch(&self, launcher: &mut Launcher, out: Operand, kernel: Kernel) -> Result<()> {
        let operands = [out, self.x, self.scale, self.offset];
        let (pixels, channels) = (out.positions(), out.channels());
        let grid = PixelGrid::new(channels, &operands);
        launcher
            .kernel(kernel)
            .pointers(operands.map(|operand| operand.pointer))
            .sizes([pixels, channels, out.stride, self.x.stride, grid.width])
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for Affine {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (terms, out) = (AffineTerms::new(0, |index| launcher.input(index)), launcher.output(0));
        terms.launch(launcher, out, AFFINE_FORWARD)
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let case = |channels| {
        let x = Shape::image(2, 3, 5, channels);
        let vector = Shape::vector(x.channels.clone());
        Case::new("affine", [x, vector.clone(), vector], |graph, inputs| graph.apply(Affine, inputs)).forward_only()
    };
    [1, 3, 33].map(case).to_vec()
}
