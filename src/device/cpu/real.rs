//! The numbers the CPU computes with: `f32` in the product, `f64` where gradients are checked.

use super::OnCpu;
use super::tile::{InstructionSet, TileKernels, kernels_f32, kernels_f64};
use crate::device::Precision;
use crate::ops::Op;
use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + Debug
    + Display
    + PartialOrd
    + Send
    + Sync
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const PRECISION: Precision;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;

    /// The tile kernels of an instruction set.
    fn tiles(set: InstructionSet) -> &'static TileKernels<Self>;

    /// An op's CPU code for this type.
    fn code(op: &dyn Op) -> &dyn OnCpu<Self>;
}

macro_rules! real {
    ($type:ty, $precision:ident, $tiles:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const PRECISION: Precision = Precision::$precision;

            fn from_f64(value: f64) -> Self {
                value as $type
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tiles(set: InstructionSet) -> &'static TileKernels<Self> {
                $tiles(set)
            }
            fn code(op: &dyn Op) -> &dyn OnCpu<Self> {
                op
            }
        }
    };
}

real!(f32, F32, kernels_f32);
real!(f64, F64, kernels_f64);
