//! Splits and batches: complete, without overlap, and a function of the seed alone.

use std::collections::BTreeSet;

use rarunet_cuda::data::{Loader, Pixels, Slice, SliceSet, Split};

use super::message;

/// Cases a, b, ... with as many slices as given, foreground in the middle half of each; every
/// pixel of a slice tells which slice and where in it.
fn set(counts: &[usize], size: usize) -> SliceSet {
    let mut slices = Vec::new();
    for (case, &count) in counts.iter().enumerate() {
        for index in 0..count {
            let has_foreground = index >= count / 4 && index < count - count / 4;
            let number = slices.len();
            let image: Vec<f32> = (0..size * size).map(|pixel| (number * 1000 + pixel) as f32).collect();
            let mask: Vec<u8> = (0..size * size).map(|pixel| u8::from(has_foreground && pixel % size == 1)).collect();
            slices.push(Slice { case, index, image: Pixels::from(image), mask: Pixels::from(mask), has_foreground });
        }
    }
    let cases = (0..counts.len()).map(|case| char::from(b'a' + case as u8).to_string()).collect();
    SliceSet { size, cases, slices }
}

fn assert_complete(set: &SliceSet, split: &Split) {
    let all: Vec<usize> = [&split.train[..], &split.validation, &split.test].concat();
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), (0..set.slices.len()).collect());
    assert_eq!(all.len(), set.slices.len(), "a slice is in two lists");
}

#[test]
fn test_patients_are_left_out_whole_and_a_tenth_validates() {
    let set = set(&[40, 40, 40, 40], 2);
    let split = Split::new(&set, &["b".to_owned()], 0.1, 7).unwrap();
    assert_complete(&set, &split);
    assert_eq!(split.test, (40..80).collect::<Vec<_>>());
    // 60 slices with foreground and 60 without: 6 of each.
    let foreground = split.validation.iter().filter(|&&i| set.slices[i].has_foreground).count();
    assert_eq!((split.validation.len(), foreground), (12, 6));

    assert_eq!(split, Split::new(&set, &["b".to_owned()], 0.1, 7).unwrap());
    assert_ne!(split, Split::new(&set, &["b".to_owned()], 0.1, 8).unwrap());
}

#[test]
fn one_patient_alone_holds_out_runs_of_neighbours() {
    let set = set(&[100], 2);
    let split = Split::new(&set, &[], 0.16, 3).unwrap();
    assert_complete(&set, &split);
    assert_eq!(split.validation.len(), 16);
    // 8 of either kind are two runs each: at most 4 runs, not 16 single slices.
    let runs = split.validation.windows(2).filter(|pair| pair[1] != pair[0] + 1).count() + 1;
    assert!(runs <= 4, "{runs} runs: {:?}", split.validation);
}

#[test]
fn the_smallest_sets_still_train() {
    for count in [2, 3, 4, 9] {
        let set = set(&[count], 2);
        let split = Split::new(&set, &[], 0.1, 1).unwrap();
        assert_complete(&set, &split);
        assert!(split.train.iter().any(|&i| set.slices[i].has_foreground), "{count} slices: {split:?}");
        assert!(split.validation.iter().any(|&i| set.slices[i].has_foreground), "{count} slices: {split:?}");
    }
    let single = set(&[1], 2);
    let split = Split::new(&single, &[], 0.1, 1).unwrap();
    assert_eq!((split.train, split.validation), (vec![0], vec![]));
}

#[test]
fn impossible_splits_say_why() {
    let set = set(&[8, 8], 2);
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert!(message(Split::new(&set, &names(&["c"]), 0.1, 1)).contains("\"c\" is not one of a, b"));
    assert!(message(Split::new(&set, &names(&["a", "b"]), 0.1, 1)).contains("foreground"));
    for fraction in [1.0, -0.1, f64::NAN] {
        assert!(message(Split::new(&set, &[], fraction, 1)).contains("validation fraction"));
    }
}

struct Buffers {
    image: Vec<f32>,
    target: Vec<f32>,
    weight: Vec<f32>,
}

fn buffers(batch: usize, size: usize) -> Buffers {
    let area = batch * size * size;
    Buffers { image: vec![0.0; area], target: vec![0.0; area], weight: vec![0.0; batch] }
}

fn epoch(loader: &Loader, b: &mut Buffers) -> (Vec<usize>, Vec<f32>) {
    let (mut order, mut pixels) = (Vec::new(), Vec::new());
    for batch in 0..loader.batches() {
        order.extend_from_slice(loader.fill(batch, &mut b.image, &mut b.target, &mut b.weight));
        pixels.extend_from_slice(&b.image);
    }
    (order, pixels)
}

#[test]
fn an_epoch_gives_each_slice_once_in_an_order_of_its_own() {
    let set = set(&[30], 4);
    let chosen: Vec<usize> = (0..30).filter(|i| i % 4 != 0).collect();
    let mut b = buffers(5, 4);
    let mut loader = Loader::new(&set, chosen.clone(), 5, 11, true);
    loader.begin_epoch(1, &vec![1.0; chosen.len()]);
    let first = epoch(&loader, &mut b);
    loader.begin_epoch(2, &vec![1.0; chosen.len()]);
    let second = epoch(&loader, &mut b);
    assert_eq!(first.0.iter().copied().collect::<BTreeSet<_>>(), chosen.iter().copied().collect());
    assert_eq!(first.0.len(), chosen.len());
    assert_ne!(first.0, second.0);

    // Epoch 2 is the same whatever came before it, and another seed's is not.
    let mut later = Loader::new(&set, chosen.clone(), 5, 11, true);
    later.begin_epoch(2, &vec![1.0; chosen.len()]);
    assert_eq!(epoch(&later, &mut b), second);
    let mut other = Loader::new(&set, chosen.clone(), 5, 12, true);
    other.begin_epoch(2, &vec![1.0; chosen.len()]);
    assert_ne!(epoch(&other, &mut b).0, second.0);
}

#[test]
fn slices_left_out_of_an_epoch_leave_their_places_to_others() {
    let set = set(&[12], 4);
    let chosen: Vec<usize> = (0..10).collect();
    let mut b = buffers(4, 4);
    let mut loader = Loader::new(&set, chosen.clone(), 4, 3, false);
    let weights = [0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0];
    loader.begin_epoch(1, &weights);
    assert_eq!(loader.batches(), 3);
    let order = epoch(&loader, &mut b).0;
    let times: Vec<usize> = (0..10).map(|slice| order.iter().filter(|&&other| other == slice).count()).collect();
    assert_eq!(times.iter().sum::<usize>(), 10);
    for (slice, times) in times.into_iter().enumerate() {
        assert_eq!(times > 0, weights[slice] > 0.0, "slice {slice}");
        assert!(times <= 3, "10 places go round 4 slices evenly");
    }
    for batch in 0..3 {
        let slices = loader.fill(batch, &mut b.image, &mut b.target, &mut b.weight);
        for (&slice, &weight) in slices.iter().zip(&b.weight) {
            assert_eq!(weight, weights[slice]);
        }
    }
}

#[test]
fn a_last_batch_is_filled_up_with_slices_that_do_not_count() {
    let set = set(&[7], 4);
    let loader = Loader::new(&set, (0..7).collect(), 4, 1, false);
    let mut b = buffers(4, 4);
    assert_eq!(loader.batches(), 2);
    assert_eq!(loader.fill(0, &mut b.image, &mut b.target, &mut b.weight), [0, 1, 2, 3]);
    assert_eq!(b.weight, [1.0; 4]);
    assert_eq!(loader.fill(1, &mut b.image, &mut b.target, &mut b.weight), [4, 5, 6]);
    assert_eq!(b.weight, [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(b.image[3 * 16..], set.slices[0].image[..]);
    // One slice in a batch of four goes round.
    let lonely = Loader::new(&set, vec![5], 4, 1, false);
    assert_eq!(lonely.fill(0, &mut b.image, &mut b.target, &mut b.weight), [5]);
    assert_eq!(b.weight, [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(b.image[16..32], set.slices[5].image[..]);
}

#[test]
fn images_and_masks_turn_together_by_quarter_turns() {
    let size = 4;
    let set = set(&[60], size);
    let mut loader = Loader::new(&set, (0..60).collect(), 1, 5, true);
    loader.begin_epoch(3, &[1.0; 60]);
    let mut b = buffers(1, size);
    let mut seen = [0; 3];
    for batch in 0..loader.batches() {
        let slice = &set.slices[loader.fill(batch, &mut b.image, &mut b.target, &mut b.weight)[0]];
        // Where each pixel came from is written in it.
        let from = |x: usize, y: usize| (b.image[y * size + x] - slice.image[0]) as usize;
        let turn = [from(0, 0), from(size - 1, 0)];
        let kind = match turn {
            [0, 3] => 0,
            [12, 0] => 1,
            [3, 15] => 2,
            other => panic!("no quarter turn has these corners: {other:?}"),
        };
        seen[kind] += 1;
        for y in 0..size {
            for x in 0..size {
                let expected = match kind {
                    0 => y * size + x,
                    1 => (size - 1 - x) * size + y,
                    _ => x * size + size - 1 - y,
                };
                assert_eq!(from(x, y), expected);
                assert_eq!(b.target[y * size + x], f32::from(slice.mask[expected]));
            }
        }
    }
    assert!(seen.iter().all(|&count| count >= 10), "20 of each are likely, not {seen:?}");
}
