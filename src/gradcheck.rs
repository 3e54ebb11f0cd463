//! The table of cases that every op is checked by, and the check of gradients against central differences.
//!
//! A case is a small graph. Its loss is the sum of its outputs times random weights; the gradient of the loss
//! with respect to every element of every input is compared with `(loss(x + h) - loss(x - h)) / 2h` in f64.

use crate::device::Device;
use crate::device::cpu::{CpuDevice, InstructionSet, Real};
use crate::graph::{Graph, Placement, Region, ValueId};
use crate::ops;
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Builds a case's graph on its inputs and returns the outputs.
type Build = Arc<dyn Fn(&mut Graph, &[ValueId]) -> Result<Vec<ValueId>> + Send + Sync>;

/// A small graph around one op, and which numbers to feed it.
#[derive(Clone)]
pub struct Case {
    pub op: &'static str,
    pub inputs: Vec<Shape>,
    build: Build,
    forward_only: bool,
    distinct: bool,
    positive: Vec<usize>,
    constant: Vec<usize>,
    rows: Vec<(usize, Channels)>,
    /// How many of the outputs, from the first, take part in the loss.
    seeded: usize,
}

impl Case {
    /// A case of `op` with inputs of these shapes, whose graph `build` makes.
    pub fn new(
        op: &'static str,
        inputs: impl IntoIterator<Item = Shape>,
        build: impl Fn(&mut Graph, &[ValueId]) -> Result<Vec<ValueId>> + Send + Sync + 'static,
    ) -> Self {
        let inputs = inputs.into_iter().collect();
        Case {
            op,
            inputs,
            build: Arc::new(build),
            forward_only: false,
            distinct: false,
            positive: Vec::new(),
            constant: Vec::new(),
            rows: Vec::new(),
            seeded: usize::MAX,
        }
    }

    /// The op has no gradient.
    pub fn forward_only(self) -> Self {
        Case { forward_only: true, ..self }
    }

    /// No two inputs may be nearly equal, where a maximum would change hands.
    pub fn distinct(self) -> Self {
        Case { distinct: true, ..self }
    }

    /// Input `index` is between 0 and 1.
    pub fn positive(mut self, index: usize) -> Self {
        self.positive.push(index);
        self
    }

    /// Input `index` is 0 or 1 and has no gradient.
    pub fn constant(mut self, index: usize) -> Self {
        self.constant.push(index);
        self
    }

    /// Input `index` is a matrix with a row for each stored channel, again and again: the rows of padding are zero,
    /// as those of a network's weights are.
    pub fn rows(mut self, index: usize, channels: Channels) -> Self {
        self.rows.push((index, channels));
        self
    }

    /// Only the first `count` outputs take part in the loss.
    pub fn seeded(self, count: usize) -> Self {
        Case { seeded: count, ..self }
    }

    /// The case in words.
    pub fn label(&self) -> String {
        let shapes: Vec<String> = self.inputs.iter().map(Shape::to_string).collect();
        format!("{}({})", self.op, shapes.join(", "))
    }

    /// The values of the inputs, a function of the case alone. Away from zero and, if wanted, from one
    /// another by more than the differences' step, so that no ReLU or maximum has its kink in between.
    fn values(&self, random: &mut impl Rng) -> Vec<Vec<f64>> {
        let mut values: Vec<Vec<f64>> = Vec::new();
        for (index, shape) in self.inputs.iter().enumerate() {
            let count = shape.values();
            let mut ranks: Vec<usize> = (0..count).collect();
            for last in (1..count).rev() {
                ranks.swap(last, random.random_range(0..=last));
            }
            values.push(
                ranks
                    .into_iter()
                    .map(|rank| {
                        if self.constant.contains(&index) {
                            return (rank % 2) as f64;
                        }
                        let level = if self.distinct { (rank as f64 + 0.5) / count as f64 } else { random.random() };
                        match self.positive.contains(&index) {
                            true => 0.05 + 0.9 * level,
                            false if level < 0.5 => -0.01 - 2.0 * level,
                            false => 0.01 + 2.0 * (level - 0.5),
                        }
                    })
                    .collect(),
            );
        }
        for (index, channels) in &self.rows {
            let mut padding = vec![true; channels.stored()];
            channels.stored_indices().for_each(|channel| padding[channel] = false);
            let rows = values[*index].chunks_exact_mut(self.inputs[*index].channels.count());
            rows.zip(padding.iter().cycle()).filter(|&(_, &padding)| padding).for_each(|(row, _)| row.fill(0.0));
        }
        values
    }
}

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
            let wrt: Vec<usize> = (0..inputs.len()).filter(|index| !case.constant.contains(index)).collect();
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
    /// The largest difference of an element, over the largest magnitude in its tensor.
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

/// Checks the outputs and gradients of a case on `device`, against outputs and central differences in f64.
fn check<T: Real>(case: &Case, device: &mut dyn Device<T>) -> Result<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(case.inputs.iter().map(|shape| shape.values() as u64).sum());
    // Its many runs are too short to be shared by threads.
    let mut oracle_device = CpuDevice::<f64>::with(Some(1), InstructionSet::best())?;
    let mut oracle = Loaded::new(case, &mut oracle_device)?;
    let mut tested = Loaded::new(case, device)?;
    let values = case.values(&mut random);
    let weights: Vec<Vec<f64>> = oracle
        .seeds
        .clone()
        .into_iter()
        .map(|seed| {
            let count = oracle.device.plan(oracle.step).shape(seed).values();
            (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
        })
        .collect();
    let expected = oracle.run(&values, &weights)?;
    let actual = tested.run(&values, &weights)?;
    let mut worst: f64 = 0.0;
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
