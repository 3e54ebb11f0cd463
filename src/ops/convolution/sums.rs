//! Gradients of parameters on CUDA, which blocks sum in parts: where the parts lie, and their sum.

use crate::Result;
use crate::device::cuda::{Grid, Launcher, Operand, Pointer};
use crate::device::kernels::convolution_tile::{SUM_AT_ONCE, SUM_THREADS};
use crate::device::kernels::{CONVOLUTION_SUM_PARTS, Element};

/// Threads at most that share the parts of a few elements.
const MOST_SUM_ROWS: usize = 64;

/// Gradients that are summed in as many parts, one behind the other in the workspace, or in place if there is one part.
pub(super) struct Sums<'a> {
    gradients: &'a [Operand<'a>],
    parts: Vec<Pointer>,
    part_count: usize,
}

impl<'a> Sums<'a> {
    /// Up to four gradients.
    pub fn new(launcher: &Launcher, gradients: &'a [Operand<'a>], part_count: usize) -> Self {
        let mut start = 0;
        let parts = gradients.iter().map(|gradient| {
            assert!(gradient.is_dense(), "gradients of parameters are stored densely");
            let place = start..start + part_count * gradient.shape.elements();
            start = place.end;
            if part_count == 1 { gradient.pointer } else { launcher.workspace().part(place) }
        });
        Sums { gradients, parts: parts.collect(), part_count }
    }

    /// Where the parts of a gradient go.
    pub fn parts(&self, index: usize) -> Pointer {
        self.parts[index]
    }

    /// Where those of a gradient go that there may not be.
    pub fn parts_if_any(&self, index: usize) -> Pointer {
        self.parts.get(index).copied().unwrap_or(self.parts[0].unused(Element::F32))
    }

    /// Adds the parts.
    pub fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        if self.part_count == 1 {
            return Ok(());
        }
        let rows = self.part_count.div_ceil(SUM_AT_ONCE).next_power_of_two().min(MOST_SUM_ROWS);
        let gradient = |index: usize| self.gradients.get(index);
        let none = self.gradients[0].pointer.unused(Element::F32);
        let counts = [0, 1, 2, 3].map(|index| gradient(index).map_or(0, |gradient| gradient.shape.elements()));
        let all: usize = counts.iter().sum();
        let parts = launcher.workspace().part(0..self.part_count * all);
        launcher
            .kernel(CONVOLUTION_SUM_PARTS)
            .pointers([0, 1, 2, 3].map(|index| gradient(index).map_or(none, |gradient| gradient.pointer)))
            .pointers([parts])
            .sizes(counts)
            .sizes([self.part_count, rows])
            .launch(Grid::new(
                [counts.map(|count| count.div_ceil(4 * SUM_THREADS / rows)).iter().sum(), 1, 1],
                SUM_THREADS,
            ))
    }
}
