//! What a run leaves behind while it goes: a line for each epoch in `log.jsonl`.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// One epoch, as a line of `log.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: u64,
    /// Mean of the batches' losses.
    pub train_loss: f64,
    /// Dice over all pixels of the validation slices; nothing if both masks are empty, or none validates.
    pub val_dice: Option<f64>,
    pub val_iou: Option<f64>,
    /// Of the epoch's last step.
    pub learning_rate: f64,
    /// Masks left out for the first time.
    pub removed: u64,
    /// Masks left out in all.
    pub removed_total: u64,
    /// Steps that changed nothing because a gradient was not finite: in fp16, while the scale of the loss settles.
    #[serde(default)]
    pub skipped_steps: u64,
    /// Training alone, validation apart.
    pub images_per_s: f64,
    /// All of the epoch.
    pub seconds: f64,
}

impl EpochRecord {
    /// Appends the record to a log.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn append_to(&self, log: &Path) -> Result<()> {
        let line = serde_json::to_string(self).map_err(|error| Error::file(log, error.to_string()))?;
        let mut file = OpenOptions::new().create(true).append(true).open(log).map_err(Error::io(log))?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io(log))
    }

    /// All records of a log.
    ///
    /// # Errors
    /// If it cannot be read, or a line is no record.
    pub fn read_all(log: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(log).map_err(Error::io(log))?;
        let records = text.lines().enumerate().map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| Error::file(log, format!("line {}: {error}", index + 1)))
        });
        records.collect()
    }
}
