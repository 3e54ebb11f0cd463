//! Batches of slices in an order, and turned in a way, that follow from the seed and the epoch alone.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::slices::{Slice, SliceSet};

/// A quarter turn, the paper's augmentation (rotations of +-90 degrees).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    None,
    /// Counter-clockwise as seen with y upwards: pixel (x, y) comes from (y, n - 1 - x).
    Left,
    /// Clockwise: pixel (x, y) comes from (n - 1 - y, x).
    Right,
}

/// Hands out batches of some slices of a set.
pub struct Loader<'a> {
    set: &'a SliceSet,
    chosen: Vec<usize>,
    batch: usize,
    seed: u64,
    augment: bool,
    /// This epoch's slices in their order, as many as are chosen.
    order: Vec<usize>,
    /// This epoch's turn and weight of each slice of the whole set, so that a turn does not depend on which are
    /// chosen.
    turns: Vec<Turn>,
    weights: Vec<f32>,
}

impl<'a> Loader<'a> {
    /// Batches of `batch` of the slices `chosen` (indices into the set), in the order of `chosen`
    /// and unturned until [`Loader::begin_epoch`] is called: the way to validate.
    pub fn new(set: &'a SliceSet, chosen: Vec<usize>, batch: usize, seed: u64, augment: bool) -> Self {
        assert!(batch > 0, "a batch holds at least one slice");
        let (order, slices) = (chosen.clone(), set.slices.len());
        Loader { set, chosen, batch, seed, augment, order, turns: vec![Turn::None; slices], weights: vec![1.0; slices] }
    }

    /// Shuffles the slices and draws their turns for `epoch`, as a function of it, the seed and the weights only.
    ///
    /// `weights` has one for each chosen slice. Those of weight 0 are left out and others come up again in their
    /// place, so that every epoch has the same number of batches.
    ///
    /// # Panics
    /// If every slice is left out.
    pub fn begin_epoch(&mut self, epoch: u64, weights: &[f32]) {
        assert_eq!(weights.len(), self.chosen.len(), "a weight for each slice");
        for (&slice, &weight) in self.chosen.iter().zip(weights) {
            self.weights[slice] = weight;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Two streams an epoch: one for the order, one for the turns.
        rng.set_stream(2 * epoch);
        let kept: Vec<usize> = self.chosen.iter().copied().filter(|&slice| self.weights[slice] > 0.0).collect();
        assert!(!kept.is_empty() || self.chosen.is_empty(), "an epoch needs a slice to train on");
        self.order.clear();
        while self.order.len() < self.chosen.len() {
            let mut round = kept.clone();
            round.shuffle(&mut rng);
            self.order.extend(round);
        }
        self.order.truncate(self.chosen.len());
        if self.augment {
            rng.set_stream(2 * epoch + 1);
            rng.set_word_pos(0);
            for turn in &mut self.turns {
                *turn = [Turn::None, Turn::Left, Turn::Right][((u64::from(rng.next_u32()) * 3) >> 32) as usize];
            }
        }
    }

    /// Batches in an epoch, the last of which may be partly filled.
    pub fn batches(&self) -> usize {
        self.order.len().div_ceil(self.batch)
    }

    /// The slices that are really in batch `index` of the epoch: indices into the set.
    pub fn slices(&self, index: usize) -> &[usize] {
        let first = index * self.batch;
        &self.order[first..self.order.len().min(first + self.batch)]
    }

    /// Fills the buffers with batch `index` of the epoch and returns the slices that are really in
    /// it (indices into the set); it allocates nothing.
    ///
    /// `image` and `target` take `batch * size * size` numbers and `weight` takes `batch`: that of each
    /// real slice. A last batch that is not full goes on with the epoch's first slices at weight 0:
    /// they take part in the batch statistics, as any slice does, but not in the loss.
    ///
    /// # Panics
    /// If a buffer has another length, or there is no such batch.
    pub fn fill(&self, index: usize, image: &mut [f32], target: &mut [f32], weight: &mut [f32]) -> &[usize] {
        let area = self.set.size * self.set.size;
        assert_eq!(
            (image.len(), target.len(), weight.len()),
            (self.batch * area, self.batch * area, self.batch),
            "the buffers do not fit a batch"
        );
        let (first, real) = (index * self.batch, self.slices(index));
        let rows = image.chunks_exact_mut(area).zip(target.chunks_exact_mut(area)).zip(weight);
        for (i, ((image, target), weight)) in rows.enumerate() {
            let slice = self.order[(first + i) % self.order.len()];
            let turn = self.turns[slice];
            let Slice { image: from_image, mask, .. } = &self.set.slices[slice];
            turned(from_image, self.set.size, turn, image, |value| value);
            turned(mask, self.set.size, turn, target, f32::from);
            *weight = if i < real.len() { self.weights[slice] } else { 0.0 };
        }
        real
    }
}

/// Pixels along a side of a block: a turned one reads as many lines of memory as it writes, which the cache holds.
const BLOCK: usize = 16;

/// Copies a square of `n` x `n` pixels, turned.
fn turned<T: Copy>(from: &[T], n: usize, turn: Turn, to: &mut [f32], convert: impl Fn(T) -> f32) {
    if turn == Turn::None {
        to.iter_mut().zip(from).for_each(|(pixel, &value)| *pixel = convert(value));
        return;
    }
    for (rows, first_row) in to.chunks_mut(BLOCK * n).zip((0..).step_by(BLOCK)) {
        for first in (0..n).step_by(BLOCK) {
            for (y, row) in rows.chunks_exact_mut(n).enumerate().map(|(y, row)| (first_row + y, row)) {
                for (x, pixel) in (first..n).zip(&mut row[first..n.min(first + BLOCK)]) {
                    *pixel = convert(match turn {
                        Turn::Left => from[(n - 1 - x) * n + y],
                        _ => from[x * n + (n - 1 - y)],
                    });
                }
            }
        }
    }
}
