//! `predict`: masks of scans, in each scan's own grid.

use super::device::DeviceArgs;
use super::{output, signal};
use crate::data::file::{create_folder, write_atomically};
use crate::data::{self, Volume, nifti};
use crate::postprocessing::{fill_holes, keep_largest_component};
use crate::predict::{self, Predictor};
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
    /// Scans, folders of scans, or patterns like "scans/*.nii.gz"
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
    /// Keep only the mask's largest component (voxels that touch, corners included)
    #[arg(long)]
    largest_component: bool,
    /// Fill holes that the mask encloses on all sides, after --largest-component
    #[arg(long)]
    fill_holes: bool,
    /// Which series of folders of DICOM files, by its SeriesInstanceUID
    #[arg(long, value_name = "UID")]
    series: Option<String>,
    /// Replace what earlier predictions wrote; a scan is never replaced
    #[arg(long, conflicts_with = "skip_finished")]
    overwrite: bool,
    /// Leave out scans whose files all exist, and redo those that have some
    #[arg(long)]
    skip_finished: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut scans = scans(&args.inputs)?;
    let all = scans.len();
    if args.skip_finished {
        scans.retain(|name, _| !args.outputs(name).iter().all(|path| path.exists()));
    }
    check_outputs(args, &scans)?;
    if args.skip_finished {
        output::note(&format!("{} of {all} scans are finished", all - scans.len()));
    }
    signal::catch()?;
    let mut predictor = Predictor::open(&args.weights, args.device.open()?)?;
    create_folder(&args.out)?;
    for (name, path) in &scans {
        write_prediction(args, &mut predictor, path, name)?;
        if let Some(exit_code) = signal::caught() {
            return Err(Error::Interrupted { exit_code });
        }
    }
    Ok(())
}

impl Args {
    /// The files of a scan: its mask, which is written last, and what else is asked for.
    fn outputs(&self, name: &str) -> Vec<PathBuf> {
        let endings =
            [Some(".nii.gz"), self.probabilities.then_some("_probability.nii.gz"), self.overlay.then_some(".png")];
        endings.iter().flatten().map(|ending| self.out.join(format!("{name}{ending}"))).collect()
    }
}

/// Predicts a scan and writes its files.
fn write_prediction(args: &Args, predictor: &mut Predictor, scan: &Path, name: &str) -> Result<()> {
    let (image, header) = read_scan(scan, args.series.as_deref())?;
    let mut mask = match args.probabilities {
        false => mask_of(predictor, scan, &image, name)?,
        true => {
            let progress = slice_progress(&image, name);
            let found = predictor.probabilities(scan, &image, |count| progress.advance(count))?;
            nifti::write(&args.out.join(format!("{name}_probability.nii.gz")), &found, Some(&header))?;
            predict::mask(&found)
        }
    };
    if args.largest_component {
        keep_largest_component(&mut mask);
    }
    if args.fill_holes {
        fill_holes(&mut mask);
    }
    if args.overlay {
        let path = args.out.join(format!("{name}.png"));
        let picture = draw(&image, &mask)?;
        write_atomically(&path, |file| file.write_all(&picture))?;
    }
    let written = args.out.join(format!("{name}.nii.gz"));
    nifti::write(&written, &mask, Some(&header))?;
    output::print(&format!("{}\n", written.display()))
}

/// Reads a scan, and says what a person should know of it.
fn read_scan(scan: &Path, series: Option<&str>) -> Result<(Volume<f32>, data::Header)> {
    let (image, header) = data::open_series(scan, series)?.into_image()?;
    header.notes.iter().for_each(|note| output::note(&format!("note: {}: {note}", scan.display())));
    Ok((image, header))
}

fn slice_progress(image: &Volume<f32>, name: &str) -> output::Progress {
    let slices = data::Reorientation::to_ras_from(&image.geometry).ras().shape[2];
    output::Progress::new(name, slices, "slices")
}

fn mask_of(predictor: &mut Predictor, scan: &Path, image: &Volume<f32>, name: &str) -> Result<Volume<u8>> {
    let progress = slice_progress(image, name);
    predictor.mask(scan, image, |count| progress.advance(count))
}

/// A scan, its mask and its header.
///
/// # Errors
/// If the scan cannot be read, or the device fails.
pub fn segment(predictor: &mut Predictor, scan: &Path, name: &str) -> Result<(Volume<f32>, Volume<u8>, data::Header)> {
    let (image, header) = read_scan(scan, None)?;
    let mask = mask_of(predictor, scan, &image, name)?;
    Ok((image, mask, header))
}

/// Refuses to replace a scan in any case, and any other file unless asked to.
fn check_outputs(args: &Args, scans: &BTreeMap<String, PathBuf>) -> Result<()> {
    let inputs: Vec<PathBuf> = scans.values().filter_map(|path| path.canonicalize().ok()).collect();
    for path in scans.keys().flat_map(|name| args.outputs(name)) {
        let Ok(existing) = path.canonicalize() else { continue };
        if inputs.contains(&existing) {
            return Err(Error::file(path, "is one of the scans, which a mask would replace: choose another --out"));
        }
        if !args.overwrite && !args.skip_finished {
            let advice = "choose another --out, or give --overwrite or --skip-finished";
            return Err(Error::file(path, format!("exists already: {advice}")));
        }
    }
    Ok(())
}

/// Slices in the picture of a scan.
const PICTURED: usize = 9;

/// Slices with the mask's contour, evenly from the first with foreground to the last. Only these are copied.
fn draw(image: &Volume<f32>, mask: &Volume<u8>) -> Result<Vec<u8>> {
    let reorientation = data::Reorientation::to_ras_from(&image.geometry);
    let depth = reorientation.ras().shape[2];
    let marked: Vec<usize> = (0..depth).filter(|&z| reorientation.ras_slice(mask, z).contains(&1)).collect();
    let shown = if marked.is_empty() { (0..depth).collect() } else { marked };
    let slices: Vec<usize> = spread(shown.len(), PICTURED).into_iter().map(|place| shown[place]).collect();
    let (image, mask) = (reorientation.ras_slices(image, &slices), reorientation.ras_slices(mask, &slices));
    montage(&image, None, Some(&mask), &(0..slices.len()).collect::<Vec<_>>(), DISPLAY_WINDOW)
}

/// The scans among the inputs, by the name of their masks.
fn scans(inputs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut scans = BTreeMap::<String, PathBuf>::new();
    for input in inputs {
        for path in matching(input)?.iter().map(|path| data::list_scans(path)).collect::<Result<Vec<_>>>()?.concat() {
            let name = data::scan_name(&path);
            if let Some(other) = scans.insert(name.clone(), path.clone()).filter(|other| *other != path) {
                let message = format!("its mask would be named {name}, as that of {}", other.display());
                return Err(Error::file(path, message));
            }
        }
    }
    Ok(scans)
}

/// The paths that an input stands for: itself, or what matches it if it is a pattern (which most shells have
/// replaced before).
fn matching(input: &Path) -> Result<Vec<PathBuf>> {
    let pattern = input.to_string_lossy();
    if input.exists() || !pattern.contains(['*', '?', '[']) {
        return Ok(vec![input.to_path_buf()]);
    }
    let paths = glob::glob(&pattern).map_err(|error| Error::file(input, format!("is no pattern: {error}")))?;
    // What cannot be looked at is left out, as a shell does.
    let paths: Vec<PathBuf> = paths.flatten().collect();
    match paths.is_empty() {
        false => Ok(paths),
        true => Err(Error::file(input, "matches no file")),
    }
}
