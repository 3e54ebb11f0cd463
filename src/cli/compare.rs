//! Two methods side by side on the same cases, with a paired test for each metric.

use super::output;
use crate::metrics::summary::Tally;
use crate::metrics::wilcoxon::Wilcoxon;
use crate::metrics::{CaseMetrics, Evaluation, Metrics};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// Two methods' evaluations and tests. Serializes as `methods` (`name`, `evaluation`) and `tests` (`slices` and
/// `volume`: metric to [`Test`]).
#[derive(Serialize)]
pub struct Comparison {
    methods: [Method; 2],
    tests: BTreeMap<&'static str, BTreeMap<&'static str, Test>>,
}

#[derive(Serialize)]
struct Method {
    name: String,
    evaluation: Evaluation,
}

/// One metric of both methods, over the cases where both have it.
#[derive(Serialize)]
struct Test {
    cases: usize,
    /// The methods' means; none without a case.
    means: Option<[f64; 2]>,
    /// None if no case differs.
    wilcoxon: Option<Wilcoxon>,
}

/// A case's figure of each metric; of slices, the mean over the case's slices, which are no independent samples.
type Figures = fn(&CaseMetrics) -> [Option<f64>; Metrics::COUNT];

const SCOPES: [(&str, &str, Figures); 2] = [
    ("slices", "axial slices, 2D: means of each case's slices, lengths in pixels", |case| {
        Tally::of_each(&case.slices.per_slice).map(|tally| tally.mean().value())
    }),
    ("volume", "volumes, 3D: lengths in mm", |case| case.volume.values().map(|metric| metric.value())),
];

impl Comparison {
    /// Compares the evaluations of two methods, of the same cases.
    ///
    /// # Errors
    /// If the cases are not the same.
    pub fn new(names: [String; 2], evaluations: [Evaluation; 2]) -> Result<Self> {
        let [first, second] = evaluations.each_ref().map(Evaluation::cases);
        if !first.iter().map(|(name, _)| name).eq(second.iter().map(|(name, _)| name)) {
            let [a, b] = names;
            return Err(Error::Invalid(format!(
                "{a} and {b} are not of the same cases: compare masks of one test set"
            )));
        }
        let mut tests = BTreeMap::new();
        for (scope, _, figures) in SCOPES {
            let figures = |cases: &[(String, CaseMetrics)]| cases.iter().map(|(_, case)| figures(case)).collect();
            let (first, second): (Vec<_>, Vec<_>) = (figures(first), figures(second));
            let pairs =
                |metric: usize| first.iter().zip(&second).filter_map(move |(a, b)| Some((a[metric]?, b[metric]?)));
            let named = Metrics::NAMES.into_iter().enumerate().map(|(metric, name)| (name, Test::of(pairs(metric))));
            tests.insert(scope, named.collect());
        }
        let [a, b] = names;
        let [first, second] = evaluations;
        let methods = [Method { name: a, evaluation: first }, Method { name: b, evaluation: second }];
        Ok(Comparison { methods, tests })
    }

    /// A table for people: a row a metric.
    pub fn table(&self) -> String {
        let [first, second] = &self.methods;
        let mut text = format!("A: {}\nB: {}\n", first.name, second.name);
        for (scope, title, _) in SCOPES {
            let rows = Metrics::NAMES.map(|name| self.tests[scope][name].row(name));
            let table = output::table(&["metric", "A", "B", "B - A", "p (Wilcoxon)", "cases"], &rows);
            text.push_str(&format!("\n{title}\n\n{table}"));
        }
        text
    }
}

impl Test {
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let (first, second): (Vec<f64>, Vec<f64>) = pairs.unzip();
        let mean = |figures: &[f64]| figures.iter().sum::<f64>() / figures.len() as f64;
        Test {
            cases: first.len(),
            means: (!first.is_empty()).then(|| [mean(&first), mean(&second)]),
            // It fails only where there is nothing to test.
            wilcoxon: Wilcoxon::test(&first, &second).ok(),
        }
    }

    fn row(&self, name: &str) -> Vec<String> {
        let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        vec![
            name.to_owned(),
            cell(self.means.map(|[a, _]| a)),
            cell(self.means.map(|[_, b]| b)),
            cell(self.means.map(|[a, b]| b - a)),
            cell(self.wilcoxon.map(|test| test.p_value)),
            self.cases.to_string(),
        ]
    }
}
