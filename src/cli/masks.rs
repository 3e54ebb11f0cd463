//! Which predicted mask belongs to which reference mask.

use crate::data::file::ends_with;
use crate::data::layout::{ENDINGS, entries};
use crate::data::{Dataset, scan_name};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A case's two masks.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair {
    /// The reference's name, without extension and `_0000`.
    pub name: String,
    pub prediction: PathBuf,
    pub reference: PathBuf,
}

/// Pairs the masks of two files or folders. Two files are a pair whatever their names; a file and a folder are
/// one if the folder has a mask of that name; two folders must have the same names.
///
/// # Errors
/// If a mask has no counterpart, with its name.
pub fn pairs(prediction: &Path, reference: &Path) -> Result<Vec<Pair>> {
    let predictions = masks(prediction)?;
    let mut references = masks(reference)?;
    if !prediction.is_dir() && !reference.is_dir() {
        let pair = |(name, reference): (String, PathBuf)| Pair { name, prediction: prediction.to_owned(), reference };
        return Ok(references.into_iter().map(pair).collect());
    }
    if prediction.is_dir() {
        check_all_in(&references, &predictions, prediction)?;
    }
    if reference.is_dir() {
        check_all_in(&predictions, &references, reference)?;
    }
    let pair = |(name, prediction)| {
        let reference = references.remove(&name)?;
        Some(Pair { name, prediction, reference })
    };
    Ok(predictions.into_iter().filter_map(pair).collect())
}

type Masks = BTreeMap<String, PathBuf>;

/// How many missing masks an error names.
const NAMED: usize = 5;

/// Checks that `folder`, which holds `masks`, has a counterpart of each of `others`.
fn check_all_in(others: &Masks, masks: &Masks, folder: &Path) -> Result<()> {
    let missing: Vec<&str> = others.keys().filter(|name| !masks.contains_key(*name)).map(String::as_str).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let names = missing[..missing.len().min(NAMED)].join(", ");
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let other = others[*first].display();
    Err(Error::file(folder, format!("holds no mask named {names}{more} (the counterpart of {other})")))
}

/// The masks of a file, a folder or a data set, by name.
fn masks(path: &Path) -> Result<Masks> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(Error::io(path))?;
        return Ok(Masks::from([(scan_name(path), path.to_owned())]));
    }
    if let Ok((dataset, _)) = Dataset::survey(path) {
        return Ok(dataset.cases.into_iter().map(|case| (case.name, case.mask)).collect());
    }
    let mut masks = Masks::new();
    for file in entries(path)?.into_iter().filter(|file| ENDINGS.iter().any(|ending| ends_with(file, ending))) {
        if let Some(other) = masks.insert(scan_name(&file), file.clone()) {
            let message = format!("is of the same case as {}: keep one of them", other.display());
            return Err(Error::file(file, message));
        }
    }
    match masks.is_empty() {
        false => Ok(masks),
        true => Err(Error::file(path, format!("holds no masks ({})", ENDINGS.join(", ")))),
    }
}
