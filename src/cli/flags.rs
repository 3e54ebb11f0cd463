//! What several commands' flags have in common.

use crate::model::Model;
use crate::suggestion::did_you_mean;
use crate::{Error, Result};
use std::ops::RangeInclusive;

/// A parser for whole numbers within `range`.
pub fn whole(range: RangeInclusive<usize>) -> impl Fn(&str) -> std::result::Result<usize, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Pixels along a side of a slice.
pub fn size(text: &str) -> std::result::Result<usize, String> {
    whole(1..=4096)(text)
}

/// Images in a batch.
pub fn batch(text: &str) -> std::result::Result<usize, String> {
    whole(1..=1024)(text)
}

/// A time in minutes, from 0 to a year.
pub fn minutes(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=525_600.0).contains(number));
    number.ok_or_else(|| "give minutes, such as 10 or 0.5".into())
}

/// The five levels' channels.
pub fn widths(text: &str) -> std::result::Result<[usize; 5], String> {
    let widths = crate::model::weights::parse_widths(text)?;
    match widths.iter().find(|&&width| width > 4096) {
        Some(width) => Err(format!("a width of {width}: at most 4096")),
        None => Ok(widths),
    }
}

/// Widths as they are typed.
pub fn widths_text(widths: [usize; 5]) -> String {
    widths.map(|width| width.to_string()).join(",")
}

/// The model of this name.
///
/// # Errors
/// If there is none; the message suggests the one that may be meant.
pub fn model(name: &str, widths: [usize; 5]) -> Result<Model> {
    known("model", name, crate::model::ARCHITECTURES.iter().map(|architecture| architecture.name))?;
    Model::new(name, widths)
}

/// Says whether `name` is one of `names`.
///
/// # Errors
/// If it is not: with the one it resembles most, and all there are.
pub fn known<'a>(what: &str, name: &str, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let names: Vec<&str> = names.into_iter().collect();
    if names.contains(&name) {
        return Ok(());
    }
    let meant = did_you_mean(name, names.iter().copied());
    Err(Error::Invalid(format!("no {what} is named \"{name}\"{meant} there are {}", names.join(", "))))
}
