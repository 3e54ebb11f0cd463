//! Adaptive denoising learning: equation 5, what each strategy leaves out, and how detection is judged.

use rarunet_cuda::data::{Slice, SliceSet};
use rarunet_cuda::train::adl::{Adl, Denoiser, Detection, Noise, auroc, displacement, removals, removals_until};
use rarunet_cuda::train::{Evaluated, LearnerState, State};

const PAPER: [(Noise, f64); 4] = [
    (Noise { proportion: 0.75, overlap: 0.68 }, 7544.0),
    (Noise { proportion: 0.50, overlap: 0.77 }, 3177.0),
    (Noise { proportion: 0.25, overlap: 0.85 }, 946.0),
    (Noise { proportion: 0.25, overlap: 0.55 }, 3101.0),
];

#[test]
fn removals_are_equation_5_epoch_by_epoch() {
    let table = include_str!("equation.csv");
    let mut epochs = 0;
    for line in table.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())) {
        let numbers: Vec<f64> = line.split(',').map(|number| number.parse().unwrap()).collect();
        epochs += 1;
        assert_eq!(numbers[0], epochs as f64);
        for ((noise, _), expected) in PAPER.iter().zip(&numbers[1..]) {
            let found = removals(*noise, 5043, 50, epochs);
            assert!((found - expected).abs() < 1e-6, "{noise:?}, epoch {epochs}: {found}, not {expected}");
        }
    }
    assert_eq!(epochs, 50);
}

#[test]
fn a_run_removes_equation_5_s_sum_but_no_more_than_are_noisy() {
    for (noise, expected) in PAPER {
        let sum: f64 = (1..=50).map(|epoch| removals(noise, 5043, 50, epoch)).sum();
        assert!((sum - expected).abs() <= 0.5, "{noise:?}: {sum}");
        let most = (noise.proportion * 5043.0).round() as usize;
        assert_eq!(removals_until(noise, 5043, 50, 50), (sum as usize).min(most), "{noise:?}");
    }
    // Of 40 masks less than one is removed in most epochs; the fractions add up.
    let small = |epoch| removals_until(PAPER[2].0, 40, 50, epoch);
    assert_eq!([1, 6, 7, 14, 50].map(small), [0, 0, 1, 2, 7]);
}

/// A set of slices, every fourth without foreground.
fn set(count: usize) -> SliceSet {
    let slice = |index| {
        let foreground = index % 4 != 3;
        let (image, mask) = (vec![0.0].into(), vec![u8::from(foreground)].into());
        Slice { case: 0, index, image, mask, has_foreground: foreground }
    };
    SliceSet { size: 1, cases: vec!["a".into()], slices: (0..count).map(slice).collect() }
}

/// Losses that rise with the slice's number, but those of slices without foreground are highest.
fn loss(slice: usize) -> f32 {
    if slice % 4 == 3 { 0.99 } else { slice as f32 / 100.0 }
}

const NOISE: Noise = Noise { proportion: 0.5, overlap: 0.5 };

/// What `adl` leaves out in each of ten epochs over 40 slices, learner by learner.
fn left_out(adl: Adl, losses: impl Fn(usize, usize) -> f32) -> Vec<Vec<Vec<usize>>> {
    let (set, slices): (SliceSet, Vec<usize>) = (set(40), (0..40).collect());
    let truth: Vec<bool> = (0..40).map(|slice| slice % 4 == 1).collect();
    let denoiser = Denoiser::new(adl, Some(NOISE), 10, 1, (&set, &slices), Some(&truth)).unwrap();
    let mut learners: Vec<LearnerState> = State::new(adl.learners(), slices.len()).learners;
    let mut epochs = Vec::new();
    for epoch in 1..=10 {
        denoiser.begin_epoch(epoch, &mut learners);
        epochs.push(learners.iter().map(|learner| denoiser.slices_left_out(learner)).collect());
        for (number, learner) in learners.iter_mut().enumerate() {
            denoiser.record(&mut learner.records, slices.iter().map(|&slice| (slice, losses(number, slice))));
        }
    }
    epochs
}

fn highest(count: usize) -> Vec<usize> {
    let mut masks: Vec<usize> = (0..40).rev().filter(|slice| slice % 4 != 3).take(count).collect();
    masks.sort_unstable();
    masks
}

#[test]
fn each_strategy_leaves_out_what_it_says() {
    let plain = |_: usize, slice: usize| loss(slice);
    assert!(left_out(Adl::Off, plain).iter().all(|epoch| epoch[0].is_empty()));

    let cumulative = left_out(Adl::Cumulative, plain);
    let per_epoch = left_out(Adl::PerEpoch, plain);
    assert!(cumulative[0][0].is_empty() && per_epoch[0][0].is_empty(), "no loss is known in the first epoch");
    for epoch in 2..=10u64 {
        let index = epoch as usize - 1;
        assert_eq!(cumulative[index][0], highest(removals_until(NOISE, 30, 10, epoch)), "epoch {epoch}");
        assert_eq!(per_epoch[index][0], highest(removals(NOISE, 30, 10, epoch).round() as usize), "epoch {epoch}");
    }
    assert_eq!(left_out(Adl::Paper, plain), per_epoch);

    let random = left_out(Adl::Random, plain);
    for (random, cumulative) in random.iter().zip(&cumulative) {
        assert_eq!(random[0].len(), cumulative[0].len());
        assert!(random[0].iter().all(|slice| slice % 4 != 3), "only masks with foreground");
    }
    assert_ne!(random[9], cumulative[9]);
    assert!(random[4][0].iter().all(|slice| random[9][0].contains(slice)), "what is removed stays out");

    let noisy: Vec<usize> = (0..40).filter(|slice| slice % 4 == 1).collect();
    assert!(left_out(Adl::Oracle, plain).iter().all(|epoch| epoch[0] == noisy));
}

#[test]
fn each_co_teacher_leaves_out_what_the_other_finds_hard() {
    let opposite = |learner: usize, slice: usize| if learner == 0 { loss(slice) } else { 1.0 - loss(slice) };
    let epochs = left_out(Adl::CoTeaching, opposite);
    assert_eq!(epochs[0], [Vec::<usize>::new(), Vec::new()]);
    assert_eq!(epochs[9][1], highest(15));
    let lowest: Vec<usize> = (0..40).filter(|slice| slice % 4 != 3).take(15).collect();
    assert_eq!(epochs[9][0], lowest);
    assert!(epochs[1][0].len() < 15, "the share rises");
}

/// A mask that was removed stays out though its loss falls; only the per-epoch reading lets it back in.
#[test]
fn removal_is_for_good_in_the_cumulative_reading_alone() {
    let (set, slices): (SliceSet, Vec<usize>) = (set(8), (0..8).collect());
    for (adl, stays) in [(Adl::Cumulative, true), (Adl::PerEpoch, false)] {
        let noise = Noise { proportion: 0.9, overlap: 0.1 };
        let denoiser = Denoiser::new(adl, Some(noise), 10, 1, (&set, &slices), None).unwrap();
        let mut learners = State::new(1, 8).learners;
        let losses = |high: usize| (0..8).map(move |slice| (slice, if slice == high { 0.9 } else { 0.1 }));
        denoiser.record(&mut learners[0].records, losses(2));
        denoiser.begin_epoch(2, &mut learners);
        assert_eq!(learners[0].weights[2], 0.0);
        denoiser.record(&mut learners[0].records, losses(6));
        denoiser.begin_epoch(3, &mut learners);
        assert_eq!(learners[0].weights[6], 0.0);
        assert_eq!(learners[0].weights[2] == 0.0, stays, "{adl:?}");
        assert!(denoiser.detection(&learners[0]).is_none(), "the truth is unknown");
    }
}

#[test]
fn strategies_say_what_they_miss() {
    let (set, slices): (SliceSet, Vec<usize>) = (set(8), (0..8).collect());
    let refuse = |adl| match Denoiser::new(adl, None, 10, 1, (&set, &slices), None) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{adl:?} needs to be told something"),
    };
    for adl in [Adl::Paper, Adl::Cumulative, Adl::PerEpoch, Adl::Random, Adl::CoTeaching] {
        assert!(refuse(adl).contains("--noise-proportion"), "{adl:?}");
    }
    assert!(refuse(Adl::Oracle).contains("corrupt"));
}

#[test]
fn detection_is_precision_recall_and_the_area_under_the_curve() {
    // Scores 4 > 3 > 2 = 2 > 1; noisy are 4, one 2 and 1; 4 and 3 are left out.
    let masks = [(4.0, true, true), (3.0, true, false), (2.0, false, true), (2.0, false, false), (1.0, false, true)];
    let detection = Detection::of(&masks);
    assert_eq!(detection.precision, Some(0.5));
    assert_eq!(detection.recall, Some(1.0 / 3.0));
    // Pairs won: 4 beats both clean ones, 2 ties with one, 1 beats none: 2.5 of 6.
    assert_eq!(detection.auroc, Some(2.5 / 6.0));
    assert_eq!(auroc(vec![(1.0, true), (0.0, true)]), None);
    assert_eq!(auroc(vec![(1.0, true), (0.0, false)]), Some(1.0));
    assert_eq!(auroc(vec![(0.0, true), (1.0, false)]), Some(0.0));
}

/// Displacements of masks whose outlines lie `low` (right ones) or `high` (wrong ones) pixels off, give or take a
/// quarter, and the Dice that right masks have with the prediction.
fn scored(learner: &mut LearnerState, low: f32, high: f32, dice: f32) {
    for i in (0..40).filter(|i| i % 4 != 3) {
        let is_wrong = i % 4 == 1;
        let spread = 1.0 + 0.25 * ((i * 7 % 11) as f32 / 5.0 - 1.0);
        learner.records.displacement[i] = spread * if is_wrong { high } else { low };
        learner.records.last[i] = if is_wrong { 0.4 } else { 1.0 - dice };
    }
}

#[test]
fn auto_leaves_out_the_masks_that_lie_apart() {
    let (set, slices): (SliceSet, Vec<usize>) = (set(40), (0..40).collect());
    let truth: Vec<bool> = (0..40).map(|slice| slice % 4 == 1).collect();
    let denoiser = Denoiser::new(Adl::Auto, None, 10, 1, (&set, &slices), Some(&truth)).unwrap();
    let mut learners = State::new(1, 40).learners;
    let left_out = |learners: &mut Vec<LearnerState>, epoch| {
        denoiser.begin_epoch(epoch, learners);
        denoiser.slices_left_out(&learners[0])
    };
    assert!(left_out(&mut learners, 1).is_empty());
    assert_eq!(denoiser.slices_to_score(&learners[0]), slices, "all masks are scored in every epoch");

    scored(&mut learners[0], 0.3, 2.0, 0.9);
    let wrong: Vec<usize> = (0..40).filter(|slice| slice % 4 == 1).collect();
    assert_eq!(left_out(&mut learners, 5), wrong);
    let estimate = denoiser.estimate(&learners[0]).unwrap();
    assert!((estimate.proportion - 1.0 / 3.0).abs() < 1e-3 && (estimate.overlap - 0.6).abs() < 1e-3, "{estimate:?}");
    let detection = denoiser.detection(&learners[0]).unwrap();
    assert_eq!([detection.precision, detection.recall, detection.auroc], [Some(1.0); 3]);

    // What it left out comes back when it no longer lies apart.
    scored(&mut learners[0], 0.3, 0.3, 0.9);
    assert!(left_out(&mut learners, 6).is_empty());
    assert_eq!(denoiser.estimate(&learners[0]), None);
    // And a network that has not learnt yet is not believed.
    scored(&mut learners[0], 0.3, 2.0, 0.5);
    assert!(left_out(&mut learners, 7).is_empty());
}

/// A shrunken and a grown mask whose outlines are equally far from the prediction's are equally suspicious, though
/// the shrunken one has the higher loss.
#[test]
fn displacement_judges_masks_too_small_and_too_large_alike() {
    let size = 40;
    let disc = |radius: f64| -> Vec<f32> {
        let inside = |i: usize| (i % size) as f64 - 19.5;
        (0..size * size).map(|i| f32::from(u8::from(inside(i).hypot((i / size) as f64 - 19.5) <= radius))).collect()
    };
    let prediction = disc(10.0);
    let score =
        |target: &[f32]| displacement(&Evaluated { slice: 0, loss: 0.0, probabilities: &prediction, target }, size);
    let [small, large] = [disc(8.0), disc(12.0)].map(|target| score(&target));
    assert!((small / large - 1.0).abs() < 0.1, "{small} and {large}");
    assert!((2.0..3.0).contains(&small), "two pixels off in each direction, outlines being counted in whole pixels");
    assert_eq!(score(&prediction), 0.0);
    assert_eq!(score(&disc(12.0)), large);
    assert!(score(&vec![0.0; size * size]).is_finite(), "an empty mask has no outline");
}
