//! What numbers a device computes with, and how it stores them.

use super::kernels::Element;
use crate::tensor::Storage;
use std::fmt;

/// What numbers a device computes with. Sums are always taken in at least f32, and whatever is stored in
/// [`Storage::Full`] is f32 in all but the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The CPU's, for checking.
    F64,
    F32,
    /// As f32, but that the factors of convolutions' products are rounded to 11 bits, for tensor cores.
    Tf32,
    /// Activations, their gradients and copies of the weights in bf16.
    Bf16,
    /// The same in fp16, whose small range needs gradients to be scaled.
    Fp16,
}

impl Precision {
    pub const ALL: [Precision; 5] = [Precision::F64, Precision::F32, Precision::Tf32, Precision::Bf16, Precision::Fp16];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        }
    }

    /// What a GPU stores a tensor in.
    pub fn element(self, storage: Storage) -> Element {
        match (self, storage) {
            (Precision::Bf16, Storage::Reduced) => Element::Bf16,
            (Precision::Fp16, Storage::Reduced) => Element::F16,
            (_, Storage::Bits) => Element::Bits,
            (_, Storage::Full | Storage::Reduced) => Element::F32,
        }
    }

    /// Whether tensor cores multiply, which is of rounded factors.
    pub fn rounds_factors(self) -> bool {
        self == Precision::Tf32 || self.is_reduced()
    }

    /// Whether activations take 16 bits.
    pub fn is_reduced(self) -> bool {
        self.element(Storage::Reduced) != Element::F32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}
