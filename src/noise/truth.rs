//! What is known about a noisy data set: its `noise.csv`.

use crate::data::SliceSet;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The name of the truth's file in a data set's folder.
pub const TRUTH: &str = "noise.csv";

/// Which slices of which cases have corrupted masks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Truth {
    noisy: BTreeSet<(String, usize)>,
}

/// A line of the file; it has more columns than these.
#[derive(Deserialize)]
struct Line {
    case: String,
    slice: usize,
}

impl Truth {
    /// Reads a file as `corrupt` writes it.
    ///
    /// # Errors
    /// If it cannot be read, or it, or a line, lacks case or slice.
    pub fn read(path: &Path) -> Result<Self> {
        let broken = |error: csv::Error| Error::file(path, format!("not a list of noisy masks: {error}"));
        let mut reader = csv::Reader::from_path(path).map_err(broken)?;
        let headers = reader.headers().map_err(broken)?;
        if let Some(missing) = ["case", "slice"].into_iter().find(|name| !headers.iter().any(|header| header == *name))
        {
            return Err(Error::file(path, format!("not a list of noisy masks: it has no column \"{missing}\"")));
        }
        let lines = reader.deserialize().map(|line| line.map(|Line { case, slice }| (case, slice)));
        Ok(Truth { noisy: lines.collect::<std::result::Result<_, _>>().map_err(broken)? })
    }

    /// The truth about the data set in `folder`, if it is there.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    pub fn of_dataset(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(TRUTH);
        path.exists().then(|| Self::read(&path)).transpose()
    }

    /// Whether a slice's mask is corrupted.
    pub fn is_noisy(&self, case: &str, slice: usize) -> bool {
        self.noisy.contains(&(case.to_owned(), slice))
    }

    /// The same of each slice of a set.
    pub fn of_slices(&self, set: &SliceSet) -> Vec<bool> {
        set.slices.iter().map(|slice| self.is_noisy(&set.cases[slice.case], slice.index)).collect()
    }
}
