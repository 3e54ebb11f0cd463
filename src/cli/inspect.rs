//! `inspect`: what a scan or a data set holds.

use super::output;
use crate::data::inspect::{DatasetInspection, VolumeInspection, inspect_with};
use crate::data::{Inspection, Labels};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::PathBuf;

/// Show what a scan or a data set holds, and what would stop training on it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda inspect spine/labelsTr/patient1.nii.gz --json")]
pub struct Args {
    /// A scan, or the folder of a data set
    path: PathBuf,
    /// Labels of a data set's masks that are foreground, like 26-33,41 (default: any above 0); in CSI 2014 masks, which
    /// hold 100 times the vertebra's number, 26 stands for 2600, too
    #[arg(long, value_name = "LIST")]
    labels: Option<Labels>,
    /// Which series of a folder of DICOM files, by its SeriesInstanceUID
    #[arg(long, value_name = "UID")]
    series: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let found = inspect_with(&args.path, &args.labels.clone().unwrap_or_default(), args.series.as_deref())?;
    if args.labels.is_some() && matches!(found, Inspection::Volume(_)) {
        return Err(Error::file(&args.path, "is a scan: --labels is for data sets, leave it out"));
    }
    if args.json {
        return output::print_json(&found);
    }
    output::print(&match &found {
        Inspection::Volume(volume) => volume_text(volume),
        Inspection::Dataset(dataset) => dataset_text(dataset),
    })
}

fn volume_text(volume: &VolumeInspection) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:12} {value}");
    };
    line("format", volume.format.to_owned());
    line("shape", joined(&volume.shape, " x "));
    line("spacing", format!("{} mm", rounded(&volume.spacing_mm, " x ")));
    line("orientation", volume.orientation.clone());
    for (index, row) in volume.affine[..3].iter().enumerate() {
        line(if index == 0 { "affine" } else { "" }, rounded(row, "  "));
    }
    line("dtype", volume.dtype.to_owned());
    if let (Some(min), Some(max), Some(mean)) = (volume.min, volume.max, volume.mean) {
        line("values", format!("{min} to {max}, mean {mean:.3}"));
    }
    if volume.undefined > 0 {
        line("undefined", format!("{} voxels are NaN or infinite", volume.undefined));
    }
    if let Some(labels) = &volume.labels {
        line("labels", labels_text(labels));
    }
    volume.notes.iter().for_each(|note| line("note", note.clone()));
    text
}

fn dataset_text(dataset: &DatasetInspection) -> String {
    let header = ["case", "shape", "spacing (mm)", "orientation", "slices", "with foreground", "labels: voxels"];
    let rows = dataset.cases.iter().map(|case| {
        vec![
            case.name.clone(),
            joined(&case.shape, " x "),
            rounded(&case.spacing_mm, " x "),
            case.orientation.clone(),
            case.slices.to_string(),
            case.foreground_slices.to_string(),
            labels_text(&case.labels),
        ]
    });
    let table = output::table(&header, &rows.collect::<Vec<_>>());
    let mut text = format!("{}, {} cases\n\n{table}\n", dataset.format, dataset.cases.len());
    let lists = [("this stops training", &dataset.problems), ("this does not, but look at it", &dataset.warnings)];
    if dataset.problems.is_empty() {
        text.push_str("nothing stops training\n");
    }
    for (title, lines) in lists.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        text.push_str(&format!("{title}:\n  {}\n", lines.join("\n  ")));
    }
    text
}

fn joined(values: &[impl Display], separator: &str) -> String {
    values.iter().map(|value| value.to_string()).collect::<Vec<_>>().join(separator)
}

/// Numbers without the digits that say nothing.
fn rounded(values: &[f64], separator: &str) -> String {
    // Adding 0 turns -0 into 0.
    joined(&values.iter().map(|value| (value * 1e4).round() / 1e4 + 0.0).collect::<Vec<_>>(), separator)
}

/// "0: 1200, 1: 80"
fn labels_text(labels: &BTreeMap<i64, u64>) -> String {
    labels.iter().map(|(label, count)| format!("{label}: {count}")).collect::<Vec<_>>().join(", ")
}
