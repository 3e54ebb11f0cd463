//! `suspects`: the training masks of a run that are most likely wrong.

use super::{flags, output};
use crate::Result;
use crate::noise::Truth;
use crate::train::adl::Detection;
use crate::train::suspects::{Suspect, against_truth};
use serde_json::json;
use std::path::PathBuf;

/// Print the training masks that are most likely wrong, for a person to look at
///
/// The score is how far the mask's outline lies from the predicted one, on average, in pixels of the network's
/// grid. Pictures of the first are in RUN/suspects: the given mask blue, the prediction orange.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda suspects run --count 20")]
pub struct Args {
    /// A run's folder
    run: PathBuf,
    /// How many to print
    #[arg(long, value_name = "N", value_parser = flags::whole(1..=1_000_000), default_value = "20")]
    count: usize,
    /// The truth, to judge the ranking by: a noise.csv as `corrupt` writes it
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let suspects = Suspect::read_all(&args.run.join(Suspect::FILE))?;
    let truth = args.against.as_deref().map(Truth::read).transpose()?;
    let detection =
        truth.map(|truth| against_truth(&suspects, |suspect| truth.is_noisy(&suspect.case, suspect.slice), None));
    let shown = &suspects[..suspects.len().min(args.count)];
    if args.json {
        return output::print_json(&json!({ "masks": suspects.len(), "suspects": shown, "detection": detection }));
    }
    let rows: Vec<Vec<String>> = shown
        .iter()
        .enumerate()
        .map(|(rank, suspect)| {
            vec![
                (rank + 1).to_string(),
                suspect.case.clone(),
                suspect.slice.to_string(),
                format!("{:.2}", suspect.score),
                format!("{:.3}", suspect.dice),
                suspect.pixels.to_string(),
                suspect.predicted_pixels.to_string(),
                suspect.times_left_out.to_string(),
            ]
        })
        .collect();
    let header = ["rank", "case", "slice", "score", "Dice", "pixels", "predicted", "left out"];
    let mut text = output::table(&header, &rows);
    if let Some(detection) = detection {
        text.push_str(&summary(&detection));
    }
    output::print(&text)
}

/// The detection in words.
fn summary(detection: &Detection) -> String {
    let number = |value: Option<f64>| value.map_or("undefined".to_owned(), |value| format!("{value:.3}"));
    format!(
        "against the truth: AUROC {}; of as many masks as are noisy, taken from the top, {} are\n",
        number(detection.auroc),
        number(detection.precision)
    )
}
