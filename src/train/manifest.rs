//! `manifest.json`: what is needed to repeat a run, and whether a run that goes on is still the same.

use super::folder::MANIFEST;
use super::{Learner, RunFolder, Settings};
use crate::checksum::sha256;
use crate::data::file::write_atomically;
use crate::data::{Slice, SliceSet};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// What decides a run's results, to the last bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this program.
    pub version: String,
    /// As it was typed.
    pub command: Vec<String>,
    /// The device in words.
    pub device: String,
    /// What of the device decides the bits; see [`crate::device::Device::kind`].
    pub kind: String,
    pub precision: String,
    /// The seed is among them.
    pub settings: Settings,
    /// The SHA-256 of each case's slices and masks as the network sees them.
    pub cases: BTreeMap<String, String>,
    /// The SHA-256 of what is known about which masks are noisy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<String>,
    /// Each time the run went on after an interruption.
    #[serde(default)]
    pub resumed: Vec<Resumption>,
}

/// One time that a run went on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumption {
    /// From the batch after this one (0: from the first) of this epoch.
    pub epoch: u64,
    pub batch: usize,
    pub command: Vec<String>,
    pub device: String,
    /// What was allowed to be otherwise than before.
    pub changes: Vec<String>,
}

impl Manifest {
    /// Of a run with these settings, data and devices.
    pub fn new(settings: &Settings, set: &SliceSet, truth: Option<&[bool]>, learner: &Learner) -> Self {
        let device = learner.network.device();
        Manifest {
            version: env!("CARGO_PKG_VERSION").into(),
            command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            device: device.name(),
            kind: device.kind(),
            precision: device.precision().name().into(),
            settings: settings.clone(),
            cases: case_checksums(set),
            truth: truth.map(|truth| sha256([&truth.iter().map(|&noisy| u8::from(noisy)).collect::<Vec<u8>>()[..]])),
            resumed: Vec::new(),
        }
    }

    /// Of the run in a folder.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|error| Error::file(&path, format!("is no manifest of a run: {error}")))
    }

    /// Writes it into the run's folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &RunFolder) -> Result<()> {
        let path = folder.path().join(MANIFEST);
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::file(&path, error.to_string()))?;
        write_atomically(&path, |file| writeln!(file, "{text}"))
    }

    /// What would not be as in `before`, in words.
    pub fn changes_since(&self, before: &Manifest) -> Vec<String> {
        let mut changes = Vec::new();
        let texts = |manifest: &Manifest| {
            [("version", &manifest.version), ("device", &manifest.kind), ("precision", &manifest.precision)]
                .map(|(name, text)| (name, text.clone()))
        };
        for ((name, now), (_, before)) in texts(self).into_iter().zip(texts(before)) {
            if now != before {
                changes.push(format!("{name} is {now}, was {before}"));
            }
        }
        changes.extend(setting_changes(&self.settings, &before.settings));
        let names: BTreeSet<&String> = self.cases.keys().chain(before.cases.keys()).collect();
        for name in names {
            match (self.cases.get(name), before.cases.get(name)) {
                (Some(now), Some(before)) if now == before => {}
                (Some(_), Some(_)) => changes.push(format!("case {name} has other slices or masks")),
                (Some(_), None) => changes.push(format!("case {name} is new")),
                (None, _) => changes.push(format!("case {name} is missing")),
            }
        }
        if self.truth != before.truth {
            changes.push("what is known about noisy masks is otherwise".into());
        }
        changes
    }
}

/// What would not be as before in settings, in words.
pub fn setting_changes(now: &Settings, before: &Settings) -> Vec<String> {
    let table = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(Value::Object(table)) => table,
        _ => unreachable!("settings are a table"),
    };
    let (now, before) = (table(now), table(before));
    let names: BTreeSet<&String> = now.keys().chain(before.keys()).collect();
    let text = |value: Option<&Value>| value.map_or("not given".into(), Value::to_string);
    let changed = names.into_iter().filter(|name| now.get(*name) != before.get(*name));
    changed.map(|name| format!("{name} is {}, was {}", text(now.get(name)), text(before.get(name)))).collect()
}

/// Says whether settings are those of the run in a folder.
///
/// # Errors
/// If they are not; the message names each that is otherwise.
pub fn check_settings(run: &Path, settings: &Settings) -> Result<()> {
    refuse(run, &setting_changes(settings, &Manifest::read(run)?.settings))
}

/// Refuses to go on with a run as another one.
///
/// # Errors
/// If there are changes.
pub fn refuse(run: &Path, changes: &[String]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let changes = changes.join("; ");
    Err(Error::file(
        run,
        format!("the run there was another: {changes}; give its flags and data again, or --allow-changes"),
    ))
}

/// Each case's checksum: over its slices in order, the number, the image and the mask, as they lie in memory.
fn case_checksums(set: &SliceSet) -> BTreeMap<String, String> {
    let checksum = |(case, name): (usize, &String)| {
        let slices: Vec<&Slice> = set.slices.iter().filter(|slice| slice.case == case).collect();
        let numbers: Vec<[u8; 8]> = slices.iter().map(|slice| (slice.index as u64).to_le_bytes()).collect();
        let pieces = slices.iter().zip(&numbers);
        let pieces = pieces.flat_map(|(slice, number)| [&number[..], bytemuck::cast_slice(&slice.image), &slice.mask]);
        (name.clone(), sha256(pieces))
    };
    set.cases.par_iter().enumerate().map(checksum).collect()
}
