//! `export`: weights for other programs.

use super::output;
use crate::data::file::write_atomically;
use crate::model::weights::WeightsFile;
use crate::onnx::{INPUT, OUTPUT, onnx};
use crate::{Error, Result};
use std::io::Write;
use std::path::PathBuf;

/// Write a trained network as ONNX, for other runtimes
///
/// Batch, height and width stay open; height and width are multiples of 16. The input is what the network sees of
/// a slice: (clamp((HU - low) / (high - low), 0, 1) - shift) * scale, with low, high, shift and scale in the
/// file's metadata entry "window". The output is the foreground's probability.
///
/// PyTorch needs no export: best.safetensors has PyTorch's names and shapes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda export --weights run/best.safetensors --onnx rar-unet.onnx")]
pub struct Args {
    /// Weights that train wrote
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The ONNX file to write
    #[arg(long, value_name = "FILE")]
    onnx: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.onnx.exists() && !args.overwrite {
        return Err(Error::file(&args.onnx, "exists already: choose another --onnx, or give --overwrite"));
    }
    let bytes = std::fs::read(&args.weights).map_err(Error::io(&args.weights))?;
    let weights = WeightsFile::new(&args.weights, &bytes)?;
    let name = weights.model()?.architecture.name;
    let exported = onnx(&weights)?;
    write_atomically(&args.onnx, |file| file.write_all(&exported))?;
    let size = exported.len() as f64 / f64::from(1 << 20);
    output::print(&format!(
        "{}: {name}, {size:.1} MiB; {INPUT} (batch, 1, height, width) to {OUTPUT}\n",
        args.onnx.display()
    ))
}
