//! What holds of any masks.

use super::{corrupted, dice};
use proptest::prelude::*;
use rarunet_cuda::noise::{Kind, Mask, NoiseSettings, corrupt, relabel};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn corrupted_masks_are_as_many_as_asked_changed_not_empty_and_as_said(
        pixels in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.4), 16 * 12), 1..12),
        proportion in 0.0..=1.0,
        overlap in 0.3..0.9,
        seed in 0u64..1000,
    ) {
        let truth: Vec<Vec<u8>> =
            pixels.iter().map(|slice| slice.iter().map(|&pixel| u8::from(pixel)).collect()).collect();
        let settings = NoiseSettings { proportion, overlap, kinds: Kind::ALL.to_vec(), seed };
        // Speckled masks of few pixels may be unable to reach the mean, which is then said.
        if let Ok((noisy, corruptions)) = corrupted(&truth, 16, &settings) {
            let non_empty = truth.iter().filter(|slice| slice.contains(&1)).count();
            prop_assert_eq!(corruptions.len(), (proportion * non_empty as f64).round() as usize);
            for (i, (truth, noisy)) in truth.iter().zip(&noisy).enumerate() {
                let Some(corruption) = corruptions.iter().find(|corruption| corruption.mask == i) else {
                    prop_assert_eq!(truth, noisy);
                    continue;
                };
                prop_assert!(truth != noisy && noisy.contains(&1) && truth.contains(&1));
                prop_assert!((corruption.overlap - dice(truth, noisy)).abs() < 1e-12);
                let changed: Vec<usize> = (0..truth.len()).filter(|&pixel| truth[pixel] != noisy[pixel]).collect();
                prop_assert_eq!(&changed, &corruption.flipped);
            }
        }
    }

    #[test]
    fn balls_reach_any_overlap_in_three_dimensions_whatever_the_spacing(
        radius in 4.0..9.0f64,
        across in 0.5..1.5f64,
        along in 0.5..3.0f64,
        overlap in 0.5..0.9,
        kind in prop::sample::select(Kind::ALL.to_vec()),
    ) {
        let shape = [28, 24, 20];
        let ball = |voxel: usize| {
            let place = [voxel % 28, voxel / 28 % 24, voxel / (28 * 24)].map(|place| place as f64);
            let from_centre = [place[0] - 13.0, place[1] - 12.0, (place[2] - 9.0) * along / across];
            from_centre.iter().map(|offset| offset * offset).sum::<f64>() < radius * radius
        };
        let mask = Mask::new(shape, [across, across, along], ball).unwrap();
        let settings = NoiseSettings { proportion: 1.0, overlap, kinds: vec![kind], seed: 3 };
        let corruptions = corrupt(std::slice::from_ref(&mask), &settings).unwrap();
        prop_assert!((corruptions[0].overlap - overlap).abs() <= 0.01);
        let noisy = |voxel: usize| ball(voxel) != corruptions[0].flipped.binary_search(&voxel).is_ok();
        let both = (0..shape.iter().product()).filter(|&voxel| ball(voxel) && noisy(voxel)).count();
        let sum = mask.count() + (0..shape.iter().product()).filter(|&voxel| noisy(voxel)).count();
        prop_assert!((corruptions[0].overlap - 2.0 * both as f64 / sum as f64).abs() < 1e-12);
    }

    #[test]
    fn a_gained_voxel_takes_a_nearest_label_and_a_lost_one_none(
        labels in prop::collection::vec(prop::sample::select(vec![0, 0, 0, 2, 3, 7]), 5 * 4 * 3),
        flipped in prop::collection::btree_set(0usize..60, 0..20),
    ) {
        // 7 is there, but is no foreground.
        let is_foreground = |label: i32| label == 2 || label == 3;
        let flipped: Vec<usize> = flipped.into_iter().collect();
        let spacing = [1.0, 1.5, 2.0];
        let mut changed = labels.clone();
        relabel(&mut changed, [5, 4, 3], spacing, is_foreground, &flipped);
        let place = |voxel: usize| [voxel % 5, voxel / 5 % 4, voxel / 20];
        let distance = |a: usize, b: usize| {
            let (a, b) = (place(a), place(b));
            (0..3).map(|axis| (a[axis].abs_diff(b[axis]) as f64 * spacing[axis]).powi(2)).sum::<f64>()
        };
        for voxel in 0..labels.len() {
            if !flipped.contains(&voxel) {
                prop_assert_eq!(changed[voxel], labels[voxel]);
            } else if is_foreground(labels[voxel]) {
                prop_assert_eq!(changed[voxel], 0);
            } else {
                let all = (0..labels.len()).filter(|&other| is_foreground(labels[other]));
                let nearest = all.clone().map(|other| distance(voxel, other)).fold(f64::INFINITY, f64::min);
                let of_label = all.filter(|&other| labels[other] == changed[voxel]);
                let own = of_label.map(|other| distance(voxel, other)).fold(f64::INFINITY, f64::min);
                prop_assert!(own == nearest, "{} instead of {}", own, nearest);
            }
        }
    }
}
