//! The kernels of `kernels/*.cu`: build.rs finds their declarations and makes a constant of each, so that a wrong name
//! does not compile and a launch can check its arguments.

/// One kernel: its name, the .cu file it is in (without extension), and its parameters in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: &'static str,
    pub file: &'static str,
    pub parameters: &'static [Parameter],
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
}

/// What a parameter is: a pointer that is only read, one that is written, or a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Input,
    Output,
    I32,
    U32,
    I64,
    U64,
    F32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
