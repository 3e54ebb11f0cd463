//! Training masks ranked by how likely they are wrong, for a person to look at.
//!
//! The ranking is by displacement: how far a mask's outline lies from the predicted one, on average. A loss would
//! put small masks first whatever they look like.

use super::adl::Detection;
use crate::data::file::write_atomically;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// A training mask with foreground, as a line of `suspects.csv`; the list begins with the most suspicious.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    pub case: String,
    /// Axial, from 0 at the feet.
    pub slice: usize,
    /// The mean distance from the mask's outline to the predicted one, in pixels of the network's grid.
    pub score: f64,
    /// Soft Dice of the mask with the prediction.
    pub dice: f64,
    /// Foreground pixels of the mask, and of the prediction, in the network's grid.
    pub pixels: u64,
    pub predicted_pixels: u64,
    /// In how many epochs the mask was left out.
    pub times_left_out: u64,
}

/// A training mask without foreground where the network sees some, as a line of `unmarked.csv`; the list begins
/// with the largest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unmarked {
    pub case: String,
    pub slice: usize,
    pub predicted_pixels: u64,
}

/// Writes a list with a header line.
///
/// # Errors
/// If the file cannot be written.
pub fn write_list<T: Serialize>(path: &Path, columns: &[&str], list: &[T]) -> Result<()> {
    let broken = |error: csv::Error| Error::file(path, error.to_string());
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(columns).map_err(broken)?;
    for line in list {
        writer.serialize(line).map_err(broken)?;
    }
    let bytes = writer.into_inner().map_err(|error| Error::file(path, error.to_string()))?;
    write_atomically(path, |file| file.write_all(&bytes))
}

impl Suspect {
    /// The list's name in a run's folder.
    pub const FILE: &str = "suspects.csv";
    pub const COLUMNS: [&str; 7] = ["case", "slice", "score", "dice", "pixels", "predicted_pixels", "times_left_out"];

    /// So many of the first are pictured.
    pub const PICTURED: usize = 24;

    /// The name of the picture of the one that is `rank`-th from 0.
    pub fn picture(&self, rank: usize) -> String {
        format!("{:03}-{}-{}.png", rank + 1, self.case, self.slice)
    }

    /// Reads `suspects.csv`.
    ///
    /// # Errors
    /// If it cannot be read or is no such list.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let broken = |error: csv::Error| Error::file(path, format!("not a list of suspects: {error}"));
        csv::Reader::from_path(path).map_err(broken)?.deserialize().map(|line| line.map_err(broken)).collect()
    }
}

impl Unmarked {
    pub const COLUMNS: [&str; 3] = ["case", "slice", "predicted_pixels"];
}

/// How well the ranking finds what is noisy. `is_noisy` knows the truth; the first `count` suspects are taken to
/// be picked out, as many as are noisy if that is not said.
pub fn against_truth(suspects: &[Suspect], is_noisy: impl Fn(&Suspect) -> bool, count: Option<usize>) -> Detection {
    let truth: Vec<bool> = suspects.iter().map(is_noisy).collect();
    let count = count.unwrap_or_else(|| truth.iter().filter(|&&noisy| noisy).count());
    let masks = suspects.iter().zip(&truth).enumerate();
    Detection::of(&masks.map(|(i, (suspect, &noisy))| (suspect.score, i < count, noisy)).collect::<Vec<_>>())
}

/// What inference found on the training slices: see [`Suspect`] and [`Unmarked`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Review {
    pub suspects: Vec<Suspect>,
    pub unmarked: Vec<Unmarked>,
}

/// Fewer predicted pixels than this in a slice without foreground are no finding.
pub(super) const LEAST_UNMARKED: u64 = 5;

impl Review {
    pub(super) fn sort(&mut self) {
        self.suspects.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.unmarked.retain(|slice| slice.predicted_pixels >= LEAST_UNMARKED);
        self.unmarked.sort_by_key(|slice| std::cmp::Reverse(slice.predicted_pixels));
    }
}
