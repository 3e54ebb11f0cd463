//! `gradcheck`: every op against central differences.

use super::device::{self, DeviceName, Precision};
use super::{flags, output};
use crate::device::Device;
use crate::device::cpu::{CpuDevice, InstructionSet, Real};
use crate::gradcheck::{self, Check, TOLERANCE_F64};
use crate::{Error, Result, ops};
use serde::Serialize;

/// What f32 and central differences in f64 agree to: sums of a few hundred terms, each rounded to 6e-8.
const TOLERANCE_F32: f64 = 1e-4;

/// Check each op's outputs and gradients against central differences in f64
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
        (Precision::Auto | Precision::F64, DeviceName::Cpu) => {
            check::<f64>(args, Precision::F64, TOLERANCE_F64, || {
                Ok(Box::new(CpuDevice::with(threads, InstructionSet::best())?))
            })
        }
        (Precision::F64, _) => Err(device::unavailable(name, "no f64: use --device cpu or --precision f32")),
        _ => {
            let precision = args.device.precision()?;
            check::<f32>(args, precision, TOLERANCE_F32, || device::open(name, threads))
        }
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

fn check<T: Real>(
    args: &Args,
    precision: Precision,
    tolerance: f64,
    open: impl Fn() -> Result<Box<dyn Device<T>>>,
) -> Result<Report> {
    let op = args.op.as_deref();
    let cases = ops::cases().iter().filter(|case| op.is_none_or(|op| op == case.op)).count();
    let progress = output::Progress::new("gradcheck", cases, "cases");
    let device_name = open()?.name();
    let checks = gradcheck::run(open, op, tolerance, |_| progress.advance(1))?;
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
