//! `phantom`: a data set of synthetic patients.

use super::{flags, output};
use crate::Result;
use crate::data::file::write_atomically;
use crate::data::phantom::{PhantomSettings, phantom};
use crate::data::{Volume, metaimage, nifti};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make synthetic spine CT with exact vertebra masks, as a data set to train on
///
/// The images are in Hounsfield units, the masks 1 where vertebra.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda phantom --out spine --patients 10 --seed 1")]
pub struct Args {
    /// Where to write the data set: a new or empty folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many patients
    #[arg(long, value_name = "N", value_parser = flags::whole(1..=100_000), default_value = "10")]
    patients: usize,
    /// Axial slices of each
    #[arg(long, value_name = "N", value_parser = flags::whole(1..=2048), default_value = "32")]
    slices: usize,
    /// Pixels along a slice's side
    #[arg(long, value_name = "PIXELS", value_parser = flags::whole(1..=2048), default_value = "128")]
    size: usize,
    /// Another seed, other patients
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// The files' format
    #[arg(long, value_enum, default_value = "nifti")]
    format: Format,
}

/// The formats that a patient can be written in.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Format {
    /// An nnU-Net raw data set: dataset.json, imagesTr/patient1_0000.nii.gz, labelsTr/patient1.nii.gz
    Nifti,
    /// As the CSI 2014 challenge names files: case1.mhd, case1_label.mhd
    #[value(name = "metaimage")]
    MetaImage,
}

pub fn run(args: &Args) -> Result<()> {
    let settings = PhantomSettings { slices: args.slices, size: args.size, seed: args.seed };
    write(&args.out, args.patients, &settings, args.format)
}

/// Writes a data set of `patients` into the folder `out`, which is made if absent.
///
/// # Errors
/// If the folder is not empty, or cannot be written.
pub fn write(out: &Path, patients: usize, settings: &PhantomSettings, format: Format) -> Result<()> {
    super::train::new_folder(out)?;
    let progress = output::Progress::new("phantom", patients, "patients");
    for patient in 0..patients {
        let (image, mask) = phantom(settings, patient);
        let Volume { geometry, voxels } = image;
        // Whole Hounsfield units between -1024 and 3071.
        let image = Volume::new(geometry, voxels.into_iter().map(|hounsfield| hounsfield as i16).collect())?;
        write_patient(out, patient + 1, &image, &mask, format)?;
        progress.advance(1);
    }
    match format {
        Format::Nifti => write_dataset_json(out, patients),
        Format::MetaImage => Ok(()),
    }
}

fn write_patient(out: &Path, number: usize, image: &Volume<i16>, mask: &Volume<u8>, format: Format) -> Result<()> {
    let (image, mask) = match format {
        Format::Nifti => rayon::join(
            || nifti::write(&out.join(format!("imagesTr/patient{number}_0000.nii.gz")), image, None),
            || nifti::write(&out.join(format!("labelsTr/patient{number}.nii.gz")), mask, None),
        ),
        Format::MetaImage => (
            metaimage::write(&out.join(format!("case{number}.mhd")), image),
            metaimage::write(&out.join(format!("case{number}_label.mhd")), mask),
        ),
    };
    image.and(mask)
}

/// Written last: a data set without it is not complete.
fn write_dataset_json(out: &Path, patients: usize) -> Result<()> {
    let description = json!({
        "channel_names": { "0": "CT" },
        "labels": { "background": 0, "vertebra": 1 },
        "numTraining": patients,
        "file_ending": ".nii.gz",
    });
    write_atomically(&out.join("dataset.json"), |file| writeln!(file, "{description:#}"))
}
