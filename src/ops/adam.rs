//! Adam, over all parameters of a model at once. (Kingma and Ba, 2015, algorithm 1.)

use super::Op;
use super::case::Case;
use crate::Result;
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::adam::{ADAM_WIDTH, CHECK_BLOCKS};
use crate::device::kernels::pixels::THREADS;
use crate::device::kernels::{ADAM_CHECK, ADAM_MERGE_CHECKS, ADAM_UPDATE, Element};
use crate::graph::Region;
use crate::tensor::{CHANNEL_ALIGNMENT, Shape};
use rayon::prelude::*;

pub const BETA1: f64 = 0.9;
pub const BETA2: f64 = 0.999;
pub const EPSILON: f64 = 1e-8;

/// Where the first and the second moments of so many parameters begin, and where they end: in whole groups, of which a GPU reads
/// all elements at once.
pub fn moment_starts(count: usize) -> [usize; 3] {
    [0, 1, 2].map(|order| order * count.next_multiple_of(CHANNEL_ALIGNMENT))
}

/// What a step's number and learning rate come down to: the input `rate` of [`Adam`].
///
/// `step` counts from 1.
pub fn rate(learning_rate: f64, step: u64) -> [f64; 2] {
    let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
    [learning_rate / corrected(BETA1), 1.0 / corrected(BETA2).sqrt()]
}

/// Inputs: parameters, first and second moments (all three updated), gradients, `rate`, and the scale of the loss, by
/// which the gradients are divided. Outputs: the first three, and whether all gradients were finite (1 or 0): if not,
/// nothing is updated.
#[derive(Debug)]
pub struct Adam;

impl Op for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(inputs[..3].iter().map(|&shape| shape.clone()).chain([Shape::flat(1)]).collect())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1), (2, 2)]
    }
}

// ------------------------------------------------------------------ CPU

const TASK_ELEMENTS: usize = 1 << 14;

impl<T: Real> OnCpu<T> for Adam {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (gradients, rate) = (call.input(3).dense(), call.input(4).dense());
        let finite =
            gradients.par_chunks(TASK_ELEMENTS).all(|part| part.iter().all(|value| value.to_f64().is_finite()));
        call.output(3).dense()[0] = if finite { T::ONE } else { T::ZERO };
        if !finite {
            return;
        }
        let inverse = T::ONE / call.input(5).scalar();
        let (mut parameters, mut first, mut second) = (call.output(0), call.output(1), call.output(2));
        let [beta1, beta2, epsilon] = [BETA1, BETA2, EPSILON].map(T::from_f64);
        let moments = first.dense().par_chunks_mut(TASK_ELEMENTS).zip(second.dense().par_chunks_mut(TASK_ELEMENTS));
        let tasks = parameters.dense().par_chunks_mut(TASK_ELEMENTS).zip(gradients.par_chunks(TASK_ELEMENTS));
        tasks.zip(moments).for_each(|((parameters, gradients), (first, second))| {
            for (((parameter, &gradient), m), v) in parameters.iter_mut().zip(gradients).zip(first).zip(second) {
                let gradient = gradient * inverse;
                *m = beta1 * *m + (T::ONE - beta1) * gradient;
                *v = beta2 * *v + (T::ONE - beta2) * gradient * gradient;
                *parameter = *parameter - rate[0] * *m / (v.sqrt() * rate[1] + epsilon);
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Adam {
    fn workspace(&self, _: Precision, _: &[&Shape], _: &[&Shape]) -> usize {
        CHECK_BLOCKS
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [parameters, first, second] = [0, 1, 2].map(|index| launcher.output(index));
        let [gradients, rate, scale] = [3, 4, 5].map(|index| launcher.input(index));
        let (finite, checks) = (launcher.output(3).pointer, launcher.workspace());
        let count = parameters.positions();
        let updated = [parameters, first, second].map(|operand| operand.pointer.updated());
        let copies = launcher.parameter_copies(count);
        let pointers =
            [updated[0], updated[1], updated[2], copies.unwrap_or(updated[0].unused(Element::F32)), gradients.pointer];
        assert!(pointers.iter().all(|pointer| pointer.is_aligned()), "moments begin where moment_starts says");
        launcher
            .kernel(ADAM_CHECK)
            .pointers([checks, gradients.pointer])
            .sizes([count])
            .launch(Grid { blocks: [CHECK_BLOCKS, 1, 1], threads: [1, THREADS, 1] })?;
        launcher.kernel(ADAM_MERGE_CHECKS).pointers([finite, checks]).launch(Grid::new([1, 1, 1], CHECK_BLOCKS))?;
        launcher
            .kernel(ADAM_UPDATE)
            .pointers(pointers)
            .pointers([rate.pointer, scale.pointer, finite])
            .sizes([count])
            .flag(copies.is_some())
            .floats([BETA1, BETA2, EPSILON].map(|value| value as f32))
            .launch(PixelGrid::single(1).over(count.div_ceil(ADAM_WIDTH), 1))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [1, 7, 1025].into_iter().map(|count| {
        let inputs = [Shape::flat(count), Shape::flat(2), Shape::flat(1)];
        Case::new("adam", inputs, move |graph, inputs| {
            let state = |graph: &mut crate::graph::Graph, region, start| graph.state(Shape::flat(count), region, start);
            let parameters = state(graph, Region::Parameters, 0);
            let [first, second, _] = moment_starts(count);
            let moments = [first, second].map(|start| state(graph, Region::Moments, start));
            graph.apply(Adam, &[parameters, moments[0], moments[1], inputs[0], inputs[1], inputs[2]])
        })
        .fraction(1)
        .fraction(2)
        .forward_only()
    });
    cases.collect()
}
