//! Addition of two tensors of one shape: the sum of a value's gradients above all.

use super::case::Case;
use super::{Gradient, Op, Rewritten};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Elements, Launcher, OnCuda};
use crate::device::kernels::{ADD_FORWARD, ADD_MASKED};
use crate::graph::{Graph, ValueId};
use crate::tensor::Shape;
use crate::{Error, Result};
use std::sync::Arc;

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

    fn ends_in_relu(&self) -> bool {
        self.relu
    }

    fn gradient(&self, _: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(context.of(0)); 2])
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        (!self.relu).then(|| (Arc::new(MaskedAdd) as Arc<dyn Op>, vec![inputs[0], inputs[1], mask]))
    }
}

/// `out = a + b where mask > 0`; inputs `a`, `b`, `mask`. The sum of the gradients of what ends in a ReLU.
#[derive(Debug)]
pub struct MaskedAdd;

impl Op for MaskedAdd {
    fn name(&self) -> &'static str {
        "add_masked"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Add::default().outputs(inputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for Add {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        if self.relu {
            call.combine(|[a, b]| if a + b > T::ZERO { a + b } else { T::ZERO });
        } else {
            call.combine(|[a, b]| a + b);
        }
    }
}

impl<T: Real> OnCpu<T> for MaskedAdd {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[a, b, mask]| if mask > T::ZERO { a + b } else { T::ZERO });
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

impl OnCuda for MaskedAdd {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let operands = [launcher.output(0), launcher.input(0), launcher.input(1), launcher.input(2)];
        let elements = Elements::new(&operands);
        launcher
            .kernel(ADD_MASKED)
            .pointers(operands.map(|operand| operand.pointer))
            .sizes(elements.sizes())
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
    for channels in [1, 33] {
        let shape = Shape::image(2, 3, 5, channels);
        let inputs = [shape.clone(), shape.clone(), shape];
        let case = Case::new("add_masked", inputs, |graph, inputs| graph.apply(MaskedAdd, inputs));
        cases.push(case.binary(2).forward_only());
    }
    cases
}
