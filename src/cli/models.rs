//! `models`: the networks there are.

use super::{flags, output};
use crate::Result;
use crate::model::{ARCHITECTURES, Model, PAPER_WIDTHS};
use serde::Serialize;

/// List the networks: name, parameters, widths, and where the paper has them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda models --json")]
pub struct Args {
    /// Channels of the five levels
    #[arg(long, value_name = "LIST", value_parser = flags::widths, default_value = "32,64,128,256,512")]
    widths: [usize; 5],
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Numbers that are trained.
    parameters: usize,
    widths: [usize; 5],
    source: &'static str,
}

pub fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    for architecture in ARCHITECTURES {
        let model = Model::new(architecture.name, args.widths)?;
        let Model { widths, .. } = model;
        // The counts are the paper's at the paper's widths alone.
        let source = if widths == PAPER_WIDTHS { architecture.source } else { "other widths than the paper's" };
        rows.push(Row { name: architecture.name, parameters: model.parameter_count(), widths, source });
    }
    if args.json {
        return output::print_json(&rows);
    }
    let cells = rows.iter().map(|row| {
        vec![row.name.to_owned(), row.parameters.to_string(), flags::widths_text(row.widths), row.source.to_owned()]
    });
    output::print(&output::table(&["model", "parameters", "widths", "source"], &cells.collect::<Vec<_>>()))
}
