//! Masks of several labels: what the voxels that change sides are labelled.

use crate::metrics::distance::distances;
use std::collections::BTreeSet;

/// Changes the voxels `flipped` of a slice or volume of `shape` voxels, x fastest, `spacing` millimetres apart.
///
/// A foreground voxel that is lost becomes 0; one that is gained takes the foreground label nearest to it (the
/// lower of two equally near ones). All others keep theirs, whatever it is.
pub fn relabel(
    labels: &mut [i32],
    shape: [usize; 3],
    spacing: [f64; 3],
    is_foreground: impl Fn(i32) -> bool,
    flipped: &[usize],
) {
    let [width, height, _] = shape;
    let place = |voxel: usize| [voxel % width, voxel / width % height, voxel / (width * height)];
    let (lost, mut gained): (Vec<usize>, Vec<usize>) = flipped.iter().partition(|&&voxel| is_foreground(labels[voxel]));
    let present: BTreeSet<i32> = labels.iter().copied().filter(|&label| is_foreground(label)).collect();
    let mut nearest: Vec<(f64, i32)> = vec![(f64::INFINITY, present.first().copied().unwrap_or(1)); gained.len()];
    if present.len() > 1 && !gained.is_empty() {
        let marked = (0..labels.len()).filter(|&voxel| is_foreground(labels[voxel])).chain(gained.iter().copied());
        let (mut low, mut high) = (shape, [0; 3]);
        for place in marked.map(place) {
            for axis in 0..3 {
                low[axis] = low[axis].min(place[axis]);
                high[axis] = high[axis].max(place[axis] + 1);
            }
        }
        let size: [usize; 3] = std::array::from_fn(|axis| high[axis] - low[axis]);
        let in_box = |voxel: usize| {
            let [x, y, z] = place(voxel);
            ((z - low[2]) * size[1] + y - low[1]) * size[0] + x - low[0]
        };
        // The order in which distances come.
        gained.sort_unstable_by_key(|&voxel| {
            let [x, y, z] = place(voxel);
            (z, x, y)
        });
        for &label in &present {
            let mut flags = vec![0; size.iter().product()];
            (0..labels.len()).filter(|&voxel| labels[voxel] == label).for_each(|voxel| flags[in_box(voxel)] = 1);
            gained.iter().for_each(|&voxel| flags[in_box(voxel)] |= 2);
            for (nearest, distance) in nearest.iter_mut().zip(distances(&flags, size, spacing, 1, 2)) {
                if distance < nearest.0 {
                    *nearest = (distance, label);
                }
            }
        }
    }
    lost.into_iter().for_each(|voxel| labels[voxel] = 0);
    gained.into_iter().zip(nearest).for_each(|(voxel, (_, label))| labels[voxel] = label);
}
