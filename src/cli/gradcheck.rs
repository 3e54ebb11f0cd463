//! `gradcheck`: every op against central differences.

use super::device::{self, DeviceName, PrecisionName};
use super::{flags, output};
use crate::device::cpu::{CpuDevice, InstructionSet, Real};
use crate::device::{Device, Precision};
use crate::gradcheck::{self, Check, TOLERANCE_F64};
use crate::{Error, Result, ops};
use serde::Serialize;

/// What a precision and f64 agree to: in f32, sums of a few hundred terms, each rounded to 6e-8; else as the norm of the
/// difference over the norm, inputs and results being rounded.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F64 => TOLERANCE_F64,
        Precision::F32 => 1e-4,
        Precision::Tf32 | Precision::Fp16 => 2e-3,
        Precision::Bf16 => 1e-2,
    }
}

/// Check each op's outputs and gradients against f64
///
/// In f64 and f32 against central differences in f64; in tf32, bf16 and fp16, whose rounding differences would not
/// survive, against the gradients of the CPU in f64 for the same rounded inputs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda gradcheck --op convolution")]
pub struct Args {
    #[command(flatten)]
    device: device::DeviceArgs,
    /// The one op to check
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    /// What the device is in words.
    device_name: String,
    precision: Precision,
    checks: Vec<Check>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(op) = &args.op {
        let mut names: Vec<&str> = ops::cases().iter().map(|case| case.op).collect();
        names.sort_unstable();
        names.dedup();
        flags::known("op", op, names)?;
    }
    let (name, threads) = (args.device.device.resolve(), args.device.threads);
    let report = match (args.device.precision, name) {
        (PrecisionName::Auto | PrecisionName::Exactly(Precision::F64), DeviceName::Cpu) => {
            check::<f64>(args, || Ok(Box::new(CpuDevice::with(threads, InstructionSet::best())?)))
        }
        (precision, _) => check::<f32>(args, || device::open(name, precision, threads)),
    }?;
    match args.json {
        true => output::print_json(&report)?,
        false => output::print(&table(&report))?,
    }
    verdict(&report.checks)
}

/// Fails if a check did.
fn verdict(checks: &[Check]) -> Result<()> {
    let failed: Vec<&str> = checks.iter().filter(|check| !check.passed).map(|check| check.op.as_str()).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "{} of {} ops differ from central differences by more than the tolerance: {}",
            failed.len(),
            checks.len(),
            failed.join(", ")
        ))),
    }
}

fn check<T: Real>(args: &Args, open: impl Fn() -> Result<Box<dyn Device<T>>>) -> Result<Report> {
    let op = args.op.as_deref();
    let cases = ops::cases().iter().filter(|case| op.is_none_or(|op| op == case.op)).count();
    let progress = output::Progress::new("gradcheck", cases, "cases");
    let device = open()?;
    let (device_name, precision) = (device.name(), device.precision());
    drop(device);
    let checks = gradcheck::run(open, op, tolerance(precision), |_| progress.advance(1))?;
    Ok(Report { device: args.device.device.resolve().to_string(), device_name, precision, checks })
}

fn table(report: &Report) -> String {
    let rows = report.checks.iter().map(|check| {
        vec![
            check.op.clone(),
            check.cases.to_string(),
            format!("{:.1e}", check.max_relative_error),
            format!("{:.0e}", check.tolerance),
            if check.passed { "passed" } else { "FAILED" }.to_owned(),
        ]
    });
    let header = ["op", "cases", "relative error", "tolerance", "result"];
    let table = output::table(&header, &rows.collect::<Vec<_>>());
    format!("{}, {}\n\n{table}", report.device_name, report.precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_command() {
        let check = |op: &str, passed| Check {
            op: op.to_owned(),
            cases: 1,
            max_relative_error: if passed { 0.0 } else { f64::INFINITY },
            tolerance: 1e-6,
            passed,
        };
        assert!(verdict(&[check("relu", true), check("add", true)]).is_ok());
        let message = verdict(&[check("relu", true), check("add", false)]).unwrap_err().to_string();
        assert!(message.starts_with("1 of 2 ops") && message.ends_with(": add"), "{message}");
    }
}
