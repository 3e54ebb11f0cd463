//! `demo`: everything once, on synthetic patients.

use super::device::DeviceArgs;
use super::{output, phantom, predict, report, train};
use crate::data::file::write_atomically;
use crate::data::phantom::PhantomSettings;
use crate::data::{Dataset, Volume, nifti, read_labels};
use crate::metrics::evaluation::Evaluation;
use crate::metrics::{NEIGHBOURHOOD_RADIUS, evaluate_case};
use crate::predict::Predictor;
use crate::report::{CasePictures, DISPLAY_WINDOW, montage, spread};
use crate::train::{Run, RunFolder, Schedule, Settings};
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

/// Slices in the picture of the held-out patient.
const PICTURED: usize = 9;

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
    let set = Run::load_slices(&settings, &dataset, None, || {})?;
    let run_folder = RunFolder::create(&folder)?;
    let mut run = Run::new(&settings, &set, None, || args.device.open(), &run_folder)?;
    run.train(&train::Display::new(settings.epochs)?)?;

    let name = held_out();
    let scan = data.join(format!("imagesTr/{name}_0000.nii.gz"));
    let mut predictor = Predictor::open(&folder.join("best.safetensors"), args.device.open()?)?;
    let (image, prediction, header) = predict::segment(&mut predictor, &scan, &name)?;
    nifti::write(&args.out.join(format!("{name}.nii.gz")), &prediction, Some(&header))?;
    let (labels, _) = read_labels(&data.join(format!("labelsTr/{name}.nii.gz")))?;
    let voxels = labels.voxels.iter().map(|&label| u8::from(label > 0)).collect();
    let reference = Volume::new(labels.geometry, voxels)?;
    finish(&args.out, &folder, &name, [&reference, &prediction], &image)
}

/// Writes the metrics, a picture and the report of the held-out patient, and says what came out.
fn finish(out: &Path, run: &Path, name: &str, masks: [&Volume<u8>; 2], image: &Volume<f32>) -> Result<()> {
    let [reference, prediction] = masks;
    let evaluation = evaluate(name, prediction, reference)?;
    let dice = evaluation.cases()[0].1.volume.dice.value();
    let dice = dice.ok_or_else(|| Error::Invalid("the held-out patient has no vertebra".into()))?;
    let document = json!({ "case": name, "dice": dice, "evaluation": evaluation });
    write_atomically(&out.join("evaluation.json"), |file| writeln!(file, "{document:#}"))?;
    let depth = image.geometry.shape[2];
    let slices = spread(depth, PICTURED);
    let picture = montage(image, Some(reference), Some(prediction), &slices, DISPLAY_WINDOW)?;
    write_atomically(&out.join(format!("{name}.png")), |file| file.write_all(&picture))?;
    let case = CasePictures::draw(name, Some(dice), image, Some(reference), Some(prediction), depth)?;
    let note = format!("{name}, which training did not see: Dice {dice:.4}");
    report::write(run, out, vec![note.clone()], Some(&evaluation), vec![case])?;
    output::print(&format!("{note}; see {}\n", out.join("report.html").display()))
}

/// All metrics of a mask against another.
fn evaluate(name: &str, prediction: &Volume<u8>, reference: &Volume<u8>) -> Result<Evaluation> {
    let foreground = |mask: &Volume<u8>| mask.voxels.iter().map(|&voxel| voxel > 0).collect::<Vec<bool>>();
    let geometry = &reference.geometry;
    let metrics = evaluate_case(
        &foreground(prediction),
        &foreground(reference),
        geometry.shape,
        geometry.spacing(),
        NEIGHBOURHOOD_RADIUS,
    )?;
    Ok(Evaluation::new(vec![(name.to_owned(), metrics)], NEIGHBOURHOOD_RADIUS))
}
