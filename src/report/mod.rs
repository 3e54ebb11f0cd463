//! What a run looks like: pictures of its masks, curves of its epochs, and both with all numbers in `report.html`.
//!
//! [`journal`] writes it all while a run goes, [`files`] reads a run's folder again, [`comparison`] sets several
//! runs side by side.

pub mod card;
pub mod comparison;
pub mod files;
pub mod html;
pub mod journal;
pub mod overlay;
pub mod palette;
pub mod plot;
pub mod suspects;
pub mod validation;

mod sections;

pub use files::RunFiles;
pub use html::{CasePictures, Report, spread};
pub use journal::Journal;
pub use overlay::{DISPLAY_WINDOW, montage, overlay};
pub use plot::{LineChart, Series};
pub use suspects::Suspects;
pub use validation::Validation;

/// Text as HTML and XML have it, inside elements and inside quoted attributes; characters that neither allows
/// become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            '\u{FFFE}' | '\u{FFFF}' => escaped.push(char::REPLACEMENT_CHARACTER),
            _ if character.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A number for people: four figures after the point below 1 and fewer above, powers of ten where it is very small
/// or very large.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if !(1e-3..1e6).contains(&size) => scientific(value, 2),
        _ if size < 1.0 => format!("{value:.4}"),
        _ if size < 10.0 => format!("{value:.3}"),
        _ if size < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// `1.5e-5`, without zeros that say nothing.
pub(crate) fn scientific(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => {
            format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}
