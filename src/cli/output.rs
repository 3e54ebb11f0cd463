//! What the program prints: results to standard output, progress and notes to standard error.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Prints text that ends in a newline. A reader that has gone away (`| head`) has read enough.
///
/// # Errors
/// If standard output cannot be written for any other reason.
pub fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(error)),
        _ => Ok(()),
    }
}

/// Prints one JSON document. What is not a finite number is null.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Invalid(format!("JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Prints one line to standard error; a file's name cannot make it two.
pub fn note(text: &str) {
    let line: Vec<&str> = text.split(|c: char| c.is_control()).map(str::trim).filter(|part| !part.is_empty()).collect();
    // If nobody reads errors, nobody can be told.
    let _ = writeln!(io::stderr(), "{}", line.join(" "));
}

/// Lines of aligned cells, the first line being the header; columns of numbers are aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let columns: Vec<(usize, bool)> = (0..header.len())
        .map(|column| {
            let cells = || rows.iter().map(|row| row[column].as_str());
            let width = cells().chain([header[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0);
            (width, cells().all(|cell| cell == "-" || cell.parse::<f64>().is_ok()))
        })
        .collect();
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let cells = row.iter().zip(&columns).map(|(cell, &(width, number))| match number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How often progress is told in lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How far something is: a bar with the time left and the speed; lines now and then if standard error is no
/// terminal or `NO_COLOR` is set. Threads may share it.
pub struct Progress {
    what: String,
    unit: &'static str,
    bar: ProgressBar,
    /// What was done before.
    before: AtomicU64,
    plain: Option<Mutex<Instant>>,
}

impl Progress {
    /// `what` is being done (`train`), `total` times `unit` (`images`).
    pub fn new(what: impl Into<String>, total: usize, unit: &'static str) -> Self {
        let what = what.into();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let plain = no_color || !io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        let template = format!("{{msg}} {{bar:30}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("the template above is well-formed");
        bar.set_style(style.with_key(
            "per_sec",
            move |state: &indicatif::ProgressState, text: &mut dyn std::fmt::Write| {
                let _ = write!(text, "{:.1} {unit}/s", state.per_sec());
            },
        ));
        bar.set_message(what.clone());
        Progress { what, unit, bar, before: AtomicU64::new(0), plain: plain.then(|| Mutex::new(Instant::now())) }
    }

    /// `count` were done before.
    pub fn begin_at(&self, count: u64) {
        self.before.store(count, Ordering::Relaxed);
        self.bar.set_position(count);
        self.bar.reset_eta();
    }

    /// `count` more are done.
    pub fn advance(&self, count: usize) {
        self.bar.inc(count as u64);
        let Some(last) = &self.plain else { return };
        // A line that another thread is about to print is not needed twice.
        let Ok(mut last) = last.try_lock() else { return };
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if last.elapsed() >= LINE_EVERY && done < total {
            *last = Instant::now();
            let speed =
                (done - self.before.load(Ordering::Relaxed).min(done)) as f64 / self.bar.elapsed().as_secs_f64();
            let left = ((total - done) as f64 / speed).round();
            note(&format!(
                "{}: {done}/{total} {unit}, {speed:.1} {unit}/s, {left} s left",
                self.what,
                unit = self.unit
            ));
        }
    }

    /// Prints a line without disturbing the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
