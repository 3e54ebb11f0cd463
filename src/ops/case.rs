//! The table of cases that every op is checked and timed by: a small graph around one op, and which numbers to feed it.

use crate::Result;
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use rand::{Rng, RngExt};
use std::sync::Arc;

/// Builds a case's graph on its inputs and returns the outputs.
type Build = Arc<dyn Fn(&mut Graph, &[ValueId]) -> Result<Vec<ValueId>> + Send + Sync>;

/// A small graph around one op, and which numbers to feed it.
#[derive(Clone)]
pub struct Case {
    pub op: &'static str,
    pub inputs: Vec<Shape>,
    pub(crate) build: Build,
    pub(crate) forward_only: bool,
    distinct: bool,
    fractions: Vec<usize>,
    pub(crate) binary: Vec<usize>,
    rows: Vec<(usize, Channels)>,
    /// How many of the outputs, from the first, take part in the loss.
    pub(crate) seeded: usize,
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
            fractions: Vec::new(),
            binary: Vec::new(),
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
    pub fn fraction(mut self, index: usize) -> Self {
        self.fractions.push(index);
        self
    }

    /// Input `index` is 0 or 1 and has no gradient.
    pub fn binary(mut self, index: usize) -> Self {
        self.binary.push(index);
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
    pub(crate) fn values(&self, random: &mut impl Rng) -> Vec<Vec<f64>> {
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
                        if self.binary.contains(&index) {
                            return (rank % 2) as f64;
                        }
                        let level = if self.distinct { (rank as f64 + 0.5) / count as f64 } else { random.random() };
                        match self.fractions.contains(&index) {
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
