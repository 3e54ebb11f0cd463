//! The logistic function: the network's output and CBAM's spatial attention (equation 2).

use super::case::Case;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Elements, Launcher, OnCuda};
use crate::device::kernels::{SIGMOID_BACKWARD, SIGMOID_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;
use crate::{Error, Result};

/// `out = 1 / (1 + exp(-x))`, of tensors without padded channels
#[derive(Debug)]
pub struct Sigmoid;

impl Op for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if inputs[0].channels.count() != inputs[0].channels.stored() {
            return Err(Error::shape(
                "sigmoid",
                format!("{} has padded channels, which would not stay zero", inputs[0]),
            ));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let dx = graph.apply_one(SigmoidGradient, &[context.of(0), context.outputs[0]])?;
        Ok(vec![Some(dx)])
    }
}

/// `dx = dout out (1 - out)`; inputs `dout`, `out`.
#[derive(Debug)]
pub struct SigmoidGradient;

impl Op for SigmoidGradient {
    fn name(&self) -> &'static str {
        "sigmoid_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

// ------------------------------------------------------------------ CPU

/// `1 / (1 + exp(-x))`
pub(super) fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

impl<T: Real> OnCpu<T> for Sigmoid {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[x]| sigmoid(x));
    }
}

impl<T: Real> OnCpu<T> for SigmoidGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[dout, out]| dout * out * (T::ONE - out));
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Sigmoid {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0)];
        let elements = Elements::new(&operands);
        let kernel = launcher.kernel(SIGMOID_FORWARD).pointers(operands.map(|operand| operand.pointer));
        kernel.sizes(elements.sizes()).launch(elements.grid())
    }
}

impl OnCuda for SigmoidGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0), launcher.input(1)];
        let elements = Elements::new(&operands);
        let kernel = launcher.kernel(SIGMOID_BACKWARD).pointers(operands.map(|operand| operand.pointer));
        kernel.sizes(elements.sizes()).launch(elements.grid())
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    [(1, 1), (3, 3), (2, 16)]
        .into_iter()
        .map(|(batch, channels)| {
            Case::new("sigmoid", [Shape::image(batch, 3, 5, channels)], |graph, inputs| graph.apply(Sigmoid, inputs))
        })
        .collect()
}
