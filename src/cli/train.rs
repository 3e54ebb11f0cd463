//! `train`: from a data set to weights.

use super::device::DeviceArgs;
use super::{flags, output, signal};
use crate::data::file::create_folder;
use crate::data::{Cache, Dataset};
use crate::noise::Truth;
use crate::report::Journal;
use crate::resources::{free_disk, free_memory};
use crate::train::adl::Adl;
use crate::train::needs::{DataNeeds, check_disk, disk_bytes};
use crate::train::{
    EpochRecord, Learner, Observer, Outcome, Run, RunFolder, Schedule, Settings, Summary, checkpoint, checkpoints,
    manifest,
};
use crate::{Error, Result};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Train a network on a data set
///
/// The run's folder gets best.safetensors (the best weights by validation Dice), log.jsonl (a line for
/// each epoch), config.toml (all settings), manifest.json (what is needed to repeat the run), report.html and
/// last (checkpoints). Interrupted by a signal, it saves where it is; however it ended, --resume goes on from its
/// last checkpoint and comes to the same weights, bit by bit.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rarunet-cuda train spine --out run --size 128 --schedule cosine --learning-rate 1e-3"
)]
pub struct Args {
    /// The data set: an nnU-Net raw, Decathlon, VerSe or CSI 2014 folder
    dataset: PathBuf,
    /// Where to write the run: a new or empty folder, unless --resume is given
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Settings to start from, as config.toml has them; flags override them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The network; `models` lists them
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Channels of the five levels
    #[arg(long, value_name = "A,B,C,D,E", value_parser = flags::widths)]
    widths: Option<[usize; 5]>,
    /// How often each slice is trained on
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Slices in a batch
    #[arg(long, value_name = "N", value_parser = flags::batch)]
    batch: Option<usize>,
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// The learning rate's course: constant or cosine (with a short warm-up)
    #[arg(long, value_name = "COURSE")]
    schedule: Option<Schedule>,
    /// Height and width that slices are resized to, a multiple of 16
    #[arg(long, value_name = "PIXELS", value_parser = flags::size)]
    size: Option<usize>,
    /// Do not turn slices by +-90 degrees
    #[arg(long)]
    no_augment: bool,
    /// Another seed, other weights and another order
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How training masks that may be wrong are treated
    #[arg(long, value_enum, value_name = "STRATEGY")]
    adl: Option<Adl>,
    /// The share of training masks believed noisy
    #[arg(long, value_name = "SHARE")]
    noise_proportion: Option<f64>,
    /// Their mean Dice overlap with the truth
    #[arg(long, value_name = "DICE")]
    noise_overlap: Option<f64>,
    /// Cases to leave out, for a test of your own
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    test_cases: Option<Vec<String>>,
    /// The share of slices that validates
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
    /// Labels that are foreground, like 26-33,41 (default: any above 0); in CSI 2014 masks, which hold 100 times the
    /// vertebra's number, 26 stands for 2600, too
    #[arg(long, value_name = "LIST")]
    labels: Option<String>,
    /// Where preprocessed slices are kept, for this run and later ones; of any number of runs, and safe to delete
    /// [default: rarunet-cuda in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Keep all slices in memory, and none on the disk
    #[arg(long, conflicts_with = "cache")]
    no_cache: bool,
    /// Go on with the run in RUN where its last checkpoint ends; give the flags that it began with
    #[arg(long)]
    resume: bool,
    /// Let a run that goes on have other settings, data or device; an epoch that was begun begins anew
    #[arg(long, requires = "resume")]
    allow_changes: bool,
    /// Save a checkpoint so often within an epoch; one is saved at its end in any case
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0, value_parser = flags::minutes)]
    save_every: f64,
    /// Check settings, data (without reading voxels), memory and disk, say what would be done, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// Where slices are kept, if not in memory.
    fn cache(&self) -> Result<Option<Cache>> {
        match &self.cache {
            _ if self.no_cache => Ok(None),
            Some(folder) => Ok(Some(Cache::new(folder))),
            None => Cache::of_user().map(Some),
        }
    }

    /// The settings of the file, if there is one, with those of the flags over them.
    fn settings(&self) -> Result<Settings> {
        let mut settings = match &self.config {
            None => Settings::default(),
            Some(path) => Settings::read(path)?,
        };
        fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        set(&mut settings.model, &self.model);
        set(&mut settings.widths, &self.widths);
        set(&mut settings.epochs, &self.epochs);
        set(&mut settings.batch, &self.batch);
        set(&mut settings.learning_rate, &self.learning_rate);
        set(&mut settings.schedule, &self.schedule);
        set(&mut settings.size, &self.size);
        set(&mut settings.seed, &self.seed);
        set(&mut settings.adl, &self.adl);
        settings.noise_proportion = self.noise_proportion.or(settings.noise_proportion);
        settings.noise_overlap = self.noise_overlap.or(settings.noise_overlap);
        set(&mut settings.test_cases, &self.test_cases);
        set(&mut settings.validation_fraction, &self.validation_fraction);
        set(&mut settings.labels, &self.labels);
        settings.augment &= !self.no_augment;
        Ok(settings)
    }
}

pub fn run(args: &Args) -> Result<()> {
    let settings = args.settings()?;
    flags::model(&settings.model, settings.widths)?;
    settings.check()?;
    match args.resume {
        true => RunFolder::check_resumable(&args.out)?,
        false => RunFolder::check_new(&args.out)?,
    }
    if args.resume && !args.allow_changes {
        manifest::check_settings(&args.out, &settings)?;
    }
    let truth = Truth::of_dataset(&args.dataset)?;
    settings.adl.check_truth(truth.is_some())?;
    if args.dry_run {
        return dry_run(args, &settings);
    }
    let folder = if args.resume { RunFolder::resume(&args.out)? } else { RunFolder::create(&args.out)? };
    // A missing device is said before the data is read.
    drop(args.device.open()?);
    let dataset = Dataset::open(&args.dataset)?;
    let cache = args.cache()?;
    let needs = DataNeeds::new(&settings, &dataset, cache.is_some())?;
    needs.check()?;
    check_disk(&args.out, disk_bytes(&settings, needs.slices)?)?;
    let progress = output::Progress::new("load", needs.cases, "cases");
    let set = Run::load_slices(&settings, &dataset, cache.as_ref(), || progress.advance(1))?;
    drop(progress);
    if let Some(cache) = &cache {
        let [reused, made] = cache.counts();
        output::note(&format!("cache {}: {reused} cases were there, {made} are new", cache.folder().display()));
    }
    let truth = truth.map(|truth| truth.of_slices(&set));
    let mut run = Run::new(&settings, &set, truth.as_deref(), || args.device.open(), &folder)?;
    run.save_every(Duration::from_secs_f64(args.save_every * 60.0));
    if args.resume {
        run.resume(args.allow_changes)?;
    }
    let journal = Journal::new(&args.out, &set, settings.window);
    let display = Display::new(settings.epochs)?.with_journal(journal);
    let trained = run.train(&display).and_then(|outcome| {
        run.load_best()?;
        run.review(&display)?;
        Ok(outcome)
    });
    finish(trained, &display, &args.out)
}

/// Writes the report of a run that ended or was interrupted; says of one that failed what is kept.
fn finish(trained: Result<Outcome>, display: &Display, folder: &Path) -> Result<()> {
    match trained {
        Ok(outcome) => {
            let text = outcome_text(&outcome, folder);
            display.finish(vec![text.clone()])?;
            output::note(&text);
            Ok(())
        }
        Err(Error::Interrupted { exit_code }) => {
            let note = "The run was interrupted; train --resume goes on with it.".to_owned();
            if let Err(error) = display.finish(vec![note]) {
                output::note(&error.to_string());
            }
            Err(Error::Interrupted { exit_code })
        }
        Err(error) if checkpoints(folder).is_empty() => Err(error),
        Err(error) => Err(Error::Invalid(format!(
            "{error}; what was reached before is kept: --resume goes on from it (with --allow-changes, if flags change)"
        ))),
    }
}

/// Checks what a run needs, and says what it would do. The data's headers are read, not its voxels; nothing is written.
fn dry_run(args: &Args, settings: &Settings) -> Result<()> {
    if args.resume {
        checkpoint::newest(&args.out)?;
    }
    let dataset = Dataset::open(&args.dataset)?;
    let cache = args.cache()?;
    let needs = DataNeeds::new(settings, &dataset, cache.is_some())?;
    // The networks take their memory here, so that what is left is what the data can have.
    let learners: Result<Vec<Learner>> =
        (0..settings.adl.learners()).map(|_| Learner::new(settings, args.device.open()?, settings.seed)).collect();
    let learners = learners?;
    needs.check()?;
    let disk = disk_bytes(settings, needs.slices)?;
    check_disk(&args.out, disk)?;
    let validation = (settings.validation_fraction * needs.slices as f64).round() as usize;
    let train = needs.slices - validation;
    let network = &learners[0].network;
    let summary = Summary {
        device: network.device().name(),
        model: network.model().architecture.name.into(),
        parameters: network.model().parameter_count(),
        train_slices: train,
        validation_slices: validation,
        steps: settings.epochs * train.div_ceil(settings.batch) as u64,
        steps_done: 0,
        operations_per_step: learners.iter().map(|learner| learner.plan().operations).sum(),
        planned_bytes: learners.iter().map(|learner| learner.network.planned_bytes()).sum(),
    };
    let free = |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| format!("{} MiB", bytes >> 20));
    output::print(&format!(
        "{}\n{} cases with {} slices, {} MiB of memory for them; {} are left\n{} MiB of disk at most; {} are free\n",
        summary_text(&summary),
        needs.cases,
        needs.slices,
        (needs.bytes >> 20).max(1),
        free(free_memory()),
        (disk >> 20).max(1),
        free(free_disk(&args.out)),
    ))?;
    match cache {
        None => Ok(()),
        Some(cache) => output::print(&format!(
            "{} MiB of cache at most, in {}; {} are free\n",
            (needs.cache_bytes >> 20).max(1),
            cache.folder().display(),
            free(free_disk(cache.folder()))
        )),
    }
}

/// Makes a folder, which must be new or empty.
///
/// # Errors
/// If it holds something or cannot be made.
pub fn new_folder(folder: &Path) -> Result<()> {
    create_folder(folder)?;
    match std::fs::read_dir(folder).map_err(Error::io(folder))?.next() {
        None => Ok(()),
        Some(_) => Err(Error::file(folder, "is not empty: choose a new folder for --out")),
    }
}

fn summary_text(summary: &Summary) -> String {
    format!(
        "{}: {} parameters; {} training, {} validation slices; {} steps of {:.1} GFLOP; {} MiB planned; on {}",
        summary.model,
        summary.parameters,
        summary.train_slices,
        summary.validation_slices,
        summary.steps,
        summary.operations_per_step as f64 / 1e9,
        summary.planned_bytes >> 20,
        summary.device
    )
}

fn outcome_text(outcome: &Outcome, folder: &Path) -> String {
    let dice = outcome.best_val_dice.map_or("no validation".into(), |dice| format!("validation Dice {dice:.4}"));
    let path = folder.join("best.safetensors");
    format!("best: epoch {}, {dice}; weights in {}", outcome.best_epoch, path.display())
}

/// What else there is to say of an epoch.
fn details(record: &EpochRecord) -> String {
    let iou = record.val_iou.map_or(String::new(), |iou| format!(", validation IoU {iou:.4}"));
    let EpochRecord { learning_rate, removed, removed_total, seconds, .. } = record;
    let auroc = record.detection.and_then(|detection| detection.auroc);
    let auroc = auroc.map_or(String::new(), |auroc| format!(", detection AUROC {auroc:.3}"));
    format!(
        "{iou}, learning rate {learning_rate:.2e}, {removed} masks removed, {removed_total} in all{auroc}, {seconds:.1} s"
    )
}

/// Shows a run on standard error, and stops it when a signal asks for it.
pub struct Display<'a> {
    epochs: u64,
    progress: RefCell<Option<output::Progress>>,
    journal: Option<RefCell<Journal<'a>>>,
}

impl<'a> Display<'a> {
    /// For a run of `epochs`; signals are caught from now on.
    ///
    /// # Errors
    /// If signals cannot be caught.
    pub fn new(epochs: u64) -> Result<Self> {
        signal::catch()?;
        Ok(Display { epochs, progress: RefCell::new(None), journal: None })
    }

    /// Also keeps a journal.
    pub fn with_journal(self, journal: Journal<'a>) -> Self {
        Display { journal: Some(RefCell::new(journal)), ..self }
    }

    /// Clears the bar, and writes the journal's last page.
    ///
    /// # Errors
    /// If the journal could not be kept.
    pub fn finish(&self, notes: Vec<String>) -> Result<()> {
        *self.progress.borrow_mut() = None;
        self.journal.as_ref().map_or(Ok(()), |journal| journal.borrow_mut().finish(notes))
    }
}

impl Observer for Display<'_> {
    fn begin(&self, summary: &Summary) {
        if let Some(journal) = &self.journal {
            journal.borrow_mut().begin(summary);
        }
        output::note(&summary_text(summary));
        let images = self.epochs * summary.train_slices as u64;
        let progress = output::Progress::new("train", images as usize, "images");
        // The last batch of an epoch may be smaller: this is near enough for a bar.
        progress.begin_at(images * summary.steps_done / summary.steps.max(1));
        *self.progress.borrow_mut() = Some(progress);
    }

    fn batch(&self, _: u64, _: usize, _: usize, images: usize, _: f64) {
        if let Some(progress) = &*self.progress.borrow() {
            progress.advance(images);
        }
    }

    fn validated(&self, slice: usize, probabilities: &[f32]) {
        if let Some(journal) = &self.journal {
            journal.borrow_mut().validated(slice, probabilities);
        }
    }

    fn epoch(&self, record: &EpochRecord, best: bool) {
        if let Some(journal) = &self.journal {
            journal.borrow_mut().epoch(record, best);
        }
        let dice = record.val_dice.map_or(String::new(), |dice| format!(", validation Dice {dice:.4}"));
        let text = format!(
            "epoch {}/{}: loss {:.4}{dice}, {:.1} images/s{}{}",
            record.epoch,
            self.epochs,
            record.train_loss,
            record.images_per_s,
            if output::is_verbose() { details(record) } else { String::new() },
            if best { ", best" } else { "" }
        );
        if let Some(progress) = &*self.progress.borrow() {
            progress.note(&text);
            if let Some(dice) = record.val_dice {
                progress.status(&format!("validation Dice {dice:.4}"));
            }
        }
    }

    fn stop(&self) -> Option<u8> {
        signal::caught()
    }
}
