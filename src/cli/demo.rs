//! `demo`: everything once, on synthetic patients.

use super::device::DeviceArgs;
use super::{output, phantom, predict, train};
use crate::data::file::write_atomically;
use crate::data::phantom::PhantomSettings;
use crate::data::{Dataset, read_labels};
use crate::metrics::evaluation::Evaluation;
use crate::metrics::{NEIGHBOURHOOD_RADIUS, evaluate_case};
use crate::predict::Predictor;
use crate::train::{Run, Schedule, Settings};
use crate::{Error, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make synthetic patients, train on all but one, and segment that one
///
/// Takes under three minutes on two CPU cores. The folder gets the data set, the run, the held-out patient's
/// mask, its metrics and a report.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda demo --out demo")]
pub struct Args {
    /// Where to write: a new or empty folder
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

const PATIENTS: usize = 10;
const PHANTOM: PhantomSettings = PhantomSettings { slices: 24, size: 96, seed: 1 };

/// Small enough for two cores and three minutes: what the demo trains with.
fn settings() -> Settings {
    Settings {
        widths: [8, 16, 32, 64, 128],
        epochs: 24,
        learning_rate: 4e-3,
        schedule: Schedule::Cosine,
        size: PHANTOM.size,
        augment: false,
        test_cases: vec![held_out()],
        ..Settings::default()
    }
}

/// The patient that training does not see.
fn held_out() -> String {
    format!("patient{PATIENTS}")
}

pub fn run(args: &Args) -> Result<()> {
    train::new_folder(&args.out)?;
    let (data, folder) = (args.out.join("data"), args.out.join("run"));
    phantom::write(&data, PATIENTS, &PHANTOM, phantom::Format::Nifti)?;
    let settings = settings();
    let dataset = Dataset::open(&data)?;
    let set = Run::load_slices(&settings, &dataset, || {})?;
    let run = Run::new(&settings, &set, args.device.open()?, &folder)?;
    run.train(&train::Display::new(settings.epochs)?)?;

    let name = held_out();
    let scan = data.join(format!("imagesTr/{name}_0000.nii.gz"));
    let mut predictor = Predictor::open(&folder.join("best.safetensors"), args.device.open()?)?;
    let mask = predict::predict(&mut predictor, &scan, &args.out, &name, false)?;
    let evaluation = evaluate(&name, &mask, &data.join(format!("labelsTr/{name}.nii.gz")))?;
    let dice = evaluation.cases()[0].1.volume.dice.value();
    let dice = dice.ok_or_else(|| Error::Invalid("the held-out patient has no vertebra".into()))?;
    let path = args.out.join("evaluation.json");
    let document = json!({ "case": name, "dice": dice, "evaluation": evaluation });
    write_atomically(&path, |file| writeln!(file, "{document:#}"))?;
    output::print(&format!("{name}, which training did not see: Dice {dice:.4}\n"))
}

/// All metrics of one mask file against another.
fn evaluate(name: &str, prediction: &Path, reference: &Path) -> Result<Evaluation> {
    let (prediction, _) = read_labels(prediction)?;
    let (reference, _) = read_labels(reference)?;
    let foreground = |voxels: &[i32]| voxels.iter().map(|&label| label > 0).collect::<Vec<bool>>();
    let metrics = evaluate_case(
        &foreground(&prediction.voxels),
        &foreground(&reference.voxels),
        reference.geometry.shape,
        reference.geometry.spacing(),
        NEIGHBOURHOOD_RADIUS,
    )?;
    Ok(Evaluation::new(vec![(name.to_owned(), metrics)], NEIGHBOURHOOD_RADIUS))
}
