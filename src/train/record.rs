//! What a run leaves behind while it goes: a line for each epoch in `log.jsonl`.

use super::adl::{Detection, Noise};
use crate::data::file::{append, write_atomically};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Write};
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
    /// Masks that this epoch left out: in the readings that remove for good, those it was the first to leave out.
    pub removed: u64,
    /// All masks left out of this epoch; they are scored forward-only.
    pub removed_total: u64,
    /// How noisy the masks seem, where that is estimated and shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_noise: Option<Noise>,
    /// How well that matches the truth, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<Detection>,
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
    /// If the log cannot be written; it is then as it was.
    pub fn append_to(&self, log: &Path) -> Result<()> {
        let line = serde_json::to_string(self).map_err(|error| Error::file(log, error.to_string()))?;
        append(log, &format!("{line}\n"))
    }

    /// Drops what a log has of epoch `epoch` and later ones, and a last line that is not whole.
    ///
    /// # Errors
    /// If the log cannot be read or written.
    pub fn drop_from(log: &Path, epoch: u64) -> Result<()> {
        let text = match std::fs::read_to_string(log) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            text => text.map_err(Error::io(log))?,
        };
        let before = |line: &&str| serde_json::from_str(line).is_ok_and(|record: EpochRecord| record.epoch < epoch);
        let kept: String = text.split_inclusive('\n').filter(before).collect();
        if kept == text {
            return Ok(());
        }
        write_atomically(log, |file| file.write_all(kept.as_bytes()))
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
