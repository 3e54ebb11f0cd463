//! Smooth random fields: independent random numbers at the nodes of a coarse grid, between which cubic B-splines
//! interpolate. The same numbers in the same order give the same field, whatever the number of threads.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// A field of values between -1 and 1 on `shape` voxels, x fastest, `spacing` millimetres apart, whose hills and
/// valleys are about `scale` millimetres wide along `axes`; along other axes it does not change.
pub(super) fn smooth(
    shape: [usize; 3],
    spacing: [f64; 3],
    scale: f64,
    axes: Range<usize>,
    random: &mut ChaCha8Rng,
) -> Vec<f32> {
    // How many nodes apart neighbouring voxels are; all of them share a node along an axis without change.
    let steps: [f64; 3] = std::array::from_fn(|axis| if axes.contains(&axis) { spacing[axis] / scale } else { 0.0 });
    let nodes = |axis: usize| ((shape[axis] - 1) as f64 * steps[axis]) as usize + 4;
    let mut now = [nodes(0), nodes(1), nodes(2)];
    let mut values: Vec<f32> = (0..now.iter().product()).map(|_| random.random::<f32>() * 2.0 - 1.0).collect();
    // Along z first, while the other axes are still short.
    for axis in [2, 1, 0] {
        values = expanded(&values, now, axis, shape[axis], steps[axis]);
        now[axis] = shape[axis];
    }
    values
}

/// Values of `shape` nodes, interpolated along one axis at `count` voxels that are `step` nodes apart.
fn expanded(values: &[f32], shape: [usize; 3], axis: usize, count: usize, step: f64) -> Vec<f32> {
    let inner: usize = shape[..axis].iter().product();
    let outer: usize = shape[axis + 1..].iter().product();
    let mut result = Vec::with_capacity(inner * count * outer);
    for block in values.chunks_exact(inner * shape[axis]) {
        for voxel in 0..count {
            let place = voxel as f64 * step;
            let weights = spline((place - place.floor()) as f32);
            let nodes = &block[place as usize * inner..][..4 * inner];
            result.extend((0..inner).map(|i| (0..4).map(|node| weights[node] * nodes[node * inner + i]).sum::<f32>()));
        }
    }
    result
}

/// The shares, which sum to 1, of four successive nodes at `t` of the way from the second to the third: a uniform
/// cubic B-spline.
fn spline(t: f32) -> [f32; 4] {
    let s = 1.0 - t;
    [
        s * s * s / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * s * s * s - 6.0 * s * s + 4.0) / 6.0,
        t * t * t / 6.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_field_is_smooth_varied_and_within_bounds() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let field = smooth([60, 40, 5], [0.5, 0.5, 3.0], 5.0, 0..2, &mut random);
        assert_eq!(field.len(), 60 * 40 * 5);
        assert!(field.iter().all(|value| value.abs() <= 1.0));
        let mean = field.iter().sum::<f32>() / field.len() as f32;
        let deviation = (field.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / field.len() as f32).sqrt();
        assert!(deviation > 0.1, "{deviation}");
        // Ten voxels to a node: a value changes by at most 2/10 from voxel to voxel, and not at all along z.
        let steepest = field.chunks(60).flat_map(|row| row.windows(2)).map(|pair| (pair[0] - pair[1]).abs());
        assert!(steepest.fold(0.0, f32::max) <= 0.2);
        assert!(field.chunks(60 * 40).all(|slice| slice == &field[..60 * 40]));
    }
}
