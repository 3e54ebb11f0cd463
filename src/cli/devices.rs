//! `devices`: what the program can run on.

use super::device::{self, DeviceName, PrecisionName};
use super::output;
use crate::device::cuda::CudaDevice;
use crate::device::emulator;
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
    let mut rows = vec![row(
        DeviceName::Cpu,
        device::open(DeviceName::Cpu, PrecisionName::Auto, None).map(|device| device.name()),
    )];
    // GPUs before the emulator: a process uses one of the two, whichever it opens first.
    let gpus = CudaDevice::count().unwrap_or(0);
    for ordinal in 0..gpus.max(1) {
        let name = DeviceName::Cuda(ordinal);
        rows.push(row(name, device::open(name, PrecisionName::Auto, None).map(|device| device.name())));
    }
    let emulated = match emulator::LIBRARY.is_empty() {
        true => Err(device::unavailable(DeviceName::Emulator, "not in this build, which found no C++ compiler")),
        false => Ok("the CUDA kernels run by the CPU: slow, for tests".to_owned()),
    };
    rows.push(row(DeviceName::Emulator, emulated));
    if args.json {
        return output::print_json(&rows);
    }
    let available = |row: &Row| if row.available { "yes" } else { "no" }.to_owned();
    let cells = rows.iter().map(|row| vec![row.device.clone(), available(row), row.description.clone()]);
    output::print(&output::table(&["device", "available", ""], &cells.collect::<Vec<_>>()))
}

fn row(name: DeviceName, found: Result<String>) -> Row {
    let (available, description) = match found {
        Ok(description) => (true, description),
        Err(Error::Device { message, .. }) => (false, message),
        Err(error) => (false, error.to_string()),
    };
    Row { device: name.to_string(), available, description }
}
