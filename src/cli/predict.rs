//! `predict`: masks of scans, in each scan's own grid.

use super::device::DeviceArgs;
use super::{output, signal};
use crate::data::file::{create_folder, write_atomically};
use crate::data::{self, Volume, nifti};
use crate::predict::{Predictor, mask};
use crate::report::{DISPLAY_WINDOW, montage, spread};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
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
    /// Also draw up to nine slices with the mask's contour: NAME.png
    #[arg(long)]
    overlay: bool,
    /// Replace what earlier predictions wrote; a scan is never replaced
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let scans = scans(&args.inputs)?;
    check_outputs(args, &scans)?;
    signal::catch()?;
    let mut predictor = Predictor::open(&args.weights, args.device.open()?)?;
    create_folder(&args.out)?;
    for (name, path) in &scans {
        let (image, found, header) = probabilities(&mut predictor, path, name)?;
        if args.probabilities {
            nifti::write(&args.out.join(format!("{name}_probability.nii.gz")), &found, Some(&header))?;
        }
        let mask = mask(&found);
        if args.overlay {
            let path = args.out.join(format!("{name}.png"));
            let picture = draw(&image, &mask)?;
            write_atomically(&path, |file| file.write_all(&picture))?;
        }
        let written = args.out.join(format!("{name}.nii.gz"));
        nifti::write(&written, &mask, Some(&header))?;
        output::print(&format!("{}\n", written.display()))?;
        if let Some(exit_code) = signal::caught() {
            return Err(Error::Interrupted { exit_code });
        }
    }
    Ok(())
}

/// Refuses to replace a scan in any case, and any other file unless asked to.
fn check_outputs(args: &Args, scans: &BTreeMap<String, PathBuf>) -> Result<()> {
    let inputs: Vec<PathBuf> = scans.values().filter_map(|path| path.canonicalize().ok()).collect();
    let endings =
        [Some(".nii.gz"), args.probabilities.then_some("_probability.nii.gz"), args.overlay.then_some(".png")];
    for name in scans.keys() {
        for path in endings.iter().flatten().map(|ending| args.out.join(format!("{name}{ending}"))) {
            let Ok(existing) = path.canonicalize() else { continue };
            if inputs.contains(&existing) {
                return Err(Error::file(path, "is one of the scans, which a mask would replace: choose another --out"));
            }
            if !args.overwrite {
                return Err(Error::file(path, "exists already: choose another --out, or give --overwrite"));
            }
        }
    }
    Ok(())
}

/// A scan, the foreground probability of each of its voxels, and its header.
///
/// # Errors
/// If the scan cannot be read, or the device fails.
pub fn probabilities(
    predictor: &mut Predictor,
    scan: &Path,
    name: &str,
) -> Result<(Volume<f32>, Volume<f32>, data::Header)> {
    let (image, header) = data::read_image(scan)?;
    let slices = data::Reorientation::to_ras_from(&image.geometry).ras().shape[2];
    let progress = output::Progress::new(name, slices, "slices");
    let found = predictor.probabilities(scan, &image, |count| progress.advance(count))?;
    Ok((image, found, header))
}

/// Slices in the picture of a scan.
const PICTURED: usize = 9;

/// Slices with the mask's contour, evenly from the first with foreground to the last.
fn draw(image: &Volume<f32>, mask: &Volume<u8>) -> Result<Vec<u8>> {
    let reorientation = data::Reorientation::to_ras_from(&image.geometry);
    let (image, mask) = (reorientation.to_ras(image)?, reorientation.to_ras(mask)?);
    let depth = image.geometry.shape[2];
    let marked: Vec<usize> = (0..depth).filter(|&z| mask.slice(z).contains(&1)).collect();
    let shown = if marked.is_empty() { (0..depth).collect() } else { marked };
    let slices: Vec<usize> = spread(shown.len(), PICTURED).into_iter().map(|place| shown[place]).collect();
    montage(&image, None, Some(&mask), &slices, DISPLAY_WINDOW)
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
