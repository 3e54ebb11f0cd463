//! `corrupt`: a data set with noisy masks, and the truth about them.

use super::output;
use crate::data::file::write_atomically;
use crate::data::{Case, Dataset, Labels, Reorientation, Volume, nifti, read_labels};
use crate::noise::{self, Corruption, Kind, Mask, NoiseSettings, mean_overlap};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make a data set with noisy masks out of one with good ones
///
/// A share of the masks is eroded, dilated or elastically deformed until its Dice overlap with the truth is the
/// wanted one; the mean overlap lies within 0.01 of it. A mask is an axial slice with foreground, or, with
/// --per-volume, a case's whole volume. In masks of several labels a voxel that is lost becomes 0, one that is
/// gained takes the nearest label, and the others keep theirs.
///
/// Images, dataset.json and the masks that stay as they are come along as hard links, or as copies where the file
/// system has no links. noise.csv says which masks were corrupted, how, and how much is left; noise.json sums it up.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rarunet-cuda corrupt spine --out noisy --noise-proportion 0.5 --noise-overlap 0.77 --test-cases patient7"
)]
pub struct Args {
    /// The data set: an nnU-Net raw, Decathlon, VerSe or CSI 2014 folder
    dataset: PathBuf,
    /// Where to write the noisy data set: a new or empty folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The share of masks to corrupt, from 0 to 1
    #[arg(long, value_name = "SHARE")]
    noise_proportion: f64,
    /// The Dice overlap with the truth that corrupted masks keep, between 0 and 1
    #[arg(long, value_name = "DICE")]
    noise_overlap: f64,
    /// Kinds of noise, shared out evenly
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',', default_value = "erosion,dilation,elastic")]
    kinds: Vec<Kind>,
    /// Cases whose masks stay as they are
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    test_cases: Vec<String>,
    /// Corrupt volumes in three dimensions instead of slices in two
    #[arg(long)]
    per_volume: bool,
    /// Labels that are foreground, like 26-33,41 (default: any above 0)
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    labels: Labels,
    /// Another seed, other masks and other noise
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    fn settings(&self) -> NoiseSettings {
        let mut kinds = self.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        NoiseSettings { proportion: self.noise_proportion, overlap: self.noise_overlap, kinds, seed: self.seed }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let settings = args.settings();
    settings.check()?;
    let dataset = Dataset::open(&args.dataset)?;
    let cases = dataset.cases_without(&args.test_cases)?;
    let files = files(&dataset)?;
    super::train::new_folder(&args.out)?;

    let progress = output::Progress::new("read", cases.len(), "cases");
    let read = |(case, files): (usize, &Case)| {
        let masks = masks_of(case, files, args)?;
        progress.advance(1);
        Ok(masks)
    };
    let per_case: Vec<(Vec<Place>, Vec<Mask>, usize)> =
        cases.par_iter().enumerate().map(read).collect::<Result<_>>()?;
    drop(progress);
    let empty = per_case.iter().map(|(_, _, empty)| empty).sum();
    let places: Vec<Place> = per_case.iter().flat_map(|(places, ..)| places.iter().copied()).collect();
    let masks: Vec<Mask> = per_case.into_iter().flat_map(|(_, masks, _)| masks).collect();
    if masks.is_empty() {
        return Err(Error::file(&args.dataset, format!("no voxel of its masks has {}", args.labels.in_words())));
    }
    let corruptions = noise::corrupt(&masks, &settings)?;

    let summary = Summary::new(args, settings, masks.len(), empty, &corruptions);
    let mut of_cases: BTreeMap<usize, Vec<(Place, &Corruption)>> = BTreeMap::new();
    for corruption in &corruptions {
        let place = places[corruption.mask];
        of_cases.entry(place.case).or_default().push((place, corruption));
    }
    let of_cases: Vec<_> = of_cases.into_iter().collect();
    let progress = output::Progress::new("write", of_cases.len(), "masks");
    let write = |(case, corruptions): &(usize, Vec<(Place, &Corruption)>)| {
        let rows = write_case(&cases[*case], &dataset, corruptions, args)?;
        progress.advance(1);
        Ok(rows)
    };
    let rows: Vec<String> = of_cases.par_iter().map(write).collect::<Result<_>>()?;
    drop(progress);
    let rewritten: BTreeSet<&Path> = of_cases.iter().map(|(case, _)| cases[*case].mask.as_path()).collect();
    let brought = bring(files.iter().filter(|file| !rewritten.contains(file.as_path())), &args.dataset, &args.out)?;
    write_atomically(&args.out.join("noise.csv"), |file| write!(file, "case,slice,kind,overlap\n{}", rows.concat()))?;
    let document = serde_json::to_value(&summary).map_err(|error| Error::Invalid(format!("JSON: {error}")))?;
    write_atomically(&args.out.join("noise.json"), |file| writeln!(file, "{document:#}"))?;
    match args.json {
        true => output::print_json(&document),
        false => {
            output::note(&brought);
            output::print(&summary.text())
        }
    }
}

/// Where a mask comes from.
#[derive(Debug, Clone, Copy)]
struct Place {
    case: usize,
    /// The axial slice in RAS order; nothing for a whole volume.
    slice: Option<usize>,
}

/// A case's mask in RAS order, the way there, and the file's header.
fn read(case: &Case) -> Result<(Volume<i32>, Reorientation, crate::data::Header)> {
    let (stored, header) = read_labels(&case.mask)?;
    let reorientation = Reorientation::to_ras_from(&stored.geometry);
    Ok((reorientation.to_ras(&stored)?, reorientation, header))
}

/// The masks of a case that are not empty, where they come from, and how many are empty.
fn masks_of(number: usize, case: &Case, args: &Args) -> Result<(Vec<Place>, Vec<Mask>, usize)> {
    let (volume, ..) = read(case)?;
    let spacing = volume.geometry.spacing();
    let [width, height, depth] = volume.geometry.shape;
    let is_foreground = |label: i32| args.labels.contains(i64::from(label));
    let found: Vec<(Place, Option<Mask>)> = match args.per_volume {
        true => {
            let mask = Mask::new([width, height, depth], spacing, |voxel| is_foreground(volume.voxels[voxel]));
            vec![(Place { case: number, slice: None }, mask)]
        }
        false => {
            let slice = |z: usize| {
                let labels = volume.slice(z);
                let mask = Mask::new([width, height, 1], spacing, |pixel| is_foreground(labels[pixel]));
                (Place { case: number, slice: Some(z) }, mask)
            };
            (0..depth).map(slice).collect()
        }
    };
    let count = found.len();
    let (places, masks): (Vec<Place>, Vec<Mask>) =
        found.into_iter().filter_map(|(place, mask)| Some((place, mask?))).unzip();
    let empty = count - masks.len();
    Ok((places, masks, empty))
}

/// Writes a case's corrupted mask and returns its lines of noise.csv.
fn write_case(case: &Case, dataset: &Dataset, corruptions: &[(Place, &Corruption)], args: &Args) -> Result<String> {
    let (mut volume, reorientation, header) = read(case)?;
    let spacing = volume.geometry.spacing();
    let shape @ [width, height, depth] = volume.geometry.shape;
    let is_foreground = |label: i32| args.labels.contains(i64::from(label));
    let mut rows = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    for (place, Corruption { kind, overlap, flipped, .. }) in corruptions {
        let mut row = |slice: usize, overlap: f64| {
            let fields = [&case.name, &slice.to_string(), kind.name(), &format!("{overlap:.6}")];
            rows.write_record(fields).map_err(|error| Error::file(&case.mask, error.to_string()))
        };
        match place.slice {
            Some(z) => {
                let labels = &mut volume.voxels[z * width * height..][..width * height];
                noise::relabel(labels, [width, height, 1], spacing, is_foreground, flipped);
                row(z, *overlap)?;
            }
            None => {
                let before = volume.clone();
                noise::relabel(&mut volume.voxels, shape, spacing, is_foreground, flipped);
                let changed: BTreeSet<usize> = flipped.iter().map(|voxel| voxel / (width * height)).collect();
                for z in (0..depth).filter(|z| changed.contains(z)) {
                    row(z, slice_overlap(before.slice(z), volume.slice(z), is_foreground))?;
                }
            }
        }
    }
    write_mask(&args.out.join(written_as(case, dataset)), &reorientation.to_stored(&volume)?, &header)?;
    let rows = rows.into_inner().map_err(|error| Error::file(&case.mask, error.to_string()))?;
    Ok(String::from_utf8_lossy(&rows).into_owned())
}

/// The Dice overlap of two slices, at least one of which has foreground.
fn slice_overlap(before: &[i32], after: &[i32], is_foreground: impl Fn(i32) -> bool) -> f64 {
    let (mut both, mut sum) = (0usize, 0usize);
    for (&before, &after) in before.iter().zip(after) {
        let (before, after) = (is_foreground(before), is_foreground(after));
        both += usize::from(before & after);
        sum += usize::from(before) + usize::from(after);
    }
    2.0 * both as f64 / sum as f64
}

/// The mask's path in the data set's folder; a mask that is not NIfTI becomes so.
fn written_as(case: &Case, dataset: &Dataset) -> PathBuf {
    let path = case.mask.strip_prefix(&dataset.folder).unwrap_or(&case.mask);
    let ends = |ending| crate::data::file::ends_with(path, ending);
    if ends(".nii.gz") || ends(".nii") {
        return path.to_owned();
    }
    path.with_file_name(format!("{}.nii.gz", crate::data::layout::stem(path)))
}

/// Writes a mask with the smallest number type that holds its labels.
fn write_mask(path: &Path, mask: &Volume<i32>, header: &crate::data::Header) -> Result<()> {
    let (low, high) = mask.voxels.iter().fold((0, 0), |(low, high), &label| (label.min(low), label.max(high)));
    let geometry = mask.geometry.clone();
    if low >= 0 && high <= i32::from(u8::MAX) {
        let voxels = mask.voxels.iter().map(|&label| label as u8).collect();
        nifti::write(path, &Volume::new(geometry, voxels)?, Some(header))
    } else if low >= i32::from(i16::MIN) && high <= i32::from(i16::MAX) {
        let voxels = mask.voxels.iter().map(|&label| label as i16).collect();
        nifti::write(path, &Volume::new(geometry, voxels)?, Some(header))
    } else {
        nifti::write(path, mask, Some(header))
    }
}

/// dataset.json and all files of the folders in which scans and masks lie, by name.
///
/// # Errors
/// If a folder cannot be read, or a mask is of a format that its data set's layout does not let become NIfTI.
fn files(dataset: &Dataset) -> Result<Vec<PathBuf>> {
    let json = dataset.folder.join("dataset.json");
    if let Some(case) = dataset
        .cases
        .iter()
        .find(|case| json.exists() && written_as(case, dataset).file_name() != case.mask.file_name())
    {
        return Err(Error::file(&case.mask, "is not NIfTI: masks beside a dataset.json should end in .nii.gz or .nii"));
    }
    let folders: BTreeSet<&Path> =
        dataset.cases.iter().flat_map(|case| [&case.image, &case.mask]).filter_map(|path| path.parent()).collect();
    let mut files: BTreeSet<PathBuf> = json.exists().then_some(json).into_iter().collect();
    for folder in folders {
        files.extend(crate::data::layout::entries(folder)?.into_iter().filter(|path| path.is_file()));
    }
    Ok(files.into_iter().collect())
}

/// Links the files from one folder into another, or copies them, and says in a line what was done.
fn bring<'a>(files: impl Iterator<Item = &'a PathBuf>, from: &Path, to: &Path) -> Result<String> {
    let (mut linked, mut copied) = (0, 0);
    for file in files {
        let path = to.join(file.strip_prefix(from).unwrap_or(file));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        // What a symbolic link stands for, or a link would be one to nowhere.
        let source = file.canonicalize().map_err(Error::io(file))?;
        match std::fs::hard_link(&source, &path) {
            Ok(()) => linked += 1,
            Err(_) => {
                std::fs::copy(&source, &path).map_err(Error::io(&path))?;
                copied += 1;
            }
        }
    }
    Ok(format!("{linked} files are hard links to those of {} and {copied} are copies", from.display()))
}

/// What was done, for noise.json.
#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    settings: NoiseSettings,
    per_volume: bool,
    labels: String,
    test_cases: Vec<String>,
    /// Masks with foreground, of all cases but the test ones, and masks without.
    masks: usize,
    empty: usize,
    corrupted: usize,
    mean_overlap: Option<f64>,
    of_kinds: Vec<OfKind>,
}

#[derive(Serialize)]
struct OfKind {
    kind: Kind,
    #[serde(flatten)]
    figures: Figures,
}

/// Figures of some corrupted masks.
#[derive(Serialize)]
struct Figures {
    corrupted: usize,
    mean_overlap: Option<f64>,
    lowest_overlap: Option<f64>,
    highest_overlap: Option<f64>,
}

impl Figures {
    fn of<'a>(corruptions: impl Iterator<Item = &'a Corruption> + Clone) -> Self {
        let corrupted = corruptions.clone().count();
        let overlaps = corruptions.clone().map(|corruption| corruption.overlap);
        Figures {
            corrupted,
            mean_overlap: (corrupted > 0).then(|| mean_overlap(corruptions)),
            lowest_overlap: overlaps.clone().min_by(f64::total_cmp),
            highest_overlap: overlaps.max_by(f64::total_cmp),
        }
    }

    fn row(&self, name: &str) -> Vec<String> {
        let text = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.4}"));
        let figures = [self.mean_overlap, self.lowest_overlap, self.highest_overlap].map(text);
        [name.to_owned(), self.corrupted.to_string()].into_iter().chain(figures).collect()
    }
}

impl Summary {
    fn new(args: &Args, settings: NoiseSettings, masks: usize, empty: usize, corruptions: &[Corruption]) -> Self {
        let of_kind = |&kind: &Kind| {
            let corruptions = corruptions.iter().filter(move |corruption| corruption.kind == kind);
            OfKind { kind, figures: Figures::of(corruptions) }
        };
        Summary {
            of_kinds: settings.kinds.iter().map(of_kind).collect(),
            settings,
            per_volume: args.per_volume,
            labels: args.labels.to_string(),
            test_cases: args.test_cases.clone(),
            masks,
            empty,
            corrupted: corruptions.len(),
            mean_overlap: Figures::of(corruptions.iter()).mean_overlap,
        }
    }

    fn text(&self) -> String {
        let what = if self.per_volume { "volumes" } else { "slices" };
        let mut rows: Vec<Vec<String>> =
            self.of_kinds.iter().map(|of_kind| of_kind.figures.row(of_kind.kind.name())).collect();
        let all = |figure: fn(&Figures) -> Option<f64>, better: fn(f64, f64) -> f64| {
            self.of_kinds.iter().filter_map(|of_kind| figure(&of_kind.figures)).reduce(better)
        };
        let figures = Figures {
            corrupted: self.corrupted,
            mean_overlap: self.mean_overlap,
            lowest_overlap: all(|figures| figures.lowest_overlap, f64::min),
            highest_overlap: all(|figures| figures.highest_overlap, f64::max),
        };
        rows.push(figures.row("all"));
        format!(
            "{} of {} {what} with foreground corrupted ({} without were not chosen from)\n{}",
            self.corrupted,
            self.masks,
            self.empty,
            output::table(&["noise", what, "overlap", "lowest", "highest"], &rows)
        )
    }
}
