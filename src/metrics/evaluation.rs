//! The metrics of all cases, as a table for people, as CSV and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::summary::{Summary, Tally};
use super::{CaseMetrics, Metric, Metrics};

/// The bootstrap's seed: the same cases give the same intervals.
const SEED: u64 = 1;

/// The metrics a table shows side by side: the paper's Table 1 with Table 5's IoU, then Tables 2 and 3.
const TABLES: [std::ops::Range<usize>; 2] = [0..6, 6..Metrics::COUNT];

/// All cases, and what they come to together. Serializes as `neighbourhood_radius`, `units`, `cases`
/// (`name`, `slices`, `volume`) and `summary` (`slices` and `volume`: metric to [`Summary`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    cases: Vec<(String, CaseMetrics)>,
    radius: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scope {
    Slices,
    Volume,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Slices => "slices",
            Scope::Volume => "volume",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Scope::Slices => "pixels",
            Scope::Volume => "mm",
        }
    }

    fn of(self, case: &CaseMetrics) -> &[Metrics] {
        match self {
            Scope::Slices => &case.slices.per_slice,
            Scope::Volume => std::slice::from_ref(&case.volume),
        }
    }
}

impl Evaluation {
    /// An evaluation of named cases with boundary overlap in neighbourhoods of `radius`.
    pub fn new(cases: Vec<(String, CaseMetrics)>, radius: usize) -> Self {
        Evaluation { cases, radius }
    }

    /// The named cases.
    pub fn cases(&self) -> &[(String, CaseMetrics)] {
        &self.cases
    }

    /// Each metric of the volumes over all cases, in the order of [`Metrics::NAMES`].
    pub fn summarize_volumes(&self) -> [Summary; Metrics::COUNT] {
        self.summarize(Scope::Volume)
    }

    /// Each metric of all slices of all cases, in the order of [`Metrics::NAMES`].
    pub fn summarize_slices(&self) -> [Summary; Metrics::COUNT] {
        self.summarize(Scope::Slices)
    }

    fn summarize(&self, scope: Scope) -> [Summary; Metrics::COUNT] {
        std::array::from_fn(|metric| {
            let of_case = |case| scope.of(case).iter().map(|metrics| metrics.values()[metric]).collect();
            let groups: Vec<Vec<Metric>> = self.cases.iter().map(|(_, case)| of_case(case)).collect();
            Summary::of(&groups, SEED)
        })
    }

    /// Tables for people: a row a case, then mean, median and the mean's 95% interval; `-` where a
    /// metric is undefined, with the reasons below.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for scope in [Scope::Slices, Scope::Volume] {
            if !text.is_empty() {
                text.push('\n');
            }
            let what = if scope == Scope::Slices { "axial slices, 2D" } else { "volumes, 3D" };
            let (unit, radius) = (scope.unit(), self.radius);
            let _ = writeln!(text, "{what}: hd, hd95, assd in {unit}; dbd, sbd in neighbourhoods of radius {radius}");
            let rows = self.rows(scope);
            for columns in TABLES {
                text.push('\n');
                text.push_str(&align(&columns, &rows));
            }
            text.push_str(&self.undefined_lines(scope));
        }
        text
    }

    /// The cells of the cases, then of their summary if there is more than one value, each row with its name.
    fn rows(&self, scope: Scope) -> Vec<(String, [String; Metrics::COUNT])> {
        let cell = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        let mut rows: Vec<_> = self
            .cases
            .iter()
            .map(|(name, case)| {
                (printable(name), Tally::of_each(scope.of(case)).map(|tally| cell(tally.mean().value())))
            })
            .collect();
        if scope == Scope::Volume && rows.len() == 1 {
            return rows;
        }
        let summaries = self.summarize(scope);
        let mut push = |name: &str, of: fn(&Summary) -> Option<f64>| {
            rows.push((name.to_string(), summaries.each_ref().map(|summary| cell(of(summary)))));
        };
        push("mean", |summary| summary.mean.value());
        push("median", |summary| summary.median.value());
        push("mean, 95% from", |summary| summary.interval_95.map(|[low, _]| low));
        push("mean, 95% to", |summary| summary.interval_95.map(|[_, high]| high));
        rows
    }

    fn undefined_lines(&self, scope: Scope) -> String {
        let mut text = String::new();
        for (name, case) in &self.cases {
            for line in undefined(scope.of(case)) {
                let _ = writeln!(text, "  {}: {line}", printable(name));
            }
        }
        if text.is_empty() { text } else { format!("\nundefined, and left out of the means:\n{text}") }
    }

    /// CSV with a header, and for each case a row with the means of its slices and one of its
    /// volume; where a metric is undefined it is empty, and the last column says why.
    pub fn csv(&self) -> String {
        let mut text = format!("case,scope,{},undefined\n", Metrics::NAMES.join(","));
        for (name, case) in &self.cases {
            for scope in [Scope::Slices, Scope::Volume] {
                let _ = write!(text, "{},{}", quote(name), scope.name());
                for tally in Tally::of_each(scope.of(case)) {
                    let _ = match tally.mean() {
                        Metric::Value(value) => write!(text, ",{value}"),
                        Metric::Undefined(_) => write!(text, ","),
                    };
                }
                let _ = writeln!(text, ",{}", quote(&undefined(scope.of(case)).join("; ")));
            }
        }
        text
    }
}

impl Serialize for Evaluation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Case<'a> {
            name: &'a str,
            #[serde(flatten)]
            metrics: &'a CaseMetrics,
        }
        let scopes = [Scope::Slices, Scope::Volume];
        let cases: Vec<_> = self.cases.iter().map(|(name, metrics)| Case { name, metrics }).collect();
        let units: BTreeMap<_, _> = scopes.map(|scope| (scope.name(), scope.unit())).into();
        let named = |scope| -> BTreeMap<_, _> { Metrics::NAMES.into_iter().zip(self.summarize(scope)).collect() };
        let summary: BTreeMap<_, _> = scopes.map(|scope| (scope.name(), named(scope))).into();
        let mut object = serializer.serialize_struct("Evaluation", 4)?;
        object.serialize_field("neighbourhood_radius", &self.radius)?;
        object.serialize_field("units", &units)?;
        object.serialize_field("cases", &cases)?;
        object.serialize_field("summary", &summary)?;
        object.end()
    }
}

/// Which metrics are undefined and why, a line a reason: `hd, hd95, assd: the prediction is empty`,
/// with the number of samples where there are several.
fn undefined(samples: &[Metrics]) -> Vec<String> {
    let mut names: BTreeMap<(&str, usize), Vec<&str>> = BTreeMap::new();
    for (name, tally) in Metrics::NAMES.into_iter().zip(Tally::of_each(samples)) {
        for (reason, count) in tally.undefined {
            names.entry((reason, count)).or_default().push(name);
        }
    }
    let line = |((reason, count), names): ((&str, usize), Vec<&str>)| match samples.len() {
        1 => format!("{}: {reason}", names.join(", ")),
        total => format!("{}: {reason} in {count} of {total} slices", names.join(", ")),
    };
    names.into_iter().map(line).collect()
}

/// One table of the given metrics, names to the left, figures to the right.
fn align(columns: &std::ops::Range<usize>, rows: &[(String, [String; Metrics::COUNT])]) -> String {
    let length = |text: &str| text.chars().count();
    let first = rows.iter().map(|(name, _)| length(name)).max().unwrap_or(0).max("case".len());
    let mut text = format!("{:first$}", "case");
    let widths: Vec<usize> = columns
        .clone()
        .map(|column| {
            let cells = rows.iter().map(|(_, cells)| length(&cells[column])).max().unwrap_or(0);
            cells.max(Metrics::NAMES[column].len())
        })
        .collect();
    for (column, width) in columns.clone().zip(&widths) {
        let _ = write!(text, "  {:>width$}", Metrics::NAMES[column]);
    }
    text.push('\n');
    for (name, cells) in rows {
        let _ = write!(text, "{name:first$}");
        for (cell, width) in cells[columns.clone()].iter().zip(&widths) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

/// A file's name without what would move a terminal's cursor.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A CSV field, quoted where it must be.
fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_string()
    }
}
