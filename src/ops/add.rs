//! Addition of two tensors of one shape: the residual block's sum (equation 1), and the sum of a value's gradients.

use super::case::Case;
use super::relu::ReluGradient;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Elements, Launcher, OnCuda};
use crate::device::kernels::ADD_FORWARD;
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;
use crate::{Error, Result};

/// `out = a + b`, or `max(a + b, 0)`
#[derive(Debug, Default)]
pub struct Add {
    pub relu: bool,
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if inputs[0] != inputs[1] {
            return Err(Error::shape("add", format!("{} cannot be added to {}", inputs[1], inputs[0])));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let mut sum = context.of(0);
        if self.relu {
            sum = graph.apply_one(ReluGradient, &[sum, context.outputs[0]])?;
        }
        Ok(vec![Some(sum), Some(sum)])
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for Add {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        if self.relu {
            call.zip(|a, b| if a + b > T::ZERO { a + b } else { T::ZERO });
        } else {
            call.zip(|a, b| a + b);
        }
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Add {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0), launcher.input(1)];
        let elements = Elements::new(&operands);
        launcher
            .kernel(ADD_FORWARD)
            .pointers(operands.map(|operand| operand.pointer))
            .sizes(elements.sizes())
            .flag(self.relu)
            .launch(elements.grid())
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for relu in [false, true] {
        for (batch, channels) in [(1, 1), (3, 3), (2, 33)] {
            let shape = Shape::image(batch, 3, 5, channels);
            cases
                .push(Case::new("add", [shape.clone(), shape], move |graph, inputs| graph.apply(Add { relu }, inputs)));
        }
    }
    cases
}
