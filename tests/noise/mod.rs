//! Noisy labels: how many, how far from the truth, and what must not change.

mod command;
mod properties;

use rarunet_cuda::metrics::Counts;
use rarunet_cuda::noise::{Kind, NoiseSettings, corrupt_slices, mean_overlap};

/// Slices of `width` x `height` pixels, each with a few discs of different places and sizes; every fifth is empty.
pub fn slices(count: usize, [width, height]: [usize; 2], radius: f64) -> Vec<Vec<u8>> {
    let slice = |i: usize| {
        let pixel = |pixel: usize| {
            let (x, y) = ((pixel % width) as f64, (pixel / width) as f64);
            let disc = |x0: f64, y0: f64, scale: f64| {
                let radius = radius * scale * (0.7 + 0.06 * (i % 11) as f64);
                ((x - x0 * width as f64).powi(2) + (y - y0 * height as f64).powi(2)).sqrt() < radius
            };
            let shift = 0.02 * (i % 7) as f64;
            u8::from(disc(0.4 + shift, 0.5, 1.0) || disc(0.45 + shift, 0.62, 0.6))
        };
        (0..width * height).map(|p| if i % 5 == 4 { 0 } else { pixel(p) }).collect()
    };
    (0..count).map(slice).collect()
}

/// The corrupted slices and what was said about them.
pub fn corrupted(
    slices: &[Vec<u8>],
    width: usize,
    settings: &NoiseSettings,
) -> rarunet_cuda::Result<(Vec<Vec<u8>>, Vec<rarunet_cuda::noise::Corruption>)> {
    let mut noisy = slices.to_vec();
    let mut references: Vec<&mut [u8]> = noisy.iter_mut().map(Vec::as_mut_slice).collect();
    let corruptions = corrupt_slices(&mut references, width, settings)?;
    Ok((noisy, corruptions))
}

/// The Dice overlap, counted independently of the noise module.
pub fn dice(a: &[u8], b: &[u8]) -> f64 {
    let bools = |mask: &[u8]| mask.iter().map(|&pixel| pixel != 0).collect::<Vec<bool>>();
    Counts::of(&bools(a), &bools(b)).unwrap().dice().value().unwrap()
}

/// The paper's noise proportions and levels.
pub const PAPER: [(f64, f64); 4] = [(0.75, 0.68), (0.5, 0.77), (0.25, 0.85), (0.25, 0.55)];

#[test]
fn the_papers_noise_is_exact_in_number_and_within_a_hundredth_in_overlap() {
    let truth = slices(203, [64, 48], 11.0);
    let non_empty = truth.iter().filter(|slice| slice.contains(&1)).count();
    for (proportion, overlap) in PAPER {
        let (noisy, corruptions) = corrupted(&truth, 64, &NoiseSettings::new(proportion, overlap)).unwrap();
        let changed: Vec<usize> = (0..truth.len()).filter(|&i| truth[i] != noisy[i]).collect();
        assert_eq!(changed.len(), (proportion * non_empty as f64).round() as usize);
        assert_eq!(changed, corruptions.iter().map(|corruption| corruption.mask).collect::<Vec<_>>());
        let overlaps: Vec<f64> = changed.iter().map(|&i| dice(&truth[i], &noisy[i])).collect();
        let mean = overlaps.iter().sum::<f64>() / overlaps.len() as f64;
        assert!((mean - overlap).abs() <= 0.01, "{mean} instead of {overlap}");
        for (corruption, counted) in corruptions.iter().zip(&overlaps) {
            assert!((corruption.overlap - counted).abs() < 1e-12);
            assert!((counted - overlap).abs() < 0.02, "one pixel more or less: {corruption:?}");
        }
        for kind in Kind::ALL {
            let of_kind: Vec<_> = corruptions.iter().filter(|corruption| corruption.kind == kind).collect();
            assert!(of_kind.len().abs_diff(changed.len() / 3) <= 1, "{kind:?}: {}", of_kind.len());
            assert!((mean_overlap(of_kind) - overlap).abs() <= 0.01);
        }
    }
}

#[test]
fn erosion_only_takes_and_dilation_only_adds() {
    let truth = slices(40, [64, 64], 14.0);
    let (noisy, corruptions) = corrupted(&truth, 64, &NoiseSettings::new(1.0, 0.7)).unwrap();
    let mut moved = 0;
    for corruption in &corruptions {
        let pairs = truth[corruption.mask].iter().zip(&noisy[corruption.mask]);
        let (mut taken, mut added) = (0, 0);
        for (old, new) in pairs {
            taken += usize::from(old > new);
            added += usize::from(new > old);
        }
        match corruption.kind {
            Kind::Erosion => assert!(taken > 0 && added == 0),
            Kind::Dilation => assert!(taken == 0 && added > 0),
            Kind::Elastic => moved += usize::from(taken > 0 && added > 0),
        }
    }
    assert!(moved > 5, "an elastic deformation both takes and adds: {moved}");
}

#[test]
fn noise_follows_from_the_seed_whatever_the_number_of_threads() {
    let truth = slices(40, [48, 48], 9.0);
    let settings = NoiseSettings::new(0.5, 0.77);
    let on = |threads: usize, settings: &NoiseSettings| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| corrupted(&truth, 48, settings).unwrap())
    };
    let one = on(1, &settings);
    assert_eq!(one, on(3, &settings));
    assert_ne!(one.0, on(1, &NoiseSettings { seed: 2, ..settings }).0);
}

#[test]
fn tiny_masks_are_corrupted_but_not_emptied_and_the_others_make_up_for_them() {
    // Ten masks of one to three pixels, which can be near no overlap of 0.85, among forty larger ones.
    let mut truth = slices(50, [48, 48], 10.0);
    for (i, slice) in truth.iter_mut().filter(|slice| slice.contains(&1)).take(10).enumerate() {
        slice.fill(0);
        slice[1000..=1000 + i % 3].fill(1);
    }
    let (noisy, corruptions) = corrupted(&truth, 48, &NoiseSettings::new(1.0, 0.85)).unwrap();
    assert_eq!(corruptions.len(), 40);
    assert!((mean_overlap(&corruptions) - 0.85).abs() <= 0.01, "{}", mean_overlap(&corruptions));
    for corruption in &corruptions {
        assert!(noisy[corruption.mask].contains(&1), "a corrupted mask is not empty");
        assert!(corruption.overlap < 1.0 && noisy[corruption.mask] != truth[corruption.mask]);
    }
}

#[test]
fn a_mask_that_fills_its_slice_is_eroded_and_a_lone_pixel_grows() {
    let truth = vec![vec![1; 24 * 24]];
    let (_, corruptions) = corrupted(
        &truth,
        24,
        &NoiseSettings { kinds: vec![Kind::Dilation, Kind::Erosion], ..NoiseSettings::new(1.0, 0.8) },
    )
    .unwrap();
    assert_eq!(corruptions[0].kind, Kind::Erosion);
    let mut truth = vec![vec![0; 24 * 24]];
    truth[0][30] = 1;
    let settings = NoiseSettings { kinds: vec![Kind::Erosion, Kind::Dilation], ..NoiseSettings::new(1.0, 2.0 / 3.0) };
    let (noisy, corruptions) = corrupted(&truth, 24, &settings).unwrap();
    assert_eq!((corruptions[0].kind, corruptions[0].flipped.len()), (Kind::Dilation, 1));
    assert_eq!(noisy[0].iter().filter(|&&pixel| pixel == 1).count(), 2);
}

#[test]
fn what_cannot_be_done_is_said() {
    let truth = slices(10, [32, 32], 6.0);
    let mut pixel = vec![vec![0; 32 * 32]];
    pixel[0][500] = 1;
    for (slices, settings, expected) in [
        (&truth, NoiseSettings::new(1.5, 0.8), "noise proportion 1.5"),
        (&truth, NoiseSettings::new(f64::NAN, 0.8), "noise proportion NaN"),
        (&truth, NoiseSettings::new(0.5, 0.0), "noise overlap 0"),
        (&truth, NoiseSettings::new(0.5, 1.0), "noise overlap 1"),
        (&truth, NoiseSettings { kinds: vec![], ..NoiseSettings::new(0.5, 0.8) }, "name erosion"),
        (&pixel, NoiseSettings { kinds: vec![Kind::Erosion], ..NoiseSettings::new(1.0, 0.8) }, "allow more kinds"),
        (&pixel, NoiseSettings::new(1.0, 0.9), "choose another overlap"),
    ] {
        let message = corrupted(slices, 32, &settings).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert!(corrupted(&truth, 31, &NoiseSettings::new(0.5, 0.8)).is_err());
    assert_eq!(corrupted(&truth, 32, &NoiseSettings::new(0.0, 0.8)).unwrap(), (truth, vec![]));
}
