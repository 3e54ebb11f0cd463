//! `predict`: masks of scans, in each scan's own grid.

use super::device::DeviceArgs;
use super::{output, signal};
use crate::data::{self, nifti};
use crate::predict::{Predictor, mask};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Segment scans with trained weights
///
/// Writes a mask for each scan, named as the scan, with its exact shape and geometry: NAME.nii.gz, 1 where
/// vertebra.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda predict --weights run/best.safetensors scan.nii.gz --out masks")]
pub struct Args {
    /// Scans, or folders of scans
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Weights that train wrote
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Where to write the masks
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Also write each voxel's probability: NAME_probability.nii.gz
    #[arg(long)]
    probabilities: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let scans = scans(&args.inputs)?;
    signal::catch()?;
    let mut predictor = Predictor::open(&args.weights, args.device.open()?)?;
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    for (name, path) in &scans {
        let written = predict(&mut predictor, path, &args.out, name, args.probabilities)?;
        output::print(&format!("{}\n", written.display()))?;
        if let Some(exit_code) = signal::caught() {
            return Err(Error::Interrupted { exit_code });
        }
    }
    Ok(())
}

/// Predicts one scan, and returns the mask's path.
///
/// # Errors
/// If the scan cannot be read, the device fails, or the mask cannot be written.
pub fn predict(predictor: &mut Predictor, scan: &Path, out: &Path, name: &str, probabilities: bool) -> Result<PathBuf> {
    let (image, header) = data::read_image(scan)?;
    let slices = data::Reorientation::to_ras_from(&image.geometry).ras().shape[2];
    let progress = output::Progress::new(name, slices, "slices");
    let found = predictor.probabilities(scan, &image, |count| progress.advance(count))?;
    drop(progress);
    if probabilities {
        nifti::write(&out.join(format!("{name}_probability.nii.gz")), &found, Some(&header))?;
    }
    let path = out.join(format!("{name}.nii.gz"));
    nifti::write(&path, &mask(&found), Some(&header))?;
    Ok(path)
}

/// The scans among the inputs, by the name of their masks.
fn scans(inputs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut scans = BTreeMap::<String, PathBuf>::new();
    for input in inputs {
        for path in data::list_scans(input)? {
            let name = data::scan_name(&path);
            if let Some(other) = scans.insert(name.clone(), path.clone()) {
                let message = format!("its mask would be named {name}, as that of {}", other.display());
                return Err(Error::file(path, message));
            }
        }
    }
    Ok(scans)
}
