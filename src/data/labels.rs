//! Which labels of a mask count as foreground.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use super::layout::{LABEL_SUFFIX, stem};
use crate::{Error, Result};

/// Which labels of a mask are foreground. Written "26-33,41"; without a list, any label above 0.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Labels {
    ranges: Vec<RangeInclusive<i32>>,
    /// A label stands for its hundredfold, too.
    hundredfold: bool,
}

impl Labels {
    /// Whether `label` is foreground.
    pub fn contains(&self, label: i64) -> bool {
        let listed =
            |label: i64| i32::try_from(label).is_ok_and(|label| self.ranges.iter().any(|r| r.contains(&label)));
        match self.ranges.is_empty() {
            true => label > 0,
            false => listed(label) || self.hundredfold && label % 100 == 0 && listed(label / 100),
        }
    }

    /// These labels in the mask `path`. Masks of the CSI 2014 naming (`<case>_label`) hold 100 times the vertebra's
    /// number, so that there 26 stands for 2600, too.
    pub fn in_mask(&self, path: &Path) -> Self {
        Labels { ranges: self.ranges.clone(), hundredfold: stem(path).ends_with(LABEL_SUFFIX) }
    }

    /// "a label above 0" or "a label of 26-33,41".
    pub fn in_words(&self) -> String {
        if self.ranges.is_empty() { "a label above 0".to_owned() } else { format!("a label of {self}") }
    }
}

/// Ascending labels, like "0,20-24".
pub(super) fn listed(labels: impl IntoIterator<Item = i64>) -> String {
    let mut ranges: Vec<RangeInclusive<i64>> = Vec::new();
    for label in labels {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == label => *last = *last.start()..=label,
            _ => ranges.push(label..=label),
        }
    }
    joined(&ranges)
}

/// "26-33,41".
fn joined<T: fmt::Display + PartialEq>(ranges: &[RangeInclusive<T>]) -> String {
    let texts = ranges.iter().map(|range| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    });
    texts.collect::<Vec<_>>().join(",")
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
                let part = part.trim();
                Error::Invalid(format!(
                    "--labels {text}: \"{part}\" is not a label or a range of labels above 0, such as 26-33,41"
                ))
            })
        });
        ranges.collect::<Result<Vec<_>>>().map(|ranges| Labels { ranges, hundredfold: false })
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
        out.write_str(&joined(&self.ranges))
    }
}
