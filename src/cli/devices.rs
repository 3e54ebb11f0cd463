//! `devices`: what the program can run on.

use super::device::{self, DeviceName};
use super::output;
use crate::{Error, Result};
use serde::Serialize;

/// List the devices this program can run on, and why not on the others
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda devices")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    /// What `--device` takes.
    device: String,
    available: bool,
    /// What it is, or why it cannot be used.
    description: String,
}

pub fn run(args: &Args) -> Result<()> {
    let rows = [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Emulator].map(row);
    if args.json {
        return output::print_json(&rows);
    }
    let available = |row: &Row| if row.available { "yes" } else { "no" }.to_owned();
    let cells = rows.iter().map(|row| vec![row.device.clone(), available(row), row.description.clone()]);
    output::print(&output::table(&["device", "available", ""], &cells.collect::<Vec<_>>()))
}

fn row(name: DeviceName) -> Row {
    let (available, description) = match device::open(name, None) {
        Ok(device) => (true, device.name()),
        Err(Error::Device { message, .. }) => (false, message),
        Err(error) => (false, error.to_string()),
    };
    Row { device: name.to_string(), available, description }
}
