//! Batches as training gets them: 8 of 600 slices of 256 x 256 in memory, shuffled and turned, filled by one thread.
//!
//! `cargo bench --bench loader`.

use rarunet_cuda::data::{Loader, Slice, SliceSet};
use std::time::Instant;

const SLICES: usize = 600;
const SIZE: usize = 256;
const BATCH: usize = 8;
const EPOCHS: u64 = 9;

/// A disc that moves from slice to slice, in noise.
fn slice(index: usize) -> Slice {
    let centre = 80 + index % 96;
    let (mut image, mut mask) = (Vec::with_capacity(SIZE * SIZE), Vec::with_capacity(SIZE * SIZE));
    for y in 0..SIZE {
        for x in 0..SIZE {
            let inside = x.abs_diff(centre).pow(2) + y.abs_diff(128).pow(2) < 30 * 30;
            image.push(if inside { 0.8 } else { 0.3 } + ((x * 31 + y * 17 + index) % 64) as f32 / 640.0);
            mask.push(u8::from(inside));
        }
    }
    Slice { case: 0, index, image: image.into(), mask: mask.into(), has_foreground: true }
}

/// The median images a second of an epoch, its shuffling and the choice of turns included.
fn images_per_s(set: &SliceSet, augment: bool) -> f64 {
    let mut loader = Loader::new(set, (0..SLICES).collect(), BATCH, 1, augment);
    let (mut image, mut target) = (vec![0.0; BATCH * SIZE * SIZE], vec![0.0; BATCH * SIZE * SIZE]);
    let (mut weight, weights) = ([0.0; BATCH], [1.0; SLICES]);
    let mut speeds: Vec<f64> = (0..EPOCHS)
        .map(|epoch| {
            let started = Instant::now();
            loader.begin_epoch(epoch, &weights);
            let filled: usize =
                (0..loader.batches()).map(|batch| loader.fill(batch, &mut image, &mut target, &mut weight).len()).sum();
            assert_eq!(filled, SLICES);
            filled as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

fn main() {
    let set = SliceSet { size: SIZE, cases: vec!["a phantom".into()], slices: (0..SLICES).map(slice).collect() };
    println!("turned or not, at random {:.0} images/s", images_per_s(&set, true));
    println!("as they are              {:.0} images/s", images_per_s(&set, false));
}
