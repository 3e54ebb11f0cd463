//! Windowing and resizing of slices, and the way back.

use rarunet_cuda::data::{Dataset, Fit, Geometry, Labels, SliceSet, nifti};
use rarunet_cuda::preprocessing::HounsfieldWindow;

use super::{message, volume};

fn grid(shape: [usize; 3], spacing: [f64; 3]) -> Geometry {
    Geometry::axis_aligned(shape, spacing)
}

/// Passes Hounsfield units through unchanged but for the window.
const PLAIN: HounsfieldWindow = HounsfieldWindow { low: 0.0, high: 1.0, shift: 0.0, scale: 1.0 };

#[test]
fn the_window_is_as_documented() {
    let window = HounsfieldWindow::default();
    assert_eq!(window.apply(-1000.0), window.air());
    assert_eq!(window.apply(-200.0), -0.5);
    assert_eq!(window.apply(1000.0), 4.5);
    assert_eq!(window.apply(3000.0), 4.5);
    assert!((window.apply(400.0) - 2.0).abs() < 1e-6);
}

#[test]
fn a_slice_of_the_right_size_is_left_alone() {
    let fit = Fit::new(&grid([16, 16, 1], [0.7; 3]), 16).unwrap();
    let slice: Vec<f32> = (0..256).map(|i| i as f32 / 256.0).collect();
    assert_eq!(fit.image(&slice, PLAIN), slice);
    assert_eq!(fit.restore(&slice), slice);
    let mask: Vec<u8> = (0..256).map(|i| (i % 3 == 0) as u8).collect();
    assert_eq!(fit.mask(&mask), mask);
}

#[test]
fn shrinking_takes_the_mean_of_the_area() {
    let fit = Fit::new(&grid([32, 32, 1], [1.0; 3]), 16).unwrap();
    let slice: Vec<f32> = (0..1024).map(|i| ((i * 7919) % 1000) as f32 / 1000.0).collect();
    let small = fit.image(&slice, PLAIN);
    for y in 0..16 {
        for x in 0..16 {
            let at = |dx, dy| slice[(2 * y + dy) * 32 + 2 * x + dx];
            let mean = (at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1)) / 4.0;
            assert!((small[y * 16 + x] - mean).abs() < 1e-6);
        }
    }
    // A ratio that is no whole number keeps the mean too.
    let fit = Fit::new(&grid([41, 41, 1], [1.0; 3]), 16).unwrap();
    let slice: Vec<f32> = (0..41 * 41).map(|i| ((i * 7919) % 1000) as f32 / 1000.0).collect();
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    assert!((mean(&fit.image(&slice, PLAIN)) - mean(&slice)).abs() < 1e-5);
}

#[test]
fn growing_interpolates_linearly() {
    let fit = Fit::new(&grid([8, 8, 1], [1.0; 3]), 16).unwrap();
    // A ramp along x stays a ramp, but at the border, where there is nothing beyond.
    let ramp: Vec<f32> = (0..64).map(|i| (i % 8) as f32 / 8.0).collect();
    let large = fit.image(&ramp, PLAIN);
    for x in 1..15 {
        assert!((large[5 * 16 + x] - ((x as f32 + 0.5) / 2.0 - 0.5) / 8.0).abs() < 1e-6);
    }
}

#[test]
fn the_true_shape_is_kept_and_air_surrounds_it() {
    // 40 mm wide, 20 mm high: the content is 32 x 16, with 8 rows of air above and below.
    let fit = Fit::new(&grid([40, 40, 1], [1.0, 0.5, 3.0]), 32).unwrap();
    let image = fit.image(&vec![400.0; 1600], HounsfieldWindow::default());
    for (y, row) in image.chunks_exact(32).enumerate() {
        let expected = if (8..24).contains(&y) { 2.0 } else { HounsfieldWindow::default().air() };
        assert!(row.iter().all(|&value| (value - expected).abs() < 1e-5), "row {y}: {row:?}");
    }
    let mask = fit.mask(&vec![1; 1600]);
    assert_eq!(mask.iter().filter(|&&pixel| pixel == 1).count(), 32 * 16);
    // Content that is far from square has a pixel at least.
    let thin = Fit::new(&grid([300, 1, 1], [1.0; 3]), 16).unwrap();
    assert_eq!(thin.mask(&[1; 300]).iter().filter(|&&pixel| pixel == 1).count(), 16);
    assert_eq!(thin.restore(&vec![0.5; 256]), vec![0.5; 300]);
}

#[test]
fn probabilities_come_back_to_the_slices_own_grid() {
    for (shape, size) in [([50, 37, 1], 64), ([100, 90, 1], 48), ([33, 33, 1], 32)] {
        let fit = Fit::new(&grid(shape, [0.8, 0.8, 2.0]), size).unwrap();
        // A disc, sent to the network's size and back, is the same disc within its border.
        let [w, h, _] = shape;
        let disc: Vec<u8> = (0..w * h)
            .map(|i| ((i % w) as f64 - w as f64 * 0.45).hypot((i / w) as f64 - h as f64 * 0.55) < h as f64 / 4.0)
            .map(u8::from)
            .collect();
        let there: Vec<f32> = fit.mask(&disc).into_iter().map(f32::from).collect();
        let back: Vec<u8> = fit.restore(&there).into_iter().map(|p| u8::from(p >= 0.5)).collect();
        let overlap = disc.iter().zip(&back).filter(|&(&a, &b)| a == 1 && b == 1).count();
        let total: usize = disc.iter().chain(&back).map(|&v| v as usize).sum();
        let dice = 2.0 * overlap as f64 / total as f64;
        assert!(dice > 0.97, "{shape:?} through {size}: dice {dice}");
    }
}

#[test]
fn a_size_that_cannot_be_halved_four_times_is_refused() {
    for size in [0, 8, 100, 250] {
        let text = message(Fit::new(&grid([10, 10, 1], [1.0; 3]), size).map(|_| ()));
        assert!(text.contains("multiple of 16"), "{text}");
    }
}

#[test]
fn storage_order_does_not_matter_to_the_slices() {
    let ras = grid([20, 24, 3], [1.0; 3]);
    let hounsfield = |x: usize, y: usize, z: usize| (x * 10 + y * 20 + z * 100) as f32;
    let inside = |x: usize, y: usize, z: usize| u8::from(x > 3 && y > 10 && z > 0);
    // The same scan stored as inferior, left, posterior.
    let mut stored = grid([3, 20, 24], [1.0; 3]);
    stored.affine = [[0.0, -1.0, 0.0, 19.0], [0.0, 0.0, -1.0, 23.0], [-1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]];

    let sets: Vec<SliceSet> = [false, true]
        .into_iter()
        .map(|turned| {
            let folder = tempfile::tempdir().unwrap();
            let json =
                r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1}, "file_ending": ".nii.gz"}"#;
            std::fs::write(folder.path().join("dataset.json"), json).unwrap();
            let paths = ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"].map(|name| folder.path().join(name));
            if turned {
                let image = volume(stored.clone(), |z, x, y| hounsfield(19 - x, 23 - y, 2 - z));
                nifti::write(&paths[0], &image, None).unwrap();
                let mask = volume(stored.clone(), |z, x, y| inside(19 - x, 23 - y, 2 - z));
                nifti::write(&paths[1], &mask, None).unwrap();
            } else {
                nifti::write(&paths[0], &volume(ras.clone(), hounsfield), None).unwrap();
                nifti::write(&paths[1], &volume(ras.clone(), inside), None).unwrap();
            }
            let dataset = Dataset::open(folder.path()).unwrap();
            SliceSet::load(&dataset, &dataset.cases, 32, HounsfieldWindow::default(), &Labels::default(), || {})
                .unwrap()
        })
        .collect();
    assert_eq!(sets[0], sets[1]);
    let with_foreground: Vec<bool> = sets[0].slices.iter().map(|slice| slice.has_foreground).collect();
    assert_eq!(with_foreground, [false, true, true]);
}
