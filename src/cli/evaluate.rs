//! `evaluate`: predicted masks against reference masks.

use super::compare::Comparison;
use super::masks::{Pair, pairs};
use super::output;
use crate::data::file::write_atomically;
use crate::data::{Labels, Reorientation, Volume, read_labels};
use crate::metrics::{CaseMetrics, Evaluation, NEIGHBOURHOOD_RADIUS, evaluate_case};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Measure predicted masks against reference masks: every metric, for each slice and each volume
///
/// Masks are files, or folders whose files are matched by name (without extension and _0000); the reference may
/// be a data set, too. Without --labels any label above 0 is foreground. With --labels LIST those labels are, in
/// the reference, and in a prediction that holds more than 0 and 1; a prediction of 0 and 1 is taken as it is.
///
/// --compare A B measures two methods' masks, and tests for each metric whether they differ (Wilcoxon's
/// signed-rank test on cases, two-sided, not corrected for the number of metrics).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rarunet-cuda evaluate --prediction masks --reference spine/labelsTr --csv metrics.csv"
)]
pub struct Args {
    /// The predicted masks: a file or a folder
    #[arg(long, value_name = "P", required_unless_present = "compare")]
    prediction: Option<PathBuf>,
    /// Two methods' masks, to compare
    #[arg(long, value_names = ["A", "B"], num_args = 2, conflicts_with_all = ["prediction", "csv"])]
    compare: Option<Vec<PathBuf>>,
    /// The reference masks: a file or a folder
    #[arg(long, value_name = "R")]
    reference: PathBuf,
    /// Labels that are foreground, like 26-33,41 (default: any above 0); in a reference named NAME_label (CSI 2014),
    /// which holds 100 times the vertebra's number, 26 stands for 2600, too
    #[arg(long, value_name = "LIST")]
    labels: Option<Labels>,
    /// Measure each label on its own, as the case NAME:LABEL, instead of all as one foreground
    #[arg(long)]
    per_label: bool,
    /// Radius of the neighbourhood in dbd and sbd, in city-block steps
    #[arg(long, value_name = "STEPS", value_parser = super::flags::whole(0..=64), default_value_t = NEIGHBOURHOOD_RADIUS)]
    radius: usize,
    /// Bring predictions to the reference's grid, by nearest neighbour, where they are on another
    #[arg(long)]
    resample: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write the figures of each case to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some([first, second]) = args.compare.as_deref() {
        let methods = [first, second].map(|path| path.display().to_string());
        let evaluations = [evaluate(args, first)?, evaluate(args, second)?];
        let comparison = Comparison::new(methods, evaluations)?;
        return match args.json {
            true => output::print_json(&comparison),
            false => output::print(&comparison.table()),
        };
    }
    let prediction = args.prediction.as_deref().unwrap_or(Path::new(""));
    let evaluation = evaluate(args, prediction)?;
    if let Some(path) = &args.csv {
        if path.exists() && path.extension().is_none_or(|extension| extension != "csv") {
            return Err(Error::file(path, "exists and is not named .csv: it is not overwritten"));
        }
        write_atomically(path, |file| file.write_all(evaluation.csv().as_bytes()))?;
    }
    match args.json {
        true => output::print_json(&evaluation),
        false => output::print(&evaluation.table()),
    }
}

/// The metrics of all masks of one method.
fn evaluate(args: &Args, prediction: &Path) -> Result<Evaluation> {
    let pairs = pairs(prediction, &args.reference)?;
    let progress = output::Progress::new("evaluate", pairs.len(), "cases");
    let mut cases = Vec::new();
    let mut labels = BTreeSet::new();
    for pair in pairs {
        cases.extend(measure(args, &pair, &mut labels)?);
        progress.advance(1);
    }
    if let Some(wanted) = args.labels.as_ref().filter(|_| !labels.iter().any(|&(_, wanted)| wanted)) {
        let held = labels.iter().map(|(label, _)| label.to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("no voxel has {}: give --labels among those there are ({held})", wanted.in_words());
        return Err(Error::file(&args.reference, message));
    }
    Ok(Evaluation::new(cases, args.radius))
}

/// The metrics of one case, or of each of its labels; the reference's labels, and whether they are wanted, are added
/// to `labels`.
fn measure(args: &Args, pair: &Pair, labels: &mut BTreeSet<(i32, bool)>) -> Result<Vec<(String, CaseMetrics)>> {
    // In RAS order, so that storage order is no difference, and slices are axial.
    let reference = read_mask(&pair.reference)?;
    let mut prediction = read_mask(&pair.prediction)?;
    if let Some(difference) = prediction.geometry.difference(&reference.geometry, ["prediction", "reference"]) {
        if !args.resample {
            let message = format!("{difference}; --resample compares them in the reference's grid");
            return Err(Error::file(&pair.prediction, message));
        }
        prediction = prediction.nearest(&reference.geometry);
    }
    let held: BTreeSet<i32> = distinct(&reference);
    let wanted = args.labels.clone().unwrap_or_default().in_mask(&pair.reference);
    labels.extend(held.iter().map(|&label| (label, wanted.contains(label.into()))));
    let reference_grid = reference.geometry.clone();
    let compare = |predicted: &dyn Fn(i32) -> bool, wanted: &dyn Fn(i32) -> bool| {
        let mask =
            |volume: &Volume<i32>, is: &dyn Fn(i32) -> bool| volume.voxels.iter().map(|&l| is(l)).collect::<Vec<_>>();
        let (prediction, reference) = (mask(&prediction, predicted), mask(&reference, wanted));
        let geometry = &reference_grid;
        evaluate_case(&prediction, &reference, geometry.shape, geometry.spacing(), args.radius)
            .map_err(|error| Error::file(&pair.reference, error.to_string()))
    };
    let predicted = distinct(&prediction);
    let is_wanted = |label: i32| wanted.contains(label.into());
    if args.per_label {
        let each = held.union(&predicted).copied().filter(|&label| is_wanted(label));
        let case = |label: i32| {
            let is = move |other: i32| other == label;
            Ok((format!("{}:{label}", pair.name), compare(&is, &is)?))
        };
        return each.map(case).collect();
    }
    let any = |label: i32| Labels::default().contains(label.into());
    let binary = predicted.iter().all(|label| [0, 1].contains(label));
    let metrics = if binary { compare(&any, &is_wanted)? } else { compare(&is_wanted, &is_wanted)? };
    Ok(vec![(pair.name.clone(), metrics)])
}

/// A mask in RAS order.
fn read_mask(path: &Path) -> Result<Volume<i32>> {
    let (mask, _) = read_labels(path)?;
    if let Some(negative) = distinct(&mask).first().filter(|&&label| label < 0) {
        return Err(Error::file(path, format!("holds the value {negative}, which is no label: is it an image?")));
    }
    Reorientation::to_ras_from(&mask.geometry).to_ras(&mask)
}

/// The labels of a mask.
fn distinct(mask: &Volume<i32>) -> BTreeSet<i32> {
    // Labels come in runs.
    mask.voxels.chunk_by(|a, b| a == b).map(|run| run[0]).collect()
}
