//! Which labels of a mask count as foreground.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::{Error, Result};

/// Which labels of a mask are foreground. Written "26-33,41"; without a list, any label above 0.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Labels(Vec<RangeInclusive<i32>>);

impl Labels {
    /// Whether `label` is foreground.
    pub fn contains(&self, label: i64) -> bool {
        match self.0.is_empty() {
            true => label > 0,
            false => self.0.iter().any(|range| (i64::from(*range.start())..=i64::from(*range.end())).contains(&label)),
        }
    }

    /// "a label above 0" or "a label of 26-33,41".
    pub fn in_words(&self) -> String {
        if self.0.is_empty() { "a label above 0".to_owned() } else { format!("a label of {self}") }
    }
}

impl FromStr for Labels {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Labels::default());
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = first.trim().parse::<i32>().ok()?..=last.trim().parse::<i32>().ok()?;
            (*range.start() > 0 && !range.is_empty()).then_some(range)
        };
        let ranges = text.split(',').map(|part| {
            range(part).ok_or_else(|| {
                Error::Invalid(format!(
                    "labels \"{text}\": \"{}\" is not a label or a range of labels above 0, such as 26-33,41",
                    part.trim()
                ))
            })
        });
        ranges.collect::<Result<Vec<_>>>().map(Labels)
    }
}

impl TryFrom<String> for Labels {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Labels> for String {
    fn from(labels: Labels) -> String {
        labels.to_string()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            match range.start() == range.end() {
                true => write!(out, "{separator}{}", range.start())?,
                false => write!(out, "{separator}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}
