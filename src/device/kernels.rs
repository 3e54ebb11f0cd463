//! The kernels of `kernels/*.cu`: build.rs finds their declarations and makes a constant of each, so that a wrong name
//! does not compile and a launch can check its arguments.

/// What a kernel's tensors are stored in; a .cu file that says `Element` is compiled for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    Bf16,
    F16,
    /// Of [`Storage::Bits`](crate::tensor::Storage::Bits).
    Bits,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
            Element::Bits => 1,
        }
    }

    /// The nearest number that it can hold, ties to even.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Element::F32 => value,
            Element::Bf16 => half::bf16::from_f32(value).to_f32(),
            Element::F16 => half::f16::from_f32(value).to_f32(),
            Element::Bits => f32::from(value as u8),
        }
    }

    /// The bytes of values as they are stored.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => bytemuck::cast_slice(values).to_vec(),
            Element::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_ne_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_ne_bytes()).collect(),
            Element::Bits => values.iter().map(|&value| value as u8).collect(),
        }
    }

    /// The values of stored bytes.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self {
            Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::Bf16 => pairs.map(|pair| half::bf16::from_ne_bytes(pair).to_f32()).collect(),
            Element::F16 => pairs.map(|pair| half::f16::from_ne_bytes(pair).to_f32()).collect(),
            Element::Bits => bytes.iter().map(|&byte| f32::from(byte)).collect(),
        }
    }
}

/// One kernel: its name, the .cu file it is in (without extension), and its parameters in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: &'static str,
    pub file: &'static str,
    pub parameters: &'static [Parameter],
}

impl Kernel {
    /// The name of its code for tensors of `element`; without one, that of a file that knows f32 alone.
    pub fn symbol(&self, element: Option<Element>) -> String {
        match element {
            None | Some(Element::Bits) => self.name.into(),
            Some(Element::F32) => format!("{}_f32", self.name),
            Some(Element::Bf16) => format!("{}_bf16", self.name),
            Some(Element::F16) => format!("{}_f16", self.name),
        }
    }
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
}

/// What a parameter is: a pointer that is only read, one that is written (to `Element`, to `Bits`, or to words of 4 bytes),
/// or a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ElementInput,
    ElementOutput,
    BitsInput,
    BitsOutput,
    Input,
    Output,
    I32,
    U32,
    I64,
    U64,
    F32,
}

/// A .cu file compiled for tensors of one element, or for f32 alone.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Without extension.
    pub file: &'static str,
    pub element: Option<Element>,
    /// Its kernels' names.
    pub symbols: &'static [&'static str],
    /// The fatbin; empty when the build found no nvcc.
    pub bytes: &'static [u8],
}

/// The code of a kernel file for tensors of `element`: what its image is compiled for, if there is one.
pub fn compiled_for(file: &str, element: Element) -> Option<Element> {
    IMAGES.iter().any(|image| image.file == file && image.element == Some(element)).then_some(element)
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
