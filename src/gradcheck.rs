//! Every op against central differences.
//!
//! An op's cases are small graphs. A case's loss is the sum of its outputs times random weights; the gradient of the loss
//! with respect to every element of every input is compared with `(loss(x + h) - loss(x - h)) / 2h` in f64.
//!
//! In tf32, bf16 and fp16 that would ask for more than their digits. There the inputs are rounded first to what they are
//! stored in, and outputs and gradients are compared with the CPU's in f64, which the central differences answer for.

use crate::device::cpu::{CpuDevice, InstructionSet, Real};
use crate::device::kernels::Element;
use crate::device::{Device, Precision};
use crate::graph::{Graph, Placement, Region, ValueId};
use crate::ops::{self, case::Case};
use crate::tensor::Shape;
use crate::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// A case's graph with its gradients, loaded into a device.
struct Loaded<'a, T> {
    device: &'a mut dyn Device<T>,
    step: crate::device::StepId,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    seeds: Vec<ValueId>,
    gradients: Vec<(usize, ValueId)>,
}

impl<'a, T: Real> Loaded<'a, T> {
    fn new(case: &Case, device: &'a mut dyn Device<T>) -> Result<Self> {
        let mut graph = Graph::new();
        let inputs: Vec<ValueId> = case.inputs.iter().map(|shape| graph.input(shape.clone())).collect();
        let outputs = (case.build)(&mut graph, &inputs)?;
        let (mut seeds, mut gradients) = (Vec::new(), Vec::new());
        if !case.forward_only {
            let seeded = &outputs[..case.seeded.min(outputs.len())];
            seeds = seeded.iter().map(|&output| graph.input(graph.shape(output).clone())).collect();
            let pairs: Vec<_> = seeded.iter().copied().zip(seeds.iter().copied()).collect();
            let wrt: Vec<usize> = (0..inputs.len()).filter(|index| !case.binary.contains(index)).collect();
            let values: Vec<ValueId> = wrt.iter().map(|&index| inputs[index]).collect();
            let found = graph.differentiate(&pairs, &values)?;
            gradients = wrt.into_iter().zip(found).filter_map(|(index, value)| Some((index, value?))).collect();
        }
        for region in Region::ALL {
            device.allocate_state(region, state_elements(&graph, region))?;
        }
        let keep: Vec<ValueId> = outputs.iter().copied().chain(gradients.iter().map(|&(_, value)| value)).collect();
        let step = device.load(graph, &keep)?;
        // So that a step that reads what nobody wrote shows it.
        device.poison()?;
        Ok(Loaded { device, step, inputs, outputs, seeds, gradients })
    }

    fn read(&mut self, value: ValueId) -> Result<Vec<f64>> {
        let mut data = vec![T::ZERO; self.device.plan(self.step).shape(value).values()];
        self.device.read(self.step, value, &mut data)?;
        Ok(data.into_iter().map(T::to_f64).collect())
    }

    /// Runs the graph and returns the outputs.
    fn run(&mut self, values: &[Vec<f64>], weights: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        let convert = |values: &[f64]| values.iter().map(|&value| T::from_f64(value)).collect::<Vec<T>>();
        for (&input, values) in self.inputs.iter().zip(values) {
            self.device.write(self.step, input, &convert(values))?;
        }
        for (&seed, weights) in self.seeds.iter().zip(weights) {
            self.device.write(self.step, seed, &convert(weights))?;
        }
        for region in Region::ALL {
            let count = state_elements(&self.device.plan(self.step).graph, region);
            let state: Vec<f64> = (0..count).map(|index| 0.25 + 0.5 * (index % 7) as f64).collect();
            self.device.write_state(region, 0, &convert(&state))?;
        }
        self.device.run(self.step)?;
        self.outputs.clone().into_iter().map(|output| self.read(output)).collect()
    }

    /// The gradients of the last run, with the index of their input.
    fn gradients(&mut self) -> Result<Vec<(usize, Vec<f64>)>> {
        self.gradients.clone().into_iter().map(|(index, value)| Ok((index, self.read(value)?))).collect()
    }
}

/// How many elements of a region a graph uses.
fn state_elements(graph: &Graph, region: Region) -> usize {
    let ends = graph.values().iter().map(|value| match value.placement {
        Placement::State { region: its, start } if its == region => start + value.shape.elements(),
        _ => 0,
    });
    ends.max().unwrap_or(0)
}

/// What was found for one op.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub op: String,
    pub cases: usize,
    /// The largest difference of an element, over the largest magnitude in its tensor; in tf32, bf16 and fp16 the
    /// norm of a tensor's differences over its norm.
    pub max_relative_error: f64,
    pub tolerance: f64,
    pub passed: bool,
}

/// The step of the central differences, and the one for where it meets a kink.
const STEPS: [f64; 2] = [1e-5, 1e-7];
/// What f64 and central differences agree to.
pub const TOLERANCE_F64: f64 = 1e-6;

/// The largest difference over the largest magnitude; infinite if anything is not a number.
fn relative_error(actual: &[f64], expected: &[f64], floor: f64) -> f64 {
    assert_eq!(actual.len(), expected.len(), "tensors of one shape are compared");
    let scale = expected.iter().fold(floor, |scale, value| scale.max(value.abs()));
    let differences = actual.iter().zip(expected).map(|(a, e)| (a - e).abs() / scale);
    differences.fold(0.0, |worst, error| {
        if error <= worst {
            worst
        } else if error.is_nan() {
            f64::INFINITY
        } else {
            error
        }
    })
}

/// The norm of the difference over the norm; infinite if anything is not a number.
fn norm_error(actual: &[f64], expected: &[f64], floor: f64) -> f64 {
    assert_eq!(actual.len(), expected.len(), "tensors of one shape are compared");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let scale = norm(&mut expected.iter().copied()).max(floor * (expected.len() as f64).sqrt());
    let error = norm(&mut actual.iter().zip(expected).map(|(actual, expected)| actual - expected)) / scale;
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Values as a device of this precision holds them.
fn rounded(precision: Precision, shape: &Shape, values: Vec<f64>) -> Vec<f64> {
    match precision.element(shape.storage) {
        Element::F32 => values,
        element => values.into_iter().map(|value| element.round(value as f32).into()).collect(),
    }
}

/// Checks the outputs and gradients of a case on `device`, against outputs and central differences in f64.
fn check<T: Real>(case: &Case, device: &mut dyn Device<T>) -> Result<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(case.inputs.iter().map(|shape| shape.values() as u64).sum());
    // Its many runs are too short to be shared by threads.
    let mut oracle_device = CpuDevice::<f64>::with(Some(1), InstructionSet::best())?;
    let mut oracle = Loaded::new(case, &mut oracle_device)?;
    let mut tested = Loaded::new(case, device)?;
    let precision = tested.device.precision();
    let values = case.values(&mut random).into_iter().zip(&case.inputs);
    let values: Vec<Vec<f64>> = values.map(|(values, shape)| rounded(precision, shape, values)).collect();
    let weights: Vec<Vec<f64>> = oracle
        .seeds
        .clone()
        .into_iter()
        .map(|seed| {
            let shape = oracle.device.plan(oracle.step).shape(seed);
            let values = (0..shape.values()).map(|_| random.random_range(-1.0..1.0)).collect();
            rounded(precision, shape, values)
        })
        .collect();
    let expected = oracle.run(&values, &weights)?;
    let actual = tested.run(&values, &weights)?;
    let mut worst: f64 = 0.0;
    if precision.rounds_factors() {
        let gradients = tested.gradients()?.into_iter().zip(oracle.gradients()?);
        let gradients = gradients.map(|((_, actual), (_, expected))| (actual, expected));
        for (actual, expected) in actual.into_iter().zip(expected).chain(gradients) {
            worst = worst.max(norm_error(&actual, &expected, 1e-3));
        }
        return Ok(worst);
    }
    for (actual, expected) in actual.iter().zip(&expected) {
        worst = worst.max(relative_error(actual, expected, 1e-3));
    }
    for (index, actual) in tested.gradients()? {
        let mut differences = vec![0.0; actual.len()];
        for (element, difference) in differences.iter_mut().enumerate() {
            let mut central = |step: f64| -> Result<f64> {
                let mut outputs = |offset: f64| {
                    let mut values = values.clone();
                    values[index][element] += offset;
                    oracle.run(&values, &weights)
                };
                let (above, below) = (outputs(step)?, outputs(-step)?);
                // Output by output: where the element has no influence the difference is exactly zero, while in
                // the difference of two losses the rounding of all outputs would remain.
                let outputs = above.iter().zip(&below).zip(&weights);
                let terms = outputs.flat_map(|((above, below), weights)| above.iter().zip(below).zip(weights));
                Ok(terms.map(|((above, below), weight)| (above - below) * weight).sum::<f64>() / (2.0 * step))
            };
            *difference = central(STEPS[0])?;
            // A kink (of a ReLU, say) within the step spoils the difference; it is hardly within a hundredth of it.
            if (*difference - actual[element]).abs() > 1e-6 * difference.abs().max(1e-3) {
                *difference = central(STEPS[1])?;
            }
        }
        worst = worst.max(relative_error(&actual, &differences, 1e-3));
    }
    Ok(worst)
}

/// Checks every case of every op, or of the one named, on devices that `device` makes.
///
/// # Errors
/// If there is no such op, or a device fails.
pub fn run<T: Real>(
    device: impl Fn() -> Result<Box<dyn Device<T>>>,
    op: Option<&str>,
    tolerance: f64,
    progress: impl Fn(&Case),
) -> Result<Vec<Check>> {
    run_cases(&ops::cases(), device, op, tolerance, progress)
}

/// As [`run`], for other cases than the ops' own.
///
/// # Errors
/// As [`run`].
pub fn run_cases<T: Real>(
    cases: &[Case],
    device: impl Fn() -> Result<Box<dyn Device<T>>>,
    op: Option<&str>,
    tolerance: f64,
    progress: impl Fn(&Case),
) -> Result<Vec<Check>> {
    let mut checks = BTreeMap::<&str, Check>::new();
    for case in cases.iter().filter(|case| op.is_none_or(|op| op == case.op)) {
        progress(case);
        let error = check(case, &mut *device()?)?;
        let check = checks.entry(case.op).or_insert_with(|| Check {
            op: case.op.to_string(),
            cases: 0,
            max_relative_error: 0.0,
            tolerance,
            passed: true,
        });
        check.cases += 1;
        check.max_relative_error = check.max_relative_error.max(error);
        check.passed = check.max_relative_error <= tolerance;
    }
    if checks.is_empty() {
        let mut names: Vec<&str> = cases.iter().map(|case| case.op).collect();
        names.dedup();
        return Err(Error::Invalid(format!("no op is named {:?}; there are {}", op.unwrap_or(""), names.join(", "))));
    }
    Ok(checks.into_values().collect())
}
