//! What a run left in its folder.

use super::{Report, Suspects, Validation};
use crate::train::{CONFIG, EpochRecord};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A run's folder, read.
#[derive(Debug, Clone)]
pub struct RunFiles {
    pub path: PathBuf,
    /// `config.toml`'s names and values.
    pub settings: Vec<(String, String)>,
    /// `manifest.json`'s names and values; none if there is none.
    pub manifest: Vec<(String, String)>,
    pub records: Vec<EpochRecord>,
    pub validation: Option<Validation>,
    pub suspects: Option<Suspects>,
}

impl RunFiles {
    /// Reads what `train` wrote, finished or not.
    ///
    /// # Errors
    /// If the folder is not a run's, or a file in it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let settings = path.join(CONFIG);
        if path.is_dir() && !settings.exists() {
            return Err(Error::file(path, "is not a run's folder: it has no config.toml"));
        }
        let log = path.join("log.jsonl");
        Ok(RunFiles {
            path: path.to_owned(),
            settings: settings_of(&settings)?,
            manifest: manifest_of(&path.join("manifest.json"))?,
            records: if log.exists() { EpochRecord::read_all(&log)? } else { Vec::new() },
            validation: Validation::read(path)?,
            suspects: Suspects::read(path)?,
        })
    }

    /// A setting's value.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The epoch that validated best, or the last.
    pub fn best(&self) -> Option<&EpochRecord> {
        let dice = |record: &&EpochRecord| record.val_dice.unwrap_or(f64::NEG_INFINITY);
        // The first of equals, as the run has it.
        self.records.iter().rev().max_by(|a, b| dice(a).total_cmp(&dice(b)))
    }

    /// The run's report, without a test case's metrics and pictures.
    pub fn into_report(self, notes: Vec<String>) -> Report<'static> {
        Report {
            title: format!("Training run in {}", self.path.display()),
            notes,
            settings: self.settings,
            manifest: self.manifest,
            records: self.records,
            validation: self.validation,
            suspects: self.suspects,
            ..Report::default()
        }
    }
}

/// The lines of a settings file as names and values.
fn settings_of(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| Error::file(path, error.message()))?;
    let value = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(table.iter().map(|(name, setting)| (name.clone(), value(setting))).collect())
}

/// The entries of a JSON file as names, with a point between an object's and its entry's, and values.
fn manifest_of(path: &Path) -> Result<Vec<(String, String)>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let document = serde_json::from_str(&text).map_err(|error| Error::file(path, error.to_string()))?;
    let mut entries = Vec::new();
    flatten("", &document, &mut entries);
    Ok(entries)
}

fn flatten(name: &str, value: &serde_json::Value, entries: &mut Vec<(String, String)>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&below(key), value, entries)),
        serde_json::Value::String(text) => entries.push((name.to_owned(), text.clone())),
        other => entries.push((name.to_owned(), other.to_string())),
    }
}
