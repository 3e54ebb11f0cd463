//! The exact Euclidean distance transform with anisotropic spacing, in linear time: along z by
//! counting steps, then along x and y by the lower envelope of parabolas (P. Felzenszwalb and
//! D. Huttenlocher, Distance transforms of sampled functions, Theory of Computing 8, 2012).
//!
//! After the first pass, which stores whole steps, every axial slice is on its own: a big volume
//! needs four bytes a voxel, and squared distances, in f64, exist for a slice at a time.

use rayon::prelude::*;

/// No site in this line along z.
const NONE: u32 = u32::MAX;

/// The distance, in the unit of `spacing`, from each voxel whose flags hold `queries` to the
/// nearest voxel whose flags hold `sites`, ordered by z, then x, then y; infinite if there is none.
/// `flags` has `shape` [x, y, z] voxels, x fastest.
pub fn distances(flags: &[u8], shape: [usize; 3], spacing: [f64; 3], sites: u8, queries: u8) -> Vec<f64> {
    if flags.is_empty() {
        return Vec::new();
    }
    let steps = steps_along_z(flags, shape, sites);
    let slice = shape[0] * shape[1];
    let slices = flags.par_chunks(slice).enumerate();
    slices
        .flat_map_iter(|(z, flags)| slice_distances(flags, shape, spacing, queries, |y| row_of(&steps, shape, y, z)))
        .collect()
}

/// Row `y` of slice `z` of what [`steps_along_z`] returns.
fn row_of(steps: &[u32], [columns, _, slices]: [usize; 3], y: usize, z: usize) -> &[u32] {
    &steps[(y * slices + z) * columns..][..columns]
}

/// How many voxels away the nearest site in the same line along z is, stored x fastest, then z,
/// then y, so that threads can each have a plane of z and x.
fn steps_along_z(flags: &[u8], [columns, rows, slices]: [usize; 3], sites: u8) -> Vec<u32> {
    let mut steps = vec![0; flags.len()];
    steps.par_chunks_mut(columns * slices).enumerate().for_each(|(y, plane)| {
        let mut last = vec![NONE; columns];
        for (z, steps) in plane.chunks_exact_mut(columns).enumerate() {
            let flags = &flags[(z * rows + y) * columns..][..columns];
            for ((steps, last), flags) in steps.iter_mut().zip(&mut last).zip(flags) {
                *steps = if flags & sites != 0 { 0 } else { last.saturating_add(1) };
                *last = *steps;
            }
        }
        for steps in plane.chunks_exact_mut(columns).rev() {
            for (steps, last) in steps.iter_mut().zip(&mut last) {
                *steps = (*steps).min(last.saturating_add(1));
                *last = *steps;
            }
        }
    });
    steps
}

/// The distances from the queries of one slice, given its rows of steps along z.
fn slice_distances<'a>(
    flags: &[u8],
    [columns, rows, _]: [usize; 3],
    spacing: [f64; 3],
    queries: u8,
    steps: impl Fn(usize) -> &'a [u32],
) -> Vec<f64> {
    let mut is_queried = vec![false; columns];
    for row in flags.chunks_exact(columns) {
        for (queried, flags) in is_queried.iter_mut().zip(row) {
            *queried |= flags & queries != 0;
        }
    }
    let queried: Vec<usize> = (0..columns).filter(|&x| is_queried[x]).collect();
    if queried.is_empty() {
        return Vec::new();
    }

    let mut along_x = Envelope::new(spacing[0]);
    let mut squared = vec![f64::INFINITY; queried.len() * rows];
    for y in 0..rows {
        along_x.clear();
        for (x, &steps) in steps(y).iter().enumerate() {
            if steps != NONE {
                along_x.push(x, (f64::from(steps) * spacing[2]).powi(2));
            }
        }
        let row = squared[y..].iter_mut().step_by(rows);
        row.zip(along_x.values(queried.iter().copied())).for_each(|(squared, value)| *squared = value);
    }

    let mut along_y = Envelope::new(spacing[1]);
    let mut distances = Vec::new();
    for (&x, squared) in queried.iter().zip(squared.chunks_exact(rows)) {
        along_y.clear();
        for (y, &squared) in squared.iter().enumerate() {
            if squared.is_finite() {
                along_y.push(y, squared);
            }
        }
        let queries = (0..rows).filter(|y| flags[y * columns + x] & queries != 0);
        distances.extend(along_y.values(queries).map(f64::sqrt));
    }
    distances
}

/// The lower envelope of the parabolas `height + (step * (position - vertex))^2`.
struct Envelope {
    step: f64,
    parabolas: Vec<Parabola>,
}

struct Parabola {
    vertex: usize,
    height: f64,
    /// The position from which on this parabola is the lowest.
    start: f64,
}

impl Envelope {
    fn new(step: f64) -> Self {
        Envelope { step, parabolas: Vec::new() }
    }

    fn clear(&mut self) {
        self.parabolas.clear();
    }

    /// Adds a parabola to the right of those already there.
    fn push(&mut self, vertex: usize, height: f64) {
        let mut start = f64::NEG_INFINITY;
        while let Some(last) = self.parabolas.last() {
            let (left, right) = (last.vertex as f64, vertex as f64);
            // Where the two parabolas cross.
            start = 0.5 * (left + right) + (height - last.height) / (2.0 * self.step * self.step * (right - left));
            if start > last.start {
                break;
            }
            self.parabolas.pop();
        }
        if self.parabolas.is_empty() {
            start = f64::NEG_INFINITY;
        }
        self.parabolas.push(Parabola { vertex, height, start });
    }

    /// The envelope at ascending `positions`; infinite if there are no parabolas.
    fn values(&self, positions: impl Iterator<Item = usize>) -> impl Iterator<Item = f64> {
        let mut lowest = 0;
        positions.map(move |position| {
            while self.parabolas.get(lowest + 1).is_some_and(|next| next.start <= position as f64) {
                lowest += 1;
            }
            self.parabolas.get(lowest).map_or(f64::INFINITY, |parabola| {
                parabola.height + (self.step * position.abs_diff(parabola.vertex) as f64).powi(2)
            })
        })
    }
}
