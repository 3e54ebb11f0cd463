//! Sections that several pages have: tables whose headings sort, what validation found, suspects, lists of names
//! and values.

use super::html::{base64, case_html};
use super::palette::{PREDICTION, REFERENCE, hexadecimal};
use super::validation::{ValidatedCase, Validation};
use super::{CasePictures, Suspects, escape};
use crate::metrics::Metric;
use crate::train::suspects::Suspect;
use std::fmt::Write as _;

/// A table's cell.
pub(super) enum Cell {
    Text(String),
    /// A number, and how it is printed.
    Number(f64, String),
    /// Nothing, and why.
    Missing(String),
}

impl Cell {
    /// A metric to four decimals.
    pub fn metric(metric: Metric) -> Self {
        match metric {
            Metric::Value(value) => Cell::Number(value, format!("{value:.4}")),
            Metric::Undefined(reason) => Cell::Missing(reason.to_owned()),
        }
    }

    /// A number if there is one.
    pub fn optional(value: Option<f64>, print: fn(f64) -> String) -> Self {
        value.map_or(Cell::Missing("not measured".to_owned()), |value| Cell::Number(value, print(value)))
    }

    /// A whole number.
    pub fn whole(value: usize) -> Self {
        Cell::Number(value as f64, value.to_string())
    }
}

/// A table whose headings (a name and what it means) sort; the first cell of each row is its heading.
pub(super) fn sortable(
    html: &mut String,
    caption: &str,
    columns: &[(&str, &str)],
    rows: &[Vec<Cell>],
) -> std::fmt::Result {
    let caption = escape(caption);
    writeln!(html, "<p class=\"faint\">{caption} A heading sorts.</p>")?;
    writeln!(html, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">")?;
    write!(html, "<table class=\"sortable\">\n<thead><tr>")?;
    for (place, (name, meaning)) in columns.iter().enumerate() {
        let is_number = rows.iter().all(|row| !matches!(row[place], Cell::Text(_)));
        let (kind, name, meaning) = (if is_number { "number" } else { "text" }, escape(name), escape(meaning));
        write!(
            html,
            "<th scope=\"col\" aria-sort=\"none\" data-kind=\"{kind}\"><button type=\"button\" title=\"{meaning}\">{name}</button></th>"
        )?;
    }
    writeln!(html, "</tr></thead>\n<tbody>")?;
    for row in rows {
        html.push_str("<tr>");
        for (place, cell) in row.iter().enumerate() {
            let (open, close) = if place == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
            match cell {
                Cell::Text(text) => {
                    let text = escape(text);
                    write!(html, "<{open} data-value=\"{text}\">{text}</{close}>")?;
                }
                Cell::Number(value, text) => write!(html, "<{open} data-value=\"{value}\">{}</{close}>", escape(text))?,
                Cell::Missing(reason) => {
                    write!(html, "<{open}><abbr title=\"{}\">\u{2013}</abbr></{close}>", escape(reason))?;
                }
            }
        }
        html.push_str("</tr>\n");
    }
    writeln!(html, "</tbody>\n</table>\n</div>")
}

/// The validation slices, case by case, in numbers.
pub(super) fn validation(html: &mut String, validation: &Validation) -> std::fmt::Result {
    writeln!(html, "<section aria-labelledby=\"validation\">\n<h2 id=\"validation\">Validation, case by case</h2>")?;
    let columns = [
        ("case", "The scan that the slices are of."),
        ("slices", "Slices of it that were held out to validate."),
        ("dice", "Twice the overlap over the sum of both masks."),
        ("iou", "The overlap over the union of both masks."),
        ("precision", "Of what was predicted, how much is in the reference."),
        ("recall", "Of the reference, how much was predicted."),
        ("worst slice", "The lowest Dice of a slice."),
    ];
    let row = |case: &ValidatedCase| {
        let counts = case.counts();
        let worst = case.slices.iter().filter_map(|slice| slice.counts.dice().value()).min_by(f64::total_cmp);
        vec![
            Cell::Text(case.name.clone()),
            Cell::whole(case.slices.len()),
            Cell::metric(counts.dice()),
            Cell::metric(counts.iou()),
            Cell::metric(counts.precision()),
            Cell::metric(counts.recall()),
            Cell::optional(worst, |dice| format!("{dice:.4}")),
        ]
    };
    let rows: Vec<Vec<Cell>> = validation.cases.iter().map(row).collect();
    let caption = format!("Over all pixels of a case\u{2019}s validation slices, as in epoch {}.", validation.epoch);
    sortable(html, &caption, &columns, &rows)?;
    let pictures: Vec<&CasePictures> = validation.cases.iter().filter_map(|case| case.pictures.as_ref()).collect();
    if !pictures.is_empty() {
        cases(html, pictures)?;
    }
    writeln!(html, "</section>")
}

/// How many suspects the table has.
const LISTED: usize = 200;

/// The masks that are likely wrong.
pub(super) fn suspects(html: &mut String, suspects: &Suspects) -> std::fmt::Result {
    writeln!(html, "<section aria-labelledby=\"suspects\">\n<h2 id=\"suspects\">Masks to look at</h2>")?;
    writeln!(
        html,
        "<p>Training masks, the most likely wrong first: those whose outline lies farthest from the one that the network \
         predicts. Correct them, or leave them out, and train again.</p>"
    )?;
    if !suspects.pictures.is_empty() {
        writeln!(html, "<div class=\"gallery\">")?;
        for (label, png) in &suspects.pictures {
            let label = escape(label);
            writeln!(
                html,
                "<figure><img alt=\"{label}\" src=\"data:image/png;base64,{}\"><figcaption>{label}</figcaption></figure>",
                base64(png)
            )?;
        }
        writeln!(html, "</div>")?;
    }
    let columns = [
        ("case", ""),
        ("slice", "axial, from 0 at the feet"),
        ("score", "mean distance between the mask's outline and the predicted one, in pixels the network sees"),
        ("dice", "of the mask with the prediction"),
        ("pixels", "of the mask"),
        ("predicted pixels", ""),
        ("times left out", "epochs in which the mask was left out"),
    ];
    let row = |mask: &Suspect| {
        vec![
            Cell::Text(mask.case.clone()),
            Cell::whole(mask.slice),
            Cell::Number(mask.score, format!("{:.2}", mask.score)),
            Cell::Number(mask.dice, format!("{:.4}", mask.dice)),
            Cell::whole(mask.pixels as usize),
            Cell::whole(mask.predicted_pixels as usize),
            Cell::whole(mask.times_left_out as usize),
        ]
    };
    let rows: Vec<Vec<Cell>> = suspects.masks.iter().take(LISTED).map(row).collect();
    let caption = match suspects.masks.len() > LISTED {
        true => format!("The first {LISTED} of {}; suspects.csv has all.", suspects.masks.len()),
        false => format!("{} masks, worst first.", suspects.masks.len()),
    };
    sortable(html, &caption, &columns, &rows)?;
    writeln!(html, "</section>")
}

/// Names and values, as a section; nothing for none.
pub(super) fn listing(html: &mut String, id: &str, heading: &str, values: &[(String, String)]) -> std::fmt::Result {
    if values.is_empty() {
        return Ok(());
    }
    writeln!(
        html,
        "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n<table class=\"settings\">\n<tbody>"
    )?;
    for (name, value) in values {
        let value = if value.is_empty() { "\u{2013}" } else { value };
        writeln!(html, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value))?;
    }
    writeln!(html, "</tbody>\n</table>\n</section>")
}

/// Cases with pictures under a legend, the best and the worst marked.
pub(super) fn cases(html: &mut String, mut cases: Vec<&CasePictures>) -> std::fmt::Result {
    writeln!(
        html,
        "<p>Axial slices, seen from the feet: the patient\u{2019}s right (R) is on the left, the front is up.</p>"
    )?;
    writeln!(html, "<ul class=\"legend\">")?;
    for (colour, width, text) in [
        (REFERENCE, 4.0, "reference; tinted where the prediction misses it"),
        (PREDICTION, 2.0, "prediction; tinted where the reference does not have it"),
    ] {
        let colour = hexadecimal(colour.bright);
        writeln!(
            html,
            "<li><svg viewBox=\"0 0 40 20\" aria-hidden=\"true\"><path d=\"M0 0h40v20H0z\" fill=\"#000\"/>\
             <path d=\"M4 7h32v13H4z\" fill=\"{colour}\" fill-opacity=\"0.3\"/>\
             <path d=\"M4 7h32\" stroke=\"{colour}\" stroke-width=\"{width}\"/></svg>{text}</li>"
        )?;
    }
    writeln!(html, "</ul>\n<div class=\"cases\">")?;
    // Best first; those without a Dice last.
    cases.sort_by(|a, b| b.dice.unwrap_or(f64::NEG_INFINITY).total_cmp(&a.dice.unwrap_or(f64::NEG_INFINITY)));
    let known = cases.iter().filter(|case| case.dice.is_some()).count();
    for (place, case) in cases.into_iter().enumerate() {
        let badge = match place {
            0 if known > 1 => "best",
            _ if known > 1 && place + 1 == known => "worst",
            _ => "",
        };
        case_html(html, case, badge)?;
    }
    writeln!(html, "</div>")
}
