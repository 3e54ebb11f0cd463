//! Several runs side by side on one page.

use super::html::{charts_html, duration, notes, page};
use super::palette::CURVES;
use super::plot::DASHES;
use super::sections::{Cell, sortable};
use super::{LineChart, RunFiles, Series, escape, figure};
use crate::Result;
use crate::data::file::write_atomically;
use crate::train::EpochRecord;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// Runs to compare.
#[derive(Debug, Clone)]
pub struct Comparison {
    runs: Vec<RunFiles>,
}

impl Comparison {
    /// Of these runs, in this order.
    pub fn new(runs: Vec<RunFiles>) -> Self {
        Comparison { runs }
    }

    /// Writes the page, whole or not at all.
    ///
    /// # Errors
    /// If `path` cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let html = self.html();
        write_atomically(path, |file| file.write_all(html.as_bytes()))
    }

    /// The page.
    pub fn html(&self) -> String {
        let mut body = String::new();
        // Writing into a String cannot fail.
        let _ = self.body(&mut body);
        page(&format!("{} training runs", self.runs.len()), &body)
    }

    fn body(&self, html: &mut String) -> std::fmt::Result {
        notes(html, &["Each run is known by a letter, in the tables and in the curves.".to_owned()])?;
        self.table(html)?;
        writeln!(html, "<section aria-labelledby=\"curves\">\n<h2 id=\"curves\">Curves</h2>")?;
        writeln!(html, "<ul class=\"legend\">")?;
        for (number, run) in self.runs.iter().enumerate() {
            let (colour, dashes) = (CURVES[number % CURVES.len()].css(), DASHES[number % DASHES.len()]);
            writeln!(
                html,
                "<li><svg viewBox=\"0 0 40 20\" aria-hidden=\"true\"><path d=\"M2 10h36\" \
                 style=\"stroke:{colour};stroke-width:3;stroke-dasharray:{dashes}\"/></svg>{}: {}</li>",
                letter(number),
                escape(&run.path.display().to_string())
            )?;
        }
        writeln!(html, "</ul>\n<div class=\"charts\">")?;
        charts_html(html, "chart", &self.charts())?;
        writeln!(html, "</div>\n</section>")?;
        self.differences(html)
    }

    fn table(&self, html: &mut String) -> std::fmt::Result {
        writeln!(html, "<section aria-labelledby=\"runs\">\n<h2 id=\"runs\">What came of them</h2>")?;
        let columns = [
            ("run", ""),
            ("folder", ""),
            ("model", "The network."),
            ("epochs", "Epochs done."),
            ("best epoch", "The epoch whose weights were kept."),
            ("validation Dice", "In the best epoch, over all pixels of the validation slices."),
            ("validation IoU", "In the best epoch."),
            ("training loss", "In the last epoch."),
            ("left out", "Training masks that denoising left out of the last epoch."),
            ("images/s", "Trained on, on average."),
            ("seconds", "Of all epochs."),
        ];
        let row = |(number, run): (usize, &RunFiles)| {
            let (best, last) = (run.best(), run.records.last());
            let seconds: f64 = run.records.iter().map(|record| record.seconds).sum();
            let speeds: Vec<f64> = run.records.iter().map(|record| record.images_per_s).collect();
            let speed = (!speeds.is_empty()).then(|| speeds.iter().sum::<f64>() / speeds.len() as f64);
            vec![
                Cell::Text(letter(number)),
                Cell::Text(run.path.display().to_string()),
                Cell::Text(run.setting("model").unwrap_or_default().to_owned()),
                Cell::whole(run.records.len()),
                Cell::optional(best.map(|record| record.epoch as f64), |epoch| epoch.to_string()),
                Cell::optional(best.and_then(|record| record.val_dice), figure),
                Cell::optional(best.and_then(|record| record.val_iou), figure),
                Cell::optional(last.map(|record| record.train_loss), figure),
                Cell::optional(last.map(|record| record.removed_total as f64), |count| count.to_string()),
                Cell::optional(speed, figure),
                Cell::Number(seconds, duration(seconds)),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.runs.iter().enumerate().map(row).collect();
        sortable(html, "All runs.", &columns, &rows)?;
        writeln!(html, "</section>")
    }

    fn charts(&self) -> Vec<LineChart> {
        let epochs = self.runs.iter().flat_map(|run| &run.records).map(|record| record.epoch);
        let epochs: Vec<u64> = epochs.collect::<BTreeSet<u64>>().into_iter().collect();
        let chart = |title: &str, from_zero: bool, value: fn(&EpochRecord) -> Option<f64>| {
            let series = |(number, run): (usize, &RunFiles)| {
                let of = |epoch: &u64| run.records.iter().find(|record| record.epoch == *epoch).and_then(value);
                let colour = CURVES[number % CURVES.len()];
                Series { name: letter(number), colour, values: epochs.iter().map(of).collect() }
            };
            let series: Vec<Series> = self.runs.iter().enumerate().map(series).collect();
            LineChart { title: title.to_owned(), epochs: epochs.clone(), series, from_zero }
        };
        let charts = [
            chart("Validation Dice", false, |record| record.val_dice),
            chart("Validation IoU", false, |record| record.val_iou),
            chart("Training loss", true, |record| Some(record.train_loss)),
            chart("Learning rate", true, |record| Some(record.learning_rate)),
            chart("Images per second", true, |record| Some(record.images_per_s)),
            chart("Masks left out", true, |record| Some(record.removed_total as f64).filter(|count| *count > 0.0)),
        ];
        charts.into_iter().filter(|chart| chart.series.iter().any(|s| s.values.iter().any(Option::is_some))).collect()
    }

    /// The settings in which the runs differ.
    fn differences(&self, html: &mut String) -> std::fmt::Result {
        let names: BTreeSet<&str> =
            self.runs.iter().flat_map(|run| run.settings.iter().map(|(name, _)| name.as_str())).collect();
        let different: Vec<&str> = names
            .into_iter()
            .filter(|name| self.runs.iter().any(|run| run.setting(name) != self.runs[0].setting(name)))
            .collect();
        writeln!(html, "<section aria-labelledby=\"settings\">\n<h2 id=\"settings\">Settings that differ</h2>")?;
        if different.is_empty() {
            return writeln!(html, "<p>None.</p>\n</section>");
        }
        let columns: Vec<(&str, &str)> =
            std::iter::once(("run", "")).chain(different.iter().map(|n| (*n, ""))).collect();
        let row = |(number, run): (usize, &RunFiles)| {
            let value = |name: &&str| Cell::Text(run.setting(name).unwrap_or("\u{2013}").to_owned());
            std::iter::once(Cell::Text(letter(number))).chain(different.iter().map(value)).collect()
        };
        let rows: Vec<Vec<Cell>> = self.runs.iter().enumerate().map(row).collect();
        sortable(html, "The others are the same in all runs.", &columns, &rows)?;
        writeln!(html, "</section>")
    }
}

/// A, B, ... Z, then A2, ...
fn letter(number: usize) -> String {
    let letter = char::from(b'A' + (number % 26) as u8);
    match number / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{}", round + 1),
    }
}
