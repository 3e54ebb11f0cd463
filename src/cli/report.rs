//! `report`: what a run left, as a page; several runs side by side.

use super::output;
use crate::metrics::Evaluation;
use crate::report::comparison::Comparison;
use crate::report::{CasePictures, Report, RunFiles};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Write a run's report anew, or compare several runs
///
/// Of one run: report.html in its folder, from the files that training left there. Of several: one page with all
/// of them side by side. The page is one file and asks nothing of any network.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda report run other-run --out comparison.html")]
pub struct Args {
    /// Folders of runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page to write; needed for several runs
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut runs: Vec<RunFiles> = args.runs.iter().map(|path| RunFiles::read(path)).collect::<Result<_>>()?;
    let path = match (&args.out, &args.runs[..]) {
        (Some(path), _) => path.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => return Err(Error::Invalid("where to? give --out FILE for the page of several runs".into())),
    };
    match (runs.pop(), runs.is_empty()) {
        (Some(run), true) => run.into_report(Vec::new()).write(&path)?,
        (last, _) => {
            runs.extend(last);
            Comparison::new(runs).write(&path)?;
        }
    }
    output::print(&format!("{}\n", path.display()))
}

/// Writes `report.html` into `out`: the run in `run`, and test cases with their metrics.
///
/// # Errors
/// If the run's files cannot be read, or the report cannot be written.
pub fn write(
    run: &Path,
    out: &Path,
    notes: Vec<String>,
    evaluation: &Evaluation,
    cases: Vec<CasePictures>,
) -> Result<()> {
    let report = Report { evaluation: Some(evaluation), cases, ..RunFiles::read(run)?.into_report(notes) };
    report.write(&out.join("report.html"))
}
