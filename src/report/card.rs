//! `model-card.md`: what somebody should know who is handed a run's weights.

use super::{RunFiles, figure};
use crate::Result;
use crate::data::SliceSet;
use crate::data::file::write_atomically;
use crate::metrics::Metric;
use crate::train::Summary;
use std::fmt::Write as _;
use std::io::Write as _;

/// What a card needs to know that the run's folder does not say.
#[derive(Debug, Clone)]
pub struct CardData {
    pub summary: Summary,
    /// Scans, slices, and slices with foreground.
    pub cases: Vec<String>,
    pub slices: usize,
    pub with_foreground: usize,
}

impl CardData {
    /// Of a run on `set`.
    pub fn new(summary: &Summary, set: &SliceSet) -> Self {
        CardData {
            summary: summary.clone(),
            cases: set.cases.clone(),
            slices: set.slices.len(),
            with_foreground: set.slices.iter().filter(|slice| slice.has_foreground).count(),
        }
    }
}

/// Scans that are named.
const NAMED: usize = 12;

/// Writes the card of the run in a folder, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(run: &RunFiles, data: &CardData) -> Result<()> {
    let text = card(run, data);
    write_atomically(&run.path.join("model-card.md"), |file| file.write_all(text.as_bytes()))
}

/// The card's text, in Markdown.
pub fn card(run: &RunFiles, data: &CardData) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = fill(&mut text, run, data);
    text
}

fn fill(text: &mut String, run: &RunFiles, data: &CardData) -> std::fmt::Result {
    let CardData { summary, cases, slices, with_foreground } = data;
    let setting = |name: &str| run.setting(name).unwrap_or("not said").to_owned();
    let labels = match setting("labels") {
        labels if labels.is_empty() => "any label above 0".to_owned(),
        labels => format!("labels {labels}"),
    };
    let size = setting("size");
    writeln!(text, "# {}: vertebrae in CT\n", summary.model)?;
    writeln!(
        text,
        "Segments vertebrae in CT, slice by slice. {} parameters, channels {}, {size} x {size} pixels. Trained with \
         rarunet-cuda {} on {}.\n",
        summary.parameters,
        setting("widths"),
        env!("CARGO_PKG_VERSION"),
        summary.device
    )?;
    writeln!(text, "**For research. It is no medical device and must not guide anyone\u{2019}s treatment.**\n")?;

    writeln!(text, "## Data\n")?;
    let named = cases.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if cases.len() > NAMED { format!(" and {} more", cases.len() - NAMED) } else { String::new() };
    writeln!(text, "- {} scans: {named}{more}", cases.len())?;
    writeln!(text, "- {slices} axial slices, {with_foreground} of them with foreground ({labels})")?;
    writeln!(text, "- {} slices trained, {} validated", summary.train_slices, summary.validation_slices)?;
    writeln!(text, "- left out for tests: {}", setting("test-cases"))?;
    writeln!(text, "- Hounsfield window and scaling: {}\n", setting("window"))?;

    writeln!(text, "## Metrics\n")?;
    match run.best().filter(|record| record.val_dice.is_some()) {
        None => writeln!(text, "No slice validated. Evaluate the weights on scans that training did not see.\n")?,
        Some(best) => {
            let figures = |value: Option<f64>| value.map_or("undefined".to_owned(), figure);
            writeln!(text, "| | |\n|---|---|")?;
            writeln!(text, "| epoch | {} of {} |", best.epoch, setting("epochs"))?;
            writeln!(text, "| validation Dice | {} |", figures(best.val_dice))?;
            writeln!(text, "| validation IoU | {} |", figures(best.val_iou))?;
            writeln!(text, "| training loss | {} |\n", figure(best.train_loss))?;
            cases_table(text, run)?;
        }
    }

    writeln!(text, "## Training\n")?;
    for name in ["learning-rate", "schedule", "batch", "epochs", "augment", "seed", "adl"] {
        if let Some(value) = run.setting(name) {
            writeln!(text, "- {name}: {value}")?;
        }
    }
    if let Some(last) = run.records.last().filter(|record| record.removed_total > 0) {
        writeln!(text, "- masks left out as likely wrong: {} in the last epoch", last.removed_total)?;
    }
    writeln!(text, "\nAll settings are in `config.toml`, all epochs in `log.jsonl`, pictures in `report.html`.\n")?;

    writeln!(text, "## Limits\n")?;
    writeln!(
        text,
        "- Validation slices come from the scans that trained: they say less about other patients, scanners and \
         hospitals than a test on such scans would.\n\
         - Each slice is segmented on its own; nothing keeps neighbouring slices alike.\n\
         - Input is CT in Hounsfield units. What training did not show (implants, fractures, tumours, children, \
         other parts of the body) may be segmented wrongly, without a sign of it.\n\
         - Probabilities are not calibrated.\n"
    )?;

    writeln!(text, "## Use\n")?;
    writeln!(
        text,
        "```sh\nrarunet-cuda predict --weights best.safetensors scan.nii.gz --out masks\n\
         rarunet-cuda export --weights best.safetensors --onnx model.onnx\n```"
    )
}

/// Each case's Dice, if it is known.
fn cases_table(text: &mut String, run: &RunFiles) -> std::fmt::Result {
    let Some(validation) = &run.validation else { return Ok(()) };
    writeln!(text, "| case | slices | Dice | precision | recall |\n|---|---|---|---|---|")?;
    for case in &validation.cases {
        let counts = case.counts();
        let figure = |metric: Metric| metric.value().map_or("undefined".to_owned(), |value| format!("{value:.4}"));
        let (dice, precision, recall) = (figure(counts.dice()), figure(counts.precision()), figure(counts.recall()));
        writeln!(text, "| {} | {} | {dice} | {precision} | {recall} |", case.name, case.slices.len())?;
    }
    writeln!(text)
}
