//! Rectified linear unit: `max(x, 0)`.

use super::case::Case;
use super::{Gradient, Op};
use crate::Result;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Elements, Launcher, OnCuda};
use crate::device::kernels::{RELU_BACKWARD, RELU_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;

/// `out = max(x, 0)`
#[derive(Debug)]
pub struct Relu;

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn ends_in_relu(&self) -> bool {
        true
    }

    fn gradient(&self, _: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(context.of(0))])
    }
}

/// `dx = dout where out > 0`; inputs `dout`, `out`. Of whatever ends in a ReLU, unless what computes `dout` masks it.
#[derive(Debug)]
pub struct ReluGradient;

impl Op for ReluGradient {
    fn name(&self) -> &'static str {
        "relu_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for Relu {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[x]| if x > T::ZERO { x } else { T::ZERO });
    }
}

impl<T: Real> OnCpu<T> for ReluGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[dout, out]| if out > T::ZERO { dout } else { T::ZERO });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Relu {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0)];
        let elements = Elements::new(&operands);
        let kernel = launcher.kernel(RELU_FORWARD).pointers(operands.map(|operand| operand.pointer));
        kernel.sizes(elements.sizes()).launch(elements.grid())
    }
}

impl OnCuda for ReluGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0), launcher.input(1)];
        let elements = Elements::new(&operands);
        let kernel = launcher.kernel(RELU_BACKWARD).pointers(operands.map(|operand| operand.pointer));
        kernel.sizes(elements.sizes()).launch(elements.grid())
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    [(1, 1), (2, 3), (1, 33)]
        .into_iter()
        .map(|(batch, channels)| {
            Case::new("relu", [Shape::image(batch, 3, 5, channels)], |graph, inputs| graph.apply(Relu, inputs))
        })
        .collect()
}
