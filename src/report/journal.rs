//! What a run leaves for people while it goes: TensorBoard's event files, the validation slices in pictures,
//! `report.html` and `model-card.md`.

use super::card::{self, CardData};
use super::validation::{Predicted, Validation};
use super::{RunFiles, spread};
use crate::Result;
use crate::data::SliceSet;
use crate::preprocessing::{HounsfieldWindow, is_foreground};
use crate::tensorboard::EventWriter;
use crate::train::{EpochRecord, Summary};
use std::path::Path;
use std::time::{Duration, Instant};

/// The report is written anew at most this often, and at the end.
const EVERY: Duration = Duration::from_secs(10);

/// Slices whose pictures go to TensorBoard.
const PICTURED: usize = 2;

/// Keeps a run's folder readable for people. Nothing that fails here stops a run: the first failure is kept.
pub struct Journal<'a> {
    folder: &'a Path,
    set: &'a SliceSet,
    window: HounsfieldWindow,
    events: Option<EventWriter>,
    data: Option<CardData>,
    /// Of the epoch that is being validated.
    predicted: Vec<Predicted>,
    /// Of the best epoch, until it is written.
    best: Option<(u64, Vec<Predicted>)>,
    written: Option<Instant>,
    failure: Option<crate::Error>,
}

impl<'a> Journal<'a> {
    /// Of a run on `set` in `folder`.
    pub fn new(folder: &'a Path, set: &'a SliceSet, window: HounsfieldWindow) -> Self {
        Journal {
            folder,
            set,
            window,
            events: None,
            data: None,
            predicted: Vec::new(),
            best: None,
            written: None,
            failure: None,
        }
    }

    /// Training begins.
    pub fn begin(&mut self, summary: &Summary) {
        self.data = Some(CardData::new(summary, self.set));
    }

    /// A validation slice (an index into the set) has these probabilities.
    pub fn validated(&mut self, slice: usize, probabilities: &[f32]) {
        let mask = probabilities.iter().map(|&probability| u8::from(is_foreground(probability))).collect();
        self.predicted.push(Predicted { slice, mask });
    }

    /// An epoch is over; `best` says whether it is the best so far.
    pub fn epoch(&mut self, record: &EpochRecord, best: bool) {
        let mut predicted = std::mem::take(&mut self.predicted);
        // In the order of the set, whatever came first.
        predicted.sort_by_key(|predicted| predicted.slice);
        let noted = self.note_epoch(record, &predicted);
        self.keep(noted);
        if best && !predicted.is_empty() {
            self.best = Some((record.epoch, predicted));
        }
        if self.written.is_none_or(|written| written.elapsed() >= EVERY) {
            let written = self.write(Vec::new());
            self.keep(written);
            self.written = Some(Instant::now());
        }
    }

    /// The run is over: writes everything, with sentences that say how it went.
    ///
    /// # Errors
    /// The first thing that failed, now or earlier.
    pub fn finish(&mut self, notes: Vec<String>) -> Result<()> {
        let written = self.write(notes);
        self.keep(written);
        self.failure.take().map_or(Ok(()), Err)
    }

    fn keep(&mut self, result: Result<()>) {
        if let (Err(error), None) = (result, &self.failure) {
            self.failure = Some(error);
        }
    }

    /// The epoch's numbers and pictures, for TensorBoard.
    fn note_epoch(&mut self, record: &EpochRecord, predicted: &[Predicted]) -> Result<()> {
        let step = record.epoch;
        if self.events.is_none() {
            self.events = Some(EventWriter::create(&self.folder.join("tensorboard"), step)?);
        }
        let Some(events) = &mut self.events else { return Ok(()) };
        let detection = record.detection;
        let scalars = [
            ("loss/train", Some(record.train_loss)),
            ("validation/dice", record.val_dice),
            ("validation/iou", record.val_iou),
            ("learning_rate", Some(record.learning_rate)),
            ("images_per_s", Some(record.images_per_s)),
            ("denoising/removed", Some(record.removed as f64)),
            ("denoising/removed_total", Some(record.removed_total as f64)),
            ("denoising/proportion", record.estimated_noise.map(|noise| noise.proportion)),
            ("denoising/overlap", record.estimated_noise.map(|noise| noise.overlap)),
            ("denoising/precision", detection.and_then(|detection| detection.precision)),
            ("denoising/recall", detection.and_then(|detection| detection.recall)),
            ("denoising/auroc", detection.and_then(|detection| detection.auroc)),
        ];
        for (tag, value) in scalars {
            if let Some(value) = value {
                events.scalar(step, tag, value)?;
            }
        }
        let shown: Vec<&Predicted> =
            predicted.iter().filter(|predicted| self.set.slices[predicted.slice].has_foreground).collect();
        for place in spread(shown.len(), PICTURED) {
            let slice = &self.set.slices[shown[place].slice];
            let tag = format!("validation/{} slice {}", self.set.cases[slice.case], slice.index);
            events.image(step, &tag, &shown[place].picture(self.set, self.window)?)?;
        }
        Ok(())
    }

    /// Writes pictures, report and card.
    fn write(&mut self, notes: Vec<String>) -> Result<()> {
        if let Some((epoch, predicted)) = self.best.take() {
            Validation::new(epoch, self.set, &predicted, self.window)?.write(self.folder)?;
        }
        let run = RunFiles::read(self.folder)?;
        if let Some(data) = &self.data {
            card::write(&run, data)?;
        }
        run.into_report(notes).write(&self.folder.join("report.html"))
    }
}
