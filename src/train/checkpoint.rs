//! Checkpoints: everything that going on with a run needs, in one file.
//!
//! `RUN/last/step-<optimizer steps>.safetensors` holds `state` (JSON as bytes), for each learner
//! `<number>.weights.<name>` (running statistics among them), `<number>.moment1.<name>` and `<number>.moment2.<name>`,
//! and `best.<name>`, the best weights so far. All are by parameter name in a weights file's order, so a checkpoint
//! does not depend on how the engine stores them. Each tensor and the header have checksums.

use super::folder::checkpoints;
use super::{Learner, LearnerState, RunFolder, State};
use crate::data::file::remove;
use crate::model::tensors::{self, Tensor, TensorFile};
use crate::model::weights::{Weights, check_finite, named_tensors};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The version of what is described above; other versions are refused.
const FORMAT: &str = "1";

/// How many checkpoints are kept.
pub const KEPT: usize = 2;

/// Bytes of a checkpoint for each parameter of a learner, and of the best weights.
pub const LEARNER_BYTES: u64 = 3 * size_of::<f32>() as u64;
pub const BEST_BYTES: u64 = size_of::<f32>() as u64;

/// Writes a checkpoint and removes all but the newest two.
///
/// # Errors
/// If a weight or moment is not finite, the device fails, or the file cannot be written; what was there stays.
pub fn save(folder: &RunFolder, learners: &mut [Learner], best: Option<&Weights>, state: &State) -> Result<()> {
    let path = folder.checkpoint(state.steps);
    let text = serde_json::to_vec(state).map_err(|error| Error::file(&path, error.to_string()))?;
    let mut parts = Vec::new();
    for (number, learner) in learners.iter_mut().enumerate() {
        let [first, second] = learner.network.moments()?;
        let weights = learner.network.weights()?;
        for (what, values) in [("weights", weights), ("moment1", first), ("moment2", second)] {
            check_finite(&values).map_err(|message| {
                Error::Invalid(format!(
                    "training diverged in epoch {} ({what} of {message}): lower --learning-rate",
                    state.epoch
                ))
            })?;
            parts.push((prefix(number, what), values));
        }
    }
    let network = &learners[0].network;
    let mut tensors: Vec<Tensor> =
        parts.iter().flat_map(|(prefix, values)| named_tensors(network, values, prefix)).collect();
    tensors.extend(best.into_iter().flat_map(|best| named_tensors(network, best, BEST)));
    tensors.push(Tensor::bytes(STATE.into(), &text));
    tensors::write(&path, BTreeMap::from([("checkpoint", FORMAT.to_owned())]), &tensors)?;
    checkpoints(folder.path()).iter().skip(KEPT).try_for_each(|old| remove(old))
}

/// Removes the checkpoint of the state after so many steps, which turned out to be none to go on from, if an older one
/// is there.
///
/// # Errors
/// If the file cannot be removed.
pub fn remove_bad(folder: &RunFolder, steps: u64) -> Result<()> {
    match checkpoints(folder.path()).as_slice() {
        [newest, _, ..] if *newest == folder.checkpoint(steps) => remove(newest),
        _ => Ok(()),
    }
}

const STATE: &str = "state";
const BEST: &str = "best.";

fn prefix(learner: usize, what: &str) -> String {
    format!("{learner}.{what}.")
}

/// The newest checkpoint of a run.
///
/// # Errors
/// If there is none, or it is damaged; the message then says which older one is whole.
pub fn newest(run: &Path) -> Result<PathBuf> {
    let mut found = checkpoints(run).into_iter();
    let newest = found.next().ok_or_else(|| Error::file(run, "holds no checkpoint to resume from"))?;
    let Err(damage) = read_state(&newest) else { return Ok(newest) };
    let offer = match found.find_map(|older| Some((read_state(&older).ok()?, older))) {
        Some((state, older)) => format!(
            "the one before, {}, is whole: remove the damaged file to resume from that, epoch {} after {} batches",
            older.display(),
            state.epoch,
            state.batch
        ),
        None => "no other is whole; best.safetensors still has the best weights".into(),
    };
    Err(Error::Invalid(format!("{damage}; {offer}")))
}

fn read_state(path: &Path) -> Result<State> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    state_of(&TensorFile::new(path, &bytes)?)
}

fn state_of(file: &TensorFile) -> Result<State> {
    if file.metadata("checkpoint") != Some(FORMAT) {
        return Err(Error::file(
            file.path(),
            format!("is no checkpoint of format {FORMAT}, the one this version reads"),
        ));
    }
    let unusable = |message: String| Error::file(file.path(), format!("its state cannot be read: {message}"));
    let state: State = serde_json::from_slice(file.bytes(STATE)?).map_err(|error| unusable(error.to_string()))?;
    match state.learners.iter().all(LearnerState::is_whole) {
        true => Ok(state),
        false => Err(unusable("its lists are not all of the same training slices".into())),
    }
}

/// Reads a checkpoint into the learners; returns the state and, if there are any yet, the best weights. `slices` are
/// the training slices that the state is to be about.
///
/// # Errors
/// If the file is damaged or of another model or data, or the device fails.
pub fn load(path: &Path, learners: &mut [Learner], slices: usize) -> Result<(State, Option<Weights>)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = TensorFile::new(path, &bytes)?;
    let state = state_of(&file)?;
    let known = state.learners.iter().map(|learner| learner.weights.len());
    if state.learners.len() != learners.len() || known.clone().any(|known| known != slices) {
        let known: Vec<String> = known.map(|known| known.to_string()).collect();
        let message = format!(
            "is of {} networks that know {} training slices; here are {} and {slices}: begin a new run",
            state.learners.len(),
            known.join(" and "),
            learners.len()
        );
        return Err(Error::file(path, message));
    }
    for (number, learner) in learners.iter_mut().enumerate() {
        let values = |what: &str, parameter: &crate::model::Parameter| {
            file.floats(&(prefix(number, what) + &parameter.name), &parameter.shape)
        };
        learner.network.set_weights(|parameter| values("weights", parameter))?;
        learner.network.set_moments(|order, parameter| values(["moment1", "moment2"][order], parameter))?;
    }
    let parameters = learners[0].network.parameters();
    let best = (state.best_epoch > 0).then(|| {
        let read = parameters.iter().map(|parameter| {
            let values = file.floats(&format!("{BEST}{}", parameter.name), &parameter.shape)?;
            Ok((parameter.name.clone(), values))
        });
        read.collect::<Result<Weights>>()
    });
    Ok((state, best.transpose()?))
}
