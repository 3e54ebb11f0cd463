//! `report.html`: a run in one file that asks nothing of any network.
//!
//! Its content security policy forbids every request; pictures are data URIs, curves inline SVG. Without its script
//! (the slider, sorting) everything still stands there. It follows the reader's light or dark theme, and prints.

use super::palette::{CURVES, Colour, PREDICTION, REFERENCE, hexadecimal};
use super::plot::{LineChart, Series};
use super::{DISPLAY_WINDOW, Suspects, Validation, escape, figure, overlay, sections};
use crate::Result;
use crate::data::file::write_atomically;
use crate::data::{Reorientation, Volume};
use crate::metrics::summary::{Summary, Tally};
use crate::metrics::{Counts, Evaluation, Metric, Metrics};
use crate::train::EpochRecord;
use rayon::prelude::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// What each of [`Metrics::NAMES`] means. Lengths are in pixels for slices and in millimetres for volumes.
const MEANINGS: [&str; Metrics::COUNT] = [
    "Twice the overlap over the sum of both masks: 1 is agreement, 0 none.",
    "The overlap over the union of both masks.",
    "Voxels that are right; near 1 whenever the background is large.",
    "Of what was predicted, how much is in the reference.",
    "Of the reference, how much was predicted; sensitivity.",
    "Of the background, how much was left alone.",
    "Relative volume difference: above 0 the prediction is too large, below 0 too small.",
    "Relative volume difference without its sign.",
    "Hausdorff distance: from the worst point of either boundary to the other boundary.",
    "The 95th percentile of the distances between the boundaries.",
    "Average symmetric surface distance between the boundaries.",
    "Directed boundary Dice: the Dice near each point of the reference's boundary, averaged.",
    "The same along the prediction's boundary.",
    "Symmetric boundary Dice: the same along both boundaries.",
];

/// Everything that a report shows; what is empty or absent leaves its section out.
#[derive(Debug, Clone, Default)]
pub struct Report<'a> {
    pub title: String,
    /// Sentences under the title.
    pub notes: Vec<String>,
    /// Names and values, in the order in which they are listed.
    pub settings: Vec<(String, String)>,
    pub records: Vec<EpochRecord>,
    pub evaluation: Option<&'a Evaluation>,
    /// The validation slices, case by case.
    pub validation: Option<Validation>,
    /// Training masks that are likely wrong.
    pub suspects: Option<Suspects>,
    /// What the run ran on, as names and values.
    pub manifest: Vec<(String, String)>,
    /// In any order; the report begins with the best by Dice.
    pub cases: Vec<CasePictures>,
}

/// The pictures of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct CasePictures {
    pub name: String,
    /// Of the whole volume, if it has one.
    pub dice: Option<f64>,
    /// From the feet to the head, each with a label and the bytes of a PNG.
    pub slices: Vec<(String, Vec<u8>)>,
}

impl CasePictures {
    /// Draws at most `most` slices, evenly spread from the first to the last, with both masks' contours. The volumes
    /// are on one grid, in any orientation; slices are counted in RAS order, from 0 at the feet.
    ///
    /// # Errors
    /// If the volumes are not on one grid.
    pub fn draw(
        name: &str,
        dice: Option<f64>,
        image: &Volume<f32>,
        reference: Option<&Volume<u8>>,
        prediction: Option<&Volume<u8>>,
        most: usize,
    ) -> Result<Self> {
        let reorientation = Reorientation::to_ras_from(&image.geometry);
        let image = reorientation.to_ras(image)?;
        let to_ras = |mask: Option<&Volume<u8>>| mask.map(|mask| reorientation.to_ras(mask)).transpose();
        let (reference, prediction) = (to_ras(reference)?, to_ras(prediction)?);
        let draw = |z: usize| {
            let mut label = format!("slice {z}");
            if let (Some(reference), Some(prediction)) = (&reference, &prediction) {
                let foreground = |mask: &Volume<u8>| mask.slice(z).iter().map(|&voxel| voxel != 0).collect::<Vec<_>>();
                match Counts::of(&foreground(prediction), &foreground(reference))?.dice() {
                    Metric::Value(dice) => label.push_str(&format!(", Dice {dice:.4}")),
                    Metric::Undefined(reason) => label.push_str(&format!(", {reason}")),
                }
            }
            let png = overlay(&image, reference.as_ref(), prediction.as_ref(), z, DISPLAY_WINDOW)?;
            Ok((label, png))
        };
        let slices = spread(image.geometry.shape[2], most).into_par_iter().map(draw).collect::<Result<_>>()?;
        Ok(CasePictures { name: name.into(), dice, slices })
    }
}

/// At most `most` of `count` indices, evenly from the first to the last; of several, one is the middle.
pub fn spread(count: usize, most: usize) -> Vec<usize> {
    match most.min(count) {
        0 => Vec::new(),
        1 => vec![count / 2],
        chosen => (0..chosen).map(|place| place * (count - 1) / (chosen - 1)).collect(),
    }
}

impl Report<'_> {
    /// Writes the report, whole or not at all.
    ///
    /// # Errors
    /// If `path` cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let html = self.html();
        write_atomically(path, |file| file.write_all(html.as_bytes()))
    }

    /// The report as a document.
    pub fn html(&self) -> String {
        let mut body = String::new();
        // Writing into a String cannot fail.
        let _ = self.body(&mut body);
        page(&self.title, &body)
    }

    fn body(&self, html: &mut String) -> std::fmt::Result {
        notes(html, &self.notes)?;
        self.tiles(html)?;
        self.pictures(html)?;
        self.metrics(html)?;
        self.curves(html)?;
        if let Some(validation) = &self.validation {
            sections::validation(html, validation)?;
        }
        self.denoising(html)?;
        if let Some(suspects) = &self.suspects {
            sections::suspects(html, suspects)?;
        }
        sections::listing(html, "settings", "Settings", &self.settings)?;
        sections::listing(html, "manifest", "What it ran on", &self.manifest)
    }

    /// The figures that people look for first.
    fn tiles(&self, html: &mut String) -> std::fmt::Result {
        let mut tiles: Vec<[String; 3]> = Vec::new();
        if let Some(evaluation) = self.evaluation.filter(|evaluation| !evaluation.cases().is_empty()) {
            let summaries = evaluation.summarize_volumes();
            for (metric, name, unit) in [("dice", "Test Dice", ""), ("hd95", "Test HD95", " mm")] {
                let summary = Metrics::NAMES.iter().position(|known| *known == metric).map(|index| &summaries[index]);
                if let Some((summary, mean)) = summary.and_then(|summary| Some((summary, summary.mean.value()?))) {
                    let of = match summary.defined {
                        1 => "of one case".into(),
                        several => format!("mean of {several} cases"),
                    };
                    tiles.push([name.into(), format!("{}{unit}", figure(mean)), of]);
                }
            }
        }
        let validated = self.records.iter().filter_map(|record| Some((record.epoch, record.val_dice?)));
        if let Some((epoch, dice)) = validated.max_by(|a, b| a.1.total_cmp(&b.1)) {
            tiles.push(["Validation Dice".into(), figure(dice), format!("best, in epoch {epoch}")]);
        }
        if let Some(last) = self.records.last() {
            tiles.push(["Training loss".into(), figure(last.train_loss), format!("in epoch {}", last.epoch)]);
            let seconds = self.records.iter().map(|record| record.seconds).sum();
            let epochs = if self.records.len() == 1 { "epoch" } else { "epochs" };
            tiles.push(["Training time".into(), duration(seconds), format!("{} {epochs}", self.records.len())]);
        }
        if tiles.is_empty() {
            return Ok(());
        }
        writeln!(html, "<dl class=\"tiles\">")?;
        for [name, value, detail] in tiles {
            writeln!(
                html,
                "<div><dt>{name}</dt><dd class=\"value\">{value}</dd><dd class=\"detail\">{detail}</dd></div>"
            )?;
        }
        writeln!(html, "</dl>")
    }

    fn pictures(&self, html: &mut String) -> std::fmt::Result {
        if self.cases.is_empty() {
            return Ok(());
        }
        writeln!(html, "<section aria-labelledby=\"pictures\">\n<h2 id=\"pictures\">Pictures</h2>")?;
        sections::cases(html, self.cases.iter().collect())?;
        writeln!(html, "</section>")
    }

    fn curves(&self, html: &mut String) -> std::fmt::Result {
        if self.records.is_empty() {
            return Ok(());
        }
        writeln!(html, "<section aria-labelledby=\"curves\">\n<h2 id=\"curves\">Curves</h2>\n<div class=\"charts\">")?;
        charts_html(html, "chart", &charts(&self.records))?;
        writeln!(html, "</div>\n<details><summary>All epochs in numbers</summary>")?;
        epochs_html(html, &self.records)?;
        writeln!(html, "</details>\n</section>")
    }

    /// What denoising left out, if it did.
    fn denoising(&self, html: &mut String) -> std::fmt::Result {
        let charts = denoising_charts(&self.records);
        let Some(last) = self.records.last().filter(|_| !charts.is_empty()) else { return Ok(()) };
        writeln!(html, "<section aria-labelledby=\"denoising\">\n<h2 id=\"denoising\">What denoising left out</h2>")?;
        writeln!(
            html,
            "<p>Training went on without masks that seemed wrong: {} of them in epoch {}.</p>",
            last.removed_total, last.epoch
        )?;
        writeln!(html, "<div class=\"charts\">")?;
        charts_html(html, "denoising", &charts)?;
        writeln!(html, "</div>\n</section>")
    }

    fn metrics(&self, html: &mut String) -> std::fmt::Result {
        let Some(evaluation) = self.evaluation else { return Ok(()) };
        writeln!(html, "<section aria-labelledby=\"metrics\">\n<h2 id=\"metrics\">Metrics of each case</h2>")?;
        let cases = evaluation.cases().iter();
        let volumes = cases.clone().map(|(name, case)| (name.as_str(), case.volume.values())).collect();
        let caption = "Whole volumes; distances in millimetres. A heading sorts.";
        metrics_html(html, caption, volumes, &evaluation.summarize_volumes())?;
        let means = |slices: &[Metrics]| Tally::of_each(slices).map(|tally| tally.mean());
        let slices = cases.map(|(name, case)| (name.as_str(), means(&case.slices.per_slice))).collect();
        writeln!(html, "<details><summary>Slice by slice</summary>")?;
        let caption = "Means over the axial slices of each case; distances in pixels. A heading sorts.";
        metrics_html(html, caption, slices, &evaluation.summarize_slices())?;
        writeln!(html, "</details>\n<details><summary>What the numbers mean</summary>\n<dl class=\"meaning\">")?;
        for (name, meaning) in Metrics::NAMES.iter().zip(MEANINGS) {
            writeln!(html, "<dt>{name}</dt><dd>{meaning}</dd>")?;
        }
        writeln!(
            html,
            "</dl>\n<p>A dash stands where a figure is undefined, for example a distance to an empty mask; \
             it is no part of the means.</p>\n</details>\n</section>"
        )
    }
}

/// A page with this title (as text) and body (as HTML).
pub(super) fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{}{}</style>\n\
         <noscript><style>.picture img[hidden] {{ display: block; }} .slider {{ display: none; }}</style></noscript>\n\
         </head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n<script>\n{}</script>\n</body>\n</html>\n",
        palette_css(),
        include_str!("report.css"),
        include_str!("report.js")
    )
}

/// Sentences under the title.
pub(super) fn notes(html: &mut String, notes: &[String]) -> std::fmt::Result {
    if notes.is_empty() {
        return Ok(());
    }
    let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    writeln!(html, "<ul class=\"notes\">\n{items}</ul>")
}

/// Charts, each with an id that begins with `id`.
pub(super) fn charts_html(html: &mut String, id: &str, charts: &[LineChart]) -> std::fmt::Result {
    charts.iter().enumerate().try_for_each(|(number, chart)| {
        writeln!(html, "<div class=\"chart-card\">{}</div>", chart.svg(&format!("{id}-{number}")))
    })
}

/// The palette's custom properties: dark tones on light paper, bright ones on a dark screen.
fn palette_css() -> String {
    let properties = |tone: fn(Colour) -> [u8; 3]| {
        let property = |colour: Colour| format!("{}: {};", colour.property, hexadecimal(tone(colour)));
        CURVES.map(property).join(" ")
    };
    format!(
        ":root {{ {} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {} }} }}\n",
        properties(|colour| colour.dark),
        properties(|colour| colour.bright)
    )
}

fn series(records: &[EpochRecord], name: &str, colour: Colour, value: fn(&EpochRecord) -> Option<f64>) -> Series {
    Series { name: name.into(), colour, values: records.iter().map(value).collect() }
}

fn chart(records: &[EpochRecord], title: &str, from_zero: bool, series: Vec<Series>) -> LineChart {
    LineChart { title: title.into(), epochs: records.iter().map(|record| record.epoch).collect(), series, from_zero }
}

fn charts(records: &[EpochRecord]) -> Vec<LineChart> {
    let one = |title: &str, name: &str, value: fn(&EpochRecord) -> Option<f64>| {
        chart(records, title, true, vec![series(records, name, REFERENCE, value)])
    };
    let mut charts = vec![one("Training loss", "loss", |r| Some(r.train_loss))];
    if records.iter().any(|record| record.val_dice.is_some() || record.val_iou.is_some()) {
        let dice = series(records, "Dice", REFERENCE, |r| r.val_dice);
        let iou = series(records, "IoU", PREDICTION, |r| r.val_iou);
        charts.push(chart(records, "Validation", false, vec![dice, iou]));
    }
    charts.push(one("Learning rate", "learning rate", |r| Some(r.learning_rate)));
    charts.push(one("Training speed, images per second", "images per second", |r| Some(r.images_per_s)));
    charts
}

/// What a run left out, how noisy it believes the masks, and how well that fits the truth where that is known.
fn denoising_charts(records: &[EpochRecord]) -> Vec<LineChart> {
    let mut charts = Vec::new();
    if records.iter().any(|record| record.removed_total > 0) {
        let removed = series(records, "removed masks", REFERENCE, |r| Some(r.removed_total as f64));
        charts.push(chart(records, "Masks left out in all", true, vec![removed]));
    }
    if records.iter().any(|record| record.estimated_noise.is_some()) {
        let proportion = series(records, "proportion", REFERENCE, |r| r.estimated_noise.map(|noise| noise.proportion));
        let overlap = series(records, "overlap", PREDICTION, |r| r.estimated_noise.map(|noise| noise.overlap));
        charts.push(chart(records, "Estimated noise", true, vec![proportion, overlap]));
    }
    if records.iter().any(|record| record.detection.is_some()) {
        let of = |name, colour, value| series(records, name, colour, value);
        let auroc = of("AUROC", CURVES[0], |r| r.detection.and_then(|detection| detection.auroc));
        let precision = of("precision", CURVES[1], |r| r.detection.and_then(|detection| detection.precision));
        let recall = of("recall", CURVES[2], |r| r.detection.and_then(|detection| detection.recall));
        charts.push(chart(records, "Against the truth", true, vec![auroc, precision, recall]));
    }
    charts
}

pub(super) fn case_html(html: &mut String, case: &CasePictures, badge: &str) -> std::fmt::Result {
    let name = escape(&case.name);
    writeln!(html, "<article class=\"case\">\n<header><h3>{name}</h3>")?;
    if !badge.is_empty() {
        writeln!(html, "<span class=\"badge\">{badge}</span>")?;
    }
    if let Some(dice) = case.dice {
        writeln!(html, "<span class=\"dice\">Dice {dice:.4}</span>")?;
    }
    writeln!(html, "</header>\n<div class=\"picture\">")?;
    let middle = case.slices.len() / 2;
    for (place, (label, png)) in case.slices.iter().enumerate() {
        let (label, hidden) = (escape(label), if place == middle { "" } else { " hidden" });
        let data = base64(png);
        writeln!(
            html,
            "<img alt=\"{name}, {label}\" data-label=\"{label}\" src=\"data:image/png;base64,{data}\"{hidden}>"
        )?;
    }
    writeln!(
        html,
        "<span class=\"side right\" aria-hidden=\"true\">R</span><span class=\"side left\" aria-hidden=\"true\">L</span></div>"
    )?;
    if let Some((label, _)) = case.slices.get(middle) {
        let last = case.slices.len() - 1;
        writeln!(
            html,
            "<div class=\"slider\"><input type=\"range\" min=\"0\" max=\"{last}\" value=\"{middle}\" \
             aria-label=\"Slice of {name}\"><output>{}</output></div>",
            escape(label)
        )?;
    }
    writeln!(html, "</article>")
}

fn epochs_html(html: &mut String, records: &[EpochRecord]) -> std::fmt::Result {
    let optional = |value: Option<f64>| value.map_or("\u{2013}".to_string(), figure);
    let columns = [
        "epoch",
        "train_loss",
        "val_dice",
        "val_iou",
        "learning_rate",
        "removed",
        "removed_total",
        "images_per_s",
        "seconds",
    ];
    let headings: String = columns.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    writeln!(html, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"All epochs\">\n<table>")?;
    writeln!(html, "<thead><tr>{headings}</tr></thead>\n<tbody>")?;
    for record in records {
        let cells = [
            figure(record.train_loss),
            optional(record.val_dice),
            optional(record.val_iou),
            figure(record.learning_rate),
            record.removed.to_string(),
            record.removed_total.to_string(),
            figure(record.images_per_s),
            figure(record.seconds),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        writeln!(html, "<tr><th scope=\"row\">{}</th>{cells}</tr>", record.epoch)?;
    }
    writeln!(html, "</tbody>\n</table>\n</div>")
}

fn metrics_html(
    html: &mut String,
    caption: &str,
    rows: Vec<(&str, [Metric; Metrics::COUNT])>,
    summaries: &[Summary; Metrics::COUNT],
) -> std::fmt::Result {
    let heading = |name: &str, kind: &str, meaning: &str| {
        format!(
            "<th scope=\"col\" aria-sort=\"none\" data-kind=\"{kind}\"><button type=\"button\" title=\"{}\">{name}</button></th>",
            escape(meaning)
        )
    };
    writeln!(html, "<p class=\"faint\">{caption}</p>")?;
    writeln!(html, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">")?;
    writeln!(html, "<table class=\"sortable\">\n<thead><tr>{}", heading("case", "text", ""))?;
    for (name, meaning) in Metrics::NAMES.iter().zip(MEANINGS) {
        writeln!(html, "{}", heading(name, "number", meaning))?;
    }
    writeln!(html, "</tr></thead>\n<tbody>")?;
    for (name, values) in &rows {
        let name = escape(name);
        write!(html, "<tr><th scope=\"row\" data-value=\"{name}\">{name}</th>")?;
        for value in values {
            match value {
                Metric::Value(value) => write!(html, "<td data-value=\"{value}\">{value:.4}</td>")?,
                Metric::Undefined(reason) => {
                    write!(html, "<td><abbr title=\"{}\">\u{2013}</abbr></td>", escape(reason))?;
                }
            }
        }
        writeln!(html, "</tr>")?;
    }
    if rows.len() < 2 {
        return writeln!(html, "</tbody>\n</table>\n</div>");
    }
    writeln!(html, "</tbody>\n<tfoot>")?;
    let mut summary = |name: &str, of: fn(&Summary) -> Option<f64>| {
        let cell = |summary| of(summary).map_or("\u{2013}".to_string(), |value| format!("{value:.4}"));
        let cells: String = summaries.iter().map(|summary| format!("<td>{}</td>", cell(summary))).collect();
        writeln!(html, "<tr><th scope=\"row\">{name}</th>{cells}</tr>")
    };
    summary("mean", |summary| summary.mean.value())?;
    summary("median", |summary| summary.median.value())?;
    summary("mean, 95% from", |summary| summary.interval_95.map(|[low, _]| low))?;
    summary("mean, 95% to", |summary| summary.interval_95.map(|[_, high]| high))?;
    writeln!(html, "</tfoot>\n</table>\n</div>")
}

/// `2 min 31 s`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{} s", figure(seconds)),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// RFC 4648, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, place| number << 8 | usize::from(chunk.get(place).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = ALPHABET[number >> (18 - 6 * place) & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_vectors_of_rfc_4648() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in vectors {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn slices_spread_from_the_first_to_the_last() {
        assert_eq!(spread(32, 5), [0, 7, 15, 23, 31]);
        assert_eq!(spread(3, 10), [0, 1, 2]);
        assert_eq!(spread(9, 1), [4]);
        assert_eq!(spread(0, 4), [] as [usize; 0]);
    }
}
