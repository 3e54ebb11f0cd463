//! A training run.

use super::adl::Denoiser;
use super::manifest::{self, Manifest, Resumption};
use super::{EpochRecord, Learner, RunFolder, Settings, State, checkpoint};
use crate::data::file::write_atomically;
use crate::data::{Cache, Dataset, Loader, SliceSet, Split};
use crate::device::Device;
use crate::metrics::overlap::Counts;
use crate::model::weights::{self, Weights};
use crate::preprocessing::{Preprocessing, is_foreground};
use crate::{Error, Result};
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, Instant};

/// What a run is about to do, known before it starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub device: String,
    pub model: String,
    pub parameters: usize,
    pub train_slices: usize,
    pub validation_slices: usize,
    pub steps: u64,
    /// Of these, done before by a run that goes on.
    pub steps_done: u64,
    /// Floating-point operations of one step.
    pub operations_per_step: u64,
    /// Memory of parameters, moments, activations and gradients.
    pub planned_bytes: u64,
}

/// Is told how a run goes, and may stop it.
pub trait Observer {
    /// All is loaded; training begins.
    fn begin(&self, _: &Summary) {}
    /// A batch of the epoch was trained on.
    fn batch(&self, _epoch: u64, _done: usize, _batches: usize, _images: usize, _loss: f64) {}
    /// A validation slice (an index into the run's set) was predicted.
    fn validated(&self, _slice: usize, _probabilities: &[f32]) {}
    /// An epoch is over; `best` says whether it is the best so far.
    fn epoch(&self, _: &EpochRecord, _best: bool) {}
    /// The exit code to stop with, if the run is to stop.
    fn stop(&self) -> Option<u8> {
        None
    }
}

/// An observer that says nothing and never stops a run.
pub struct Silent;

impl Observer for Silent {}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub best_epoch: u64,
    pub best_val_dice: Option<f64>,
    pub epochs: u64,
    pub seconds: f64,
}

/// A training run: networks, their data, and a folder for what it leaves.
pub struct Run<'a> {
    pub(super) settings: &'a Settings,
    pub(super) folder: &'a RunFolder,
    manifest: Manifest,
    pub(super) set: &'a SliceSet,
    pub(super) split: Split,
    pub(super) denoiser: Denoiser,
    /// The first is the one that validates and is kept.
    pub(super) learners: Vec<Learner>,
    pub(super) state: State,
    /// The weights of the best epoch.
    best: Option<Weights>,
    /// How often, and when last, a checkpoint is saved within an epoch.
    save_every: Duration,
    saved: Instant,
}

/// How often a checkpoint is saved within an epoch unless told otherwise.
const SAVE_EVERY: Duration = Duration::from_secs(600);

impl<'a> Run<'a> {
    /// Loads the slices that `settings` ask for, into memory or by way of a cache. `progress` is called once for
    /// every case.
    ///
    /// # Errors
    /// If the settings or the data cannot work.
    pub fn load_slices(
        settings: &Settings,
        dataset: &Dataset,
        cache: Option<&Cache>,
        progress: impl Fn() + Sync,
    ) -> Result<SliceSet> {
        settings.check()?;
        let labels = dataset.foreground(&settings.labels)?;
        let cases = dataset.cases_without(&settings.test_cases)?;
        let (size, window) = (settings.size, settings.window);
        match cache {
            None => SliceSet::load(dataset, &cases, size, window, &labels, progress),
            Some(cache) => SliceSet::load_cached(dataset, &cases, size, window, &labels, cache, progress),
        }
    }

    /// Plans a run into `folder`, each of its networks on a device of its own. Where it is known, `truth` says of
    /// each slice of the set whether its mask is noisy.
    ///
    /// # Errors
    /// If the settings cannot work, a device has no room, or the folder cannot be written.
    pub fn new(
        settings: &'a Settings,
        set: &'a SliceSet,
        truth: Option<&[bool]>,
        open_device: impl Fn() -> Result<Box<dyn Device<f32>>>,
        folder: &'a RunFolder,
    ) -> Result<Self> {
        settings.check()?;
        // Test cases may be in the set, to be tested on, or not loaded at all.
        let test_cases: Vec<String> =
            settings.test_cases.iter().filter(|name| set.cases.contains(name)).cloned().collect();
        let split = Split::new(set, &test_cases, settings.validation_fraction, settings.seed)?;
        let Settings { adl, epochs, seed, .. } = *settings;
        let denoiser = Denoiser::new(adl, settings.noise()?, epochs, seed, (set, &split.train), truth)?;
        let learners: Result<Vec<Learner>> = (0..adl.learners() as u64)
            .map(|number| Learner::new(settings, open_device()?, learner_seed(settings, number)))
            .collect();
        let learners = learners?;
        Ok(Run {
            settings,
            folder,
            manifest: Manifest::new(settings, set, truth, &learners[0]),
            set,
            denoiser,
            state: State::new(adl.learners(), split.train.len()),
            split,
            learners,
            best: None,
            save_every: SAVE_EVERY,
            saved: Instant::now(),
        })
    }

    /// Saves a checkpoint within an epoch whenever so much time has passed, besides that at its end.
    pub fn save_every(&mut self, time: Duration) {
        self.save_every = time;
    }

    /// Goes on where the newest checkpoint of the folder ends: what is later in the log is dropped, and the best
    /// weights are those of then. If settings, data or device are otherwise, the epoch begins anew.
    ///
    /// # Errors
    /// If there is no checkpoint or it is damaged, or if anything is otherwise and `allow_changes` is not given.
    pub fn resume(&mut self, allow_changes: bool) -> Result<()> {
        let newest = checkpoint::newest(self.folder.path())?;
        let before = Manifest::read(self.folder.path())?;
        let changes = self.manifest.changes_since(&before);
        if !allow_changes {
            manifest::refuse(self.folder.path(), &changes)?;
        }
        (self.state, self.best) = checkpoint::load(&newest, &mut self.learners, self.split.train.len())?;
        for (learner, known) in self.learners.iter_mut().zip(&self.state.learners) {
            learner.network.set_loss_scale(known.loss_scale);
        }
        if !changes.is_empty() {
            (self.state.batch, self.state.loss_sum, self.state.images, self.state.skipped_steps) = (0, 0.0, 0, 0);
        }
        EpochRecord::drop_from(&self.folder.log(), self.state.epoch)?;
        self.write_best()?;
        self.write_settings()?;
        self.manifest.resumed = before.resumed;
        self.manifest.resumed.push(Resumption {
            epoch: self.state.epoch,
            batch: self.state.batch,
            command: std::mem::replace(&mut self.manifest.command, before.command),
            device: std::mem::replace(&mut self.manifest.device, before.device),
            changes,
        });
        self.manifest.write(self.folder)
    }

    /// Leaves what is needed to go on from the very beginning.
    fn begin(&mut self) -> Result<()> {
        self.write_settings()?;
        self.manifest.write(self.folder)?;
        self.checkpoint()
    }

    fn checkpoint(&mut self) -> Result<()> {
        checkpoint::save(self.folder, &mut self.learners, self.best.as_ref(), &self.state)?;
        self.saved = Instant::now();
        Ok(())
    }

    pub(super) fn loader(&self, chosen: &[usize], number: u64, augment: bool) -> Loader<'a> {
        let seed = learner_seed(self.settings, number);
        Loader::new(self.set, chosen.to_vec(), self.settings.batch, seed, augment)
    }

    /// What the run is about to do.
    pub fn summary(&self) -> Summary {
        let (learner, learners) = (&self.learners[0], self.learners.len() as u64);
        Summary {
            device: learner.network.device().name(),
            model: learner.network.model().architecture.name.into(),
            parameters: learner.network.model().parameter_count(),
            train_slices: self.split.train.len(),
            validation_slices: self.split.validation.len(),
            steps: self.steps(),
            steps_done: self.state.steps,
            operations_per_step: learners * learner.plan().operations,
            planned_bytes: learners * learner.network.planned_bytes(),
        }
    }

    fn steps(&self) -> u64 {
        self.settings.epochs * self.split.train.len().div_ceil(self.settings.batch) as u64
    }

    /// Trains all epochs, or those that are left. The best weights by validation Dice (the last, if nothing validates)
    /// are in `best.safetensors`, a line for each epoch in `log.jsonl`, the settings in `config.toml`, what is needed
    /// to repeat the run in `manifest.json`, and what is needed to go on in `last/`.
    ///
    /// # Errors
    /// If the device fails, a file cannot be written, or the loss is not a number: the last checkpoint stays. If the
    /// observer stops the run: all is saved, and `best.safetensors` is there.
    pub fn train(&mut self, observer: &dyn Observer) -> Result<Outcome> {
        if self.manifest.resumed.is_empty() {
            self.begin()?;
        }
        observer.begin(&self.summary());
        let started = Instant::now();
        while self.state.epoch <= self.settings.epochs {
            let record = match self.epoch(observer) {
                Err(Error::Interrupted { exit_code }) => {
                    self.interrupted()?;
                    return Err(Error::Interrupted { exit_code });
                }
                other => other?,
            };
            let State { best_epoch, best_val_dice, .. } = self.state;
            let best = best_epoch == 0 || record.val_dice.is_none() || record.val_dice > best_val_dice;
            if best {
                self.best = Some(self.learners[0].network.weights()?);
                self.write_best()?;
                (self.state.best_epoch, self.state.best_val_dice) = (record.epoch, record.val_dice);
            }
            // In this order: a line that no checkpoint knows of is dropped when the run goes on, and what the observer has
            // written of the epoch is written again.
            record.append_to(&self.folder.log())?;
            observer.epoch(&record, best);
            self.state.epoch += 1;
            self.checkpoint()?;
        }
        Ok(Outcome {
            best_epoch: self.state.best_epoch,
            best_val_dice: self.state.best_val_dice,
            epochs: self.settings.epochs,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Saves where the run stands, and weights that can be used.
    fn interrupted(&mut self) -> Result<()> {
        // An epoch of which nothing is done begins anew: the checkpoint before it is there.
        if self.state.batch > 0 {
            self.checkpoint()?;
        }
        if self.best.is_none() {
            self.estimate_statistics()?;
            self.best = Some(self.learners[0].network.weights()?);
            self.write_best()?;
        }
        Ok(())
    }

    /// Trains what is left of the epoch, and validates.
    fn epoch(&mut self, observer: &dyn Observer) -> Result<EpochRecord> {
        let started = Instant::now();
        if self.state.batch == 0 {
            self.denoiser.begin_epoch(self.state.epoch, &mut self.state.learners);
        }
        if self.state.learners.iter().any(|learner| learner.weights.iter().all(|&weight| weight == 0.0)) {
            return Err(Error::Invalid(format!(
                "--adl leaves no slice to train on in epoch {}: lower --noise-proportion, or add cases",
                self.state.epoch
            )));
        }
        let loaders = self.epoch_loaders();
        let trained_before = self.state.images;
        let learning_rate = self.train_batches(&loaders, observer)?;
        let (training, images) = (started.elapsed().as_secs_f64(), self.state.images - trained_before);
        self.estimate_statistics()?;
        self.score(observer)?;
        let counts = self.validate(observer)?;
        let learner = &self.state.learners[0];
        let record = EpochRecord {
            epoch: self.state.epoch,
            train_loss: self.state.loss_sum / loaders[0].batches() as f64,
            val_dice: counts.and_then(|counts| counts.dice().value()),
            val_iou: counts.and_then(|counts| counts.iou().value()),
            learning_rate,
            removed: self.denoiser.newly_left_out(self.state.epoch, learner) as u64,
            removed_total: self.denoiser.slices_left_out(learner).len() as u64,
            estimated_noise: self.denoiser.estimate(learner),
            detection: self.denoiser.detection(learner),
            skipped_steps: self.state.skipped_steps,
            images_per_s: images as f64 / training,
            seconds: started.elapsed().as_secs_f64(),
        };
        (self.state.batch, self.state.loss_sum, self.state.images, self.state.skipped_steps) = (0, 0.0, 0, 0);
        Ok(record)
    }

    /// A loader for each learner, set to this epoch.
    fn epoch_loaders(&self) -> Vec<Loader<'a>> {
        let learners = self.state.learners.iter().enumerate();
        learners.map(|(number, learner)| self.epoch_loader(number, &learner.weights)).collect()
    }

    /// A loader of the training slices for learner `number`, set to this epoch; those of weight 0 are left out.
    fn epoch_loader(&self, number: usize, weights: &[f32]) -> Loader<'a> {
        let mut loader = self.loader(&self.split.train, number as u64, self.settings.augment);
        loader.begin_epoch(self.state.epoch, weights);
        loader
    }

    /// Trains the epoch's batches that are not done yet, and returns the last one's learning rate.
    fn train_batches(&mut self, loaders: &[Loader], observer: &dyn Observer) -> Result<f64> {
        let (epoch, batches) = (self.state.epoch, loaders[0].batches());
        let (settings, steps) = (self.settings, self.steps());
        let rate = |step| settings.learning_rate * settings.schedule.factor(step, steps);
        let mut learning_rate = rate(self.state.steps.saturating_sub(1));
        for batch in self.state.batch..batches {
            if let Some(exit_code) = observer.stop() {
                return Err(Error::Interrupted { exit_code });
            }
            learning_rate = rate(self.state.steps);
            let step = self.state.steps + 1;
            let (mut loss, mut images) = (0.0, 0);
            for ((learner, loader), known) in self.learners.iter_mut().zip(loaders).zip(&mut self.state.learners) {
                let (losses, slices) = learner.train(loader, batch, learning_rate, step)?;
                if !losses.batch.is_finite() {
                    // The state that gave this loss may have been saved: its weights were numbers, but no good.
                    checkpoint::remove_bad(self.folder, self.state.steps)?;
                    return Err(not_finite(self.set, epoch, slices));
                }
                known.loss_scale = learner.network.loss_scale();
                self.state.skipped_steps += u64::from(losses.skipped);
                self.denoiser.record(&mut known.records, slices.iter().copied().zip(losses.samples));
                (loss, images) = (loss + f64::from(losses.batch), images + slices.len());
            }
            loss /= loaders.len() as f64;
            self.state.steps = step;
            self.state.loss_sum += loss;
            self.state.images += images as u64;
            self.state.batch = batch + 1;
            if self.saved.elapsed() >= self.save_every {
                self.checkpoint()?;
            }
            observer.batch(epoch, batch + 1, batches, images, loss);
        }
        Ok(learning_rate)
    }

    /// From all training slices: what is wrong with a mask is no fault of its image.
    fn estimate_statistics(&mut self) -> Result<()> {
        let weights = vec![1.0; self.split.train.len()];
        for number in 0..self.learners.len() {
            let loader = self.epoch_loader(number, &weights);
            self.learners[number].estimate_statistics(&loader)?;
        }
        Ok(())
    }

    /// Scores masks without training on them.
    fn score(&mut self, observer: &dyn Observer) -> Result<()> {
        for number in 0..self.learners.len() {
            let slices = self.denoiser.slices_to_score(&self.state.learners[number]);
            let loader = self.loader(&slices, number as u64, false);
            let (denoiser, records) = (&self.denoiser, &mut self.state.learners[number].records);
            self.learners[number].evaluate(&loader, &|| observer.stop(), |evaluated| {
                denoiser.record_evaluated(records, &evaluated);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The confusion counts over all pixels of the validation slices, if there are any.
    fn validate(&mut self, observer: &dyn Observer) -> Result<Option<Counts>> {
        let loader = self.loader(&self.split.validation, 0, false);
        let tell = |slice: usize, probabilities: &[f32]| observer.validated(slice, probabilities);
        counts(&mut self.learners[0], &loader, &|| observer.stop(), tell)
    }

    /// The confusion counts over all pixels of the slices of test cases, if the set has any, with the weights as
    /// they are.
    ///
    /// # Errors
    /// If the device fails or the observer stops it.
    pub fn test(&mut self, observer: &dyn Observer) -> Result<Option<Counts>> {
        let loader = self.loader(&self.split.test, 0, false);
        counts(&mut self.learners[0], &loader, &|| observer.stop(), |_, _| {})
    }

    /// Takes the weights that are in `best.safetensors`.
    ///
    /// # Errors
    /// If the file cannot be read or is not this network's.
    pub fn load_best(&mut self) -> Result<()> {
        let path = self.folder.best();
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        weights::WeightsFile::new(&path, &bytes)?.load(&mut self.learners[0].network)
    }

    fn write_best(&self) -> Result<()> {
        let Some(best) = &self.best else { return Ok(()) };
        let preprocessing = Preprocessing { size: self.settings.size, window: self.settings.window };
        weights::write(&self.learners[0].network, best, &preprocessing, &self.folder.best())
    }

    fn write_settings(&self) -> Result<()> {
        let path = self.folder.config();
        let text = toml::to_string(self.settings).map_err(|error| Error::file(&path, error.to_string()))?;
        write_atomically(&path, |file| file.write_all(text.as_bytes()))
    }
}

/// The seed of a learner's weights and order: the run's for the first one.
fn learner_seed(settings: &Settings, number: u64) -> u64 {
    settings.seed.wrapping_add(number << 32)
}

/// The confusion counts over all pixels of a loader's slices, if there are any.
fn counts(
    learner: &mut Learner,
    loader: &Loader,
    stop: &dyn Fn() -> Option<u8>,
    tell: impl Fn(usize, &[f32]),
) -> Result<Option<Counts>> {
    let mut total = None;
    learner.evaluate(loader, stop, |evaluated| {
        tell(evaluated.slice, evaluated.probabilities);
        let foreground = |values: &[f32]| values.iter().map(|&value| is_foreground(value)).collect::<Vec<bool>>();
        let counts = Counts::of(&foreground(evaluated.probabilities), &foreground(evaluated.target))?;
        total = Some(total.map_or(counts, |total: Counts| total + counts));
        Ok(())
    })?;
    Ok(total)
}

fn not_finite(set: &SliceSet, epoch: u64, slices: &[usize]) -> Error {
    let name = |&index: &usize| {
        let slice = &set.slices[index];
        format!("{} slice {}", set.cases[slice.case], slice.index)
    };
    let names: Vec<String> = slices.iter().map(name).collect();
    Error::Invalid(format!(
        "the loss is not a number in epoch {epoch}, on {}: lower --learning-rate, or look at these slices",
        names.join(", ")
    ))
}
