//! The report of a run's folder, from what the run left there.

use crate::metrics::evaluation::Evaluation;
use crate::report::{CasePictures, Report};
use crate::train::EpochRecord;
use crate::{Error, Result};
use std::path::Path;

/// Writes `report.html` into `out`: the settings and epochs of the run in `run`, and cases with their metrics if
/// there are any.
///
/// # Errors
/// If the run's files cannot be read, or the report cannot be written.
pub fn write(
    run: &Path,
    out: &Path,
    notes: Vec<String>,
    evaluation: Option<&Evaluation>,
    cases: Vec<CasePictures>,
) -> Result<()> {
    let report = Report {
        title: format!("Training run in {}", run.display()),
        notes,
        settings: settings(&run.join("config.toml"))?,
        records: records(&run.join("log.jsonl"))?,
        evaluation,
        cases,
    };
    report.write(&out.join("report.html"))
}

/// The epochs of a log; none, if the run has not finished any.
fn records(log: &Path) -> Result<Vec<EpochRecord>> {
    if log.exists() { EpochRecord::read_all(log) } else { Ok(Vec::new()) }
}

/// The lines of a settings file as names and values.
fn settings(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| Error::file(path, error.message()))?;
    let value = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(table.iter().map(|(name, setting)| (name.clone(), value(setting))).collect())
}
