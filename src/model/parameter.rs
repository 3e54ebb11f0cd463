//! A parameter between its file and the engine: the file has PyTorch's order (output, input, kernel), the engine
//! its own, with padded channels.

use crate::graph::Region;
use crate::tensor::{CHANNEL_ALIGNMENT, Channels, Shape};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// How a parameter is stored, compared with its file's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// File: (output, input, kernel). Stored: rows (kernel, input), columns output.
    Convolution { input: Channels, output: Channels },
    /// File: (input, output, kernel). Stored: rows (kernel, output), columns input.
    TransposedConvolution { input: Channels, output: Channels },
    /// One value a channel.
    Vector { channels: Channels },
}

/// What a parameter starts as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    Constant(f32),
    /// Normal with variance 2 / `inputs`, `inputs` being the values that one output sums. (He et al., 2015.)
    HeNormal {
        inputs: usize,
    },
}

/// A trained parameter or a running statistic.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in a weights file.
    pub name: String,
    /// Its shape in a weights file.
    pub shape: Vec<usize>,
    pub region: Region,
    /// Where it starts in its region.
    pub start: usize,
    pub initial: Initial,
    pub(super) layout: Layout,
    /// Its shape in the engine.
    pub(super) stored: Shape,
}

impl Parameter {
    /// Values in a file.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements in the engine, padding included.
    pub fn stored_count(&self) -> usize {
        self.stored.elements()
    }

    /// Where each value of the file is stored, relative to `start`.
    pub fn stored_indices(&self) -> Vec<usize> {
        let indices = |channels: &Channels| channels.stored_indices().collect::<Vec<usize>>();
        // Of both kinds of weights the file has the columns first, then the rows, then the kernel.
        let (columns, rows) = match &self.layout {
            Layout::Vector { channels } => return indices(channels),
            Layout::Convolution { input, output } => (output, input),
            Layout::TransposedConvolution { input, output } => (input, output),
        };
        let taps = self.count() / (columns.count() * rows.count());
        let row_indices = indices(rows);
        let mut stored = Vec::with_capacity(self.count());
        for column in indices(columns) {
            for &row in &row_indices {
                stored.extend((0..taps).map(|tap| (tap * rows.stored() + row) * columns.stored() + column));
            }
        }
        stored
    }

    /// The engine's elements for a file's values.
    pub fn to_stored<T: Copy + Default>(&self, values: &[T]) -> Vec<T> {
        let mut stored = vec![T::default(); self.stored_count()];
        self.stored_indices().into_iter().zip(values).for_each(|(index, &value)| stored[index] = value);
        stored
    }

    /// The file's values for the engine's elements.
    pub fn from_stored<T: Copy>(&self, stored: &[T]) -> Vec<T> {
        self.stored_indices().into_iter().map(|index| stored[index]).collect()
    }

    /// Values to start training from.
    pub fn initial_values(&self, random: &mut ChaCha8Rng) -> Vec<f32> {
        match self.initial {
            Initial::Constant(value) => vec![value; self.count()],
            Initial::HeNormal { inputs } => {
                let deviation = (2.0 / inputs as f64).sqrt();
                (0..self.count()).map(|_| (deviation * normal(random)) as f32).collect()
            }
        }
    }
}

/// A standard normal number. (Box and Muller's transform.)
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let (radius, angle) = (1.0 - uniform(), uniform());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// Gives every parameter its place: first those whose size is a multiple of the vector width, so that they
/// are aligned, then the few small ones, without gaps that an optimizer would have to skip.
pub(super) fn place(parameters: &mut [Parameter]) {
    for region in [Region::Parameters, Region::Statistics] {
        let mut next = 0;
        for aligned in [true, false] {
            let fits = |parameter: &&mut Parameter| {
                parameter.region == region && parameter.stored_count().is_multiple_of(CHANNEL_ALIGNMENT) == aligned
            };
            for parameter in parameters.iter_mut().filter(fits) {
                parameter.start = next;
                next += parameter.stored_count();
            }
        }
    }
}
