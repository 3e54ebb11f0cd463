//! Tests of the phantom: the same bits each time, plausible scans, masks that a threshold misses.

use super::*;

fn small(seed: u64) -> PhantomSettings {
    PhantomSettings { slices: 6, size: 48, seed }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| phantom(&small(3), 1))
    };
    let (one, two) = (on(1), on(2));
    assert_eq!(one.1, two.1);
    assert_eq!(one.0.geometry, two.0.geometry);
    assert!(one.0.voxels.iter().zip(&two.0.voxels).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn another_seed_or_patient_differs() {
    let reference = phantom(&small(3), 1);
    for (settings, patient) in [(small(4), 1), (small(3), 0), (small(3), 2)] {
        let other = phantom(&settings, patient);
        assert_ne!(reference.0.voxels, other.0.voxels);
        assert_ne!(reference.1.voxels, other.1.voxels);
    }
}

#[test]
fn the_geometry_is_as_documented() {
    for (slices, size) in [(1, 1), (6, 48), (200, 16)] {
        let (image, mask) = phantom(&PhantomSettings { slices, size, seed: 5 }, 0);
        assert_eq!(image.geometry, mask.geometry);
        assert_eq!(image.geometry.shape, [size, size, slices]);
        assert_eq!(image.voxels.len(), size * size * slices);
        assert_eq!(mask.voxels.len(), size * size * slices);
        let [x, y, z] = image.geometry.spacing();
        assert_eq!(x, y);
        assert!((220.0..=300.5).contains(&(x * size as f64)), "field of view {} mm", x * size as f64);
        assert!(z <= 3.0 && (slices > 60 || z == 3.0), "slices {z} mm apart");
        let affine = image.geometry.affine;
        // The middle of the grid is the origin in the plane; axes point right, front and up.
        for row in &affine[..2] {
            assert!((row[3] + 0.5 * (size as f64 - 1.0) * x).abs() < 1e-9);
        }
        for (row, column) in (0..9).map(|i| (i / 3, i % 3)) {
            assert_eq!(affine[row][column] > 0.0, row == column);
        }
    }
}

/// Eight patients: all voxels, and which of them are vertebra.
fn series() -> Vec<(Volume<f32>, Volume<u8>)> {
    let settings = PhantomSettings { slices: 12, size: 96, seed: 1 };
    (0..8).map(|patient| phantom(&settings, patient)).collect()
}

#[test]
fn values_are_those_of_a_scan() {
    for (image, mask) in series() {
        assert!(image.voxels.iter().all(|value| value.is_finite() && (-1100.0..=3100.0).contains(value)));
        assert!(mask.voxels.iter().all(|&label| label <= 1));
        let mean = |keep: &dyn Fn(f32, u8) -> bool| {
            let kept: Vec<f64> = (image.voxels.iter().zip(&mask.voxels))
                .filter(|&(&value, &label)| keep(value, label))
                .map(|(&value, _)| f64::from(value))
                .collect();
            kept.iter().sum::<f64>() / kept.len() as f64
        };
        let vertebra = mean(&|_, label| label == 1);
        let soft = mean(&|value, label| label == 0 && value > -200.0);
        assert!(vertebra > soft + 120.0, "vertebra {vertebra} HU, soft tissue {soft} HU");
    }
}

#[test]
fn every_slice_shows_a_vertebra_of_a_vertebras_size() {
    for (_, mask) in series() {
        let [x, y, _] = mask.geometry.spacing();
        for z in 0..mask.geometry.shape[2] {
            let area = mask.slice(z).iter().filter(|&&label| label == 1).count() as f64 * x * y;
            assert!((100.0..5000.0).contains(&area), "slice {z}: {area} mm2");
        }
    }
}

#[test]
fn no_threshold_finds_the_vertebrae() {
    let mut voxels: Vec<(i32, u8)> = Vec::new();
    for (image, mask) in series() {
        voxels.extend(image.voxels.iter().map(|&value| value as i32).zip(mask.voxels));
    }
    voxels.sort_unstable_by_key(|&(value, _)| std::cmp::Reverse(value));
    let truth = voxels.iter().filter(|&&(_, label)| label == 1).count();
    let (mut hits, mut best) = (0, 0.0f64);
    for (index, &(_, label)) in voxels.iter().enumerate() {
        hits += usize::from(label);
        best = best.max(2.0 * hits as f64 / (index + 1 + truth) as f64);
    }
    assert!((0.3..=0.8).contains(&best), "dice {best}");
}

#[test]
fn the_masks_volume_does_not_depend_on_the_resolution() {
    for patient in 0..3 {
        let [coarse, fine] = [80, 200].map(|size| {
            let (_, mask) = phantom(&PhantomSettings { slices: 5, size, seed: 8 }, patient);
            let count = mask.voxels.iter().filter(|&&label| label == 1).count();
            count as f64 * mask.geometry.spacing().iter().product::<f64>()
        });
        assert!((coarse / fine - 1.0).abs() < 0.05, "patient {patient}: {coarse} and {fine} mm3");
    }
}
