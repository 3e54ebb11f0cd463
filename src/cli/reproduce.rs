//! `reproduce`: the paper's ablations, on a data set at hand.

use super::device::DeviceArgs;
use super::train::Display;
use super::{flags, output, phantom};
use crate::data::file::write_atomically;
use crate::data::phantom::PhantomSettings;
use crate::data::{Dataset, SliceSet};
use crate::reproduce::{Report, Row, Table, Trial};
use crate::train::{Run, Schedule, Settings};
use crate::{Error, Result, reproduce};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Train the rows of one of the paper's tables, and print them beside the paper's numbers
///
/// The folder gets the data set (unless --data gives one), a run for each row and seed, and the table as
/// Markdown, CSV and JSON. A row and seed that is done is not trained again: a command that was stopped goes on
/// where it was.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rarunet-cuda reproduce table4 --out table4 --size 64 --widths 8,16,32,64,128 --epochs 20 \
                  --learning-rate 4e-3 --schedule cosine"
)]
pub struct Args {
    /// Which table
    #[arg(value_enum)]
    table: Table,
    /// Where to write: a new folder, or one that this command was stopped in
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A data set with clean masks; without it, synthetic patients are made
    #[arg(long, value_name = "DATASET", requires = "test_cases")]
    data: Option<PathBuf>,
    /// Cases to test on; of synthetic patients, the last quarter
    #[arg(long, value_name = "A,B", value_delimiter = ',', requires = "data")]
    test_cases: Option<Vec<String>>,
    /// Synthetic patients
    #[arg(long, value_name = "N", value_parser = flags::whole(2..=1000), default_value = "12", conflicts_with = "data")]
    patients: usize,
    /// Axial slices of each
    #[arg(long, value_name = "N", value_parser = flags::whole(1..=2048), default_value = "32", conflicts_with = "data")]
    slices: usize,
    /// How often each slice is trained on
    #[arg(long, value_name = "N", default_value = "50")]
    epochs: u64,
    /// Height and width that slices are resized to, a multiple of 16
    #[arg(long, value_name = "PIXELS", value_parser = flags::size, default_value = "256")]
    size: usize,
    /// Channels of the five levels
    #[arg(long, value_name = "A,B,C,D,E", value_parser = flags::widths, default_value = "32,64,128,256,512")]
    widths: [usize; 5],
    /// Slices in a batch
    #[arg(long, value_name = "N", value_parser = flags::batch, default_value = "8")]
    batch: usize,
    #[arg(long, value_name = "RATE", default_value = "1e-5")]
    learning_rate: f64,
    /// The learning rate's course: constant or cosine (with a short warm-up)
    #[arg(long, value_name = "COURSE", default_value = "constant")]
    schedule: Schedule,
    /// Do not turn slices by +-90 degrees
    #[arg(long)]
    no_augment: bool,
    /// The share of training slices that validates
    #[arg(long, value_name = "SHARE", default_value = "0.1")]
    validation_fraction: f64,
    /// Seeds; each trains every row
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Only rows whose folder begins with this, as in `unet-50-0.77-off`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Labels that are foreground, like 26-33,41 (default: any above 0)
    #[arg(long, value_name = "LIST")]
    labels: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    fn settings(&self, test_cases: Vec<String>) -> Settings {
        Settings {
            widths: self.widths,
            epochs: self.epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            size: self.size,
            augment: !self.no_augment,
            validation_fraction: self.validation_fraction,
            test_cases,
            labels: self.labels.clone().unwrap_or_default(),
            ..Settings::default()
        }
    }

    /// The data set's folder, made of synthetic patients if none is given, and its test cases.
    fn dataset(&self) -> Result<(PathBuf, Vec<String>)> {
        if let (Some(data), Some(test_cases)) = (&self.data, &self.test_cases) {
            return Ok((data.clone(), test_cases.clone()));
        }
        let folder = self.out.join("data");
        if !folder.join("dataset.json").exists() {
            let settings = PhantomSettings { slices: self.slices, size: self.size, seed: 1 };
            phantom::write(&folder, self.patients, &settings, phantom::Format::Nifti)?;
        }
        let test = (self.patients / 4).max(1);
        Ok((folder, (self.patients - test + 1..=self.patients).map(|number| format!("patient{number}")).collect()))
    }
}

pub fn run(args: &Args) -> Result<()> {
    drop(args.device.open()?);
    let (data, test_cases) = args.dataset()?;
    let settings = args.settings(test_cases);
    settings.check()?;
    let set = load(&settings, &data)?;
    let mut rows: Vec<(Row, Vec<Trial>)> = args.table.rows().into_iter().map(|row| (row, Vec::new())).collect();
    if let Some(only) = &args.only {
        rows.retain(|(row, _)| row.folder().starts_with(only));
    }
    if rows.is_empty() {
        return Err(Error::Invalid(format!("no row of {} begins with what --only says", args.table.name())));
    }
    let total = rows.len() * args.seeds.len();
    for (number, seed) in args.seeds.iter().enumerate() {
        for index in 0..rows.len() {
            let row = rows[index].0;
            let name = format!("{} seed {seed}", row.folder());
            output::note(&format!("{} of {total}: {name}", number * rows.len() + index + 1));
            let folder = args.out.join(row.folder()).join(format!("seed-{seed}"));
            let settings = Settings { seed: *seed, ..settings.clone() };
            let display = Display::new(settings.epochs)?;
            let trial = reproduce::run(&row, &settings, &set, || args.device.open(), &folder, &display)?;
            rows[index].1.push(trial);
            write(&args.out, args.table, &Report::new(args.table, &rows))?;
        }
    }
    let report = Report::new(args.table, &rows);
    match args.json {
        true => output::print_json(&report),
        false => output::print(&report.markdown()),
    }
}

/// All cases, those to test on as well.
fn load(settings: &Settings, data: &Path) -> Result<SliceSet> {
    let dataset = Dataset::open(data)?;
    let settings = Settings { test_cases: Vec::new(), ..settings.clone() };
    let progress = output::Progress::new("load", dataset.cases_without(&[])?.len(), "cases");
    Run::load_slices(&settings, &dataset, None, || progress.advance(1))
}

fn write(out: &Path, table: Table, report: &Report) -> Result<()> {
    let write = |ending: &str, text: String| {
        let path = out.join(format!("{}.{ending}", table.name()));
        write_atomically(&path, |file| file.write_all(text.as_bytes()))
    };
    write("md", report.markdown())?;
    write("csv", report.csv())?;
    let json = serde_json::to_string_pretty(report).map_err(|error| Error::Invalid(error.to_string()))?;
    write("json", json + "\n")
}
