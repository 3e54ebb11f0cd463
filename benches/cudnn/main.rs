//! Every 3x3, 1x1 and transposed convolution of RAR-U-Net's training step beside cuDNN's, in one process: forward,
//! input gradient, weight gradient, each alone, as a plain convolution, on inputs that come from memory.
//!
//! `cargo bench --bench cudnn [-- --json FILE] [--seconds SECONDS]`: the largest of a step come first, and after so many
//! seconds no more are begun. `RARUNET_TEST_DEVICE` names the GPU (`cuda:0` unless set),
//! `RARUNET_TEST_PRECISION` the precision (bf16 and then fp16 unless set), `RARUNET_CUDNN_LIBRARY` the library. On the
//! emulator this crate's kernels are run alone, at a tiny size.

mod case;
mod layout;
mod library;
mod measure;
mod report;
mod timer;

use case::{Case, Values};
use library::Cudnn;
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::kernels::HAVE_IMAGES;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::model::PAPER_WIDTHS;
use report::{Report, Row};
use std::time::{Duration, Instant};
use timer::Timer;

/// Bytes that the sets of a convolution have together, several times what a cache has; and how many sets there are.
const ALL_BYTES: u64 = 256 << 20;
const SETS: std::ops::RangeInclusive<u64> = 3..=64;
/// Above this norm of the difference over the norm, the two did not compute the same.
const SAME: f64 = 0.03;

/// How much is measured.
struct Size {
    widths: [usize; 5],
    batch: usize,
    size: usize,
    repeats: usize,
    /// Tensors that are used in turn.
    sets: fn(u64) -> usize,
}

const GPU: Size = Size {
    widths: PAPER_WIDTHS,
    batch: 8,
    size: 256,
    repeats: 5,
    sets: |bytes| (ALL_BYTES / bytes).clamp(*SETS.start(), *SETS.end()) as usize,
};
const EMULATOR: Size = Size { widths: [8; 5], batch: 1, size: 16, repeats: 1, sets: |_| 2 };

fn is_past(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

/// Measures all convolutions in one precision; None if cuDNN is needed and not there.
fn measure(name: &str, precision: Precision, size: &Size, end: Option<Instant>) -> Result<Option<Report>, String> {
    let started = Instant::now();
    let text = |error: rarunet_cuda::Error| error.to_string();
    let mut device = match name.strip_prefix("cuda:") {
        Some(number) => CudaDevice::open(number.parse().map_err(|_| format!("{name} is no GPU"))?, Some(precision)),
        None => CudaDevice::emulator(Some(precision)),
    }
    .map_err(text)?;
    let emulated = name == "emulator";
    let stream = device.stream().clone();
    let wanted = !emulated || std::env::var_os("RARUNET_CUDNN_LIBRARY").is_some();
    let cudnn = match wanted.then(|| Cudnn::open(&stream)) {
        Some(Err(error)) => {
            println!("cuDNN is not there: {error}");
            return Ok(None);
        }
        opened => opened.transpose()?,
    };
    let timer = Timer::new(&stream, size.repeats)?;
    let ceilings = if emulated { None } else { Some(measure::ceilings(cudnn.as_ref(), &timer, precision)?) };
    let version = cudnn.as_ref().map(Cudnn::version);
    let mut report = Report::new(device.name(), precision, version, ceilings);
    print!("{}", report.head());
    let cases = Case::all(size.widths, size.batch, size.size).map_err(text)?;
    let number = cases.len();
    for (case, count) in cases {
        if is_past(end) {
            break;
        }
        let sets = (size.sets)(case.bytes(precision));
        let mut row = Row::new(&case, count, precision, sets);
        let values = Values::new(&case);
        match measure::ours(&mut device, &timer, &case, &values, sets) {
            Ok(ours) => {
                row.ours_s = Some(ours.seconds);
                let theirs =
                    cudnn.as_ref().map(|cudnn| measure::theirs(cudnn, &timer, &case, &values, precision, sets));
                match theirs {
                    Some(Ok(theirs)) => row.compare(&ours.result, &theirs, SAME),
                    Some(Err(error)) => row.note(error),
                    None => {}
                }
            }
            Err(error) => row.note(error.to_string()),
        }
        row.finish(&report);
        print!("{}", row.text());
        report.rows.push(row);
    }
    report.missing = number - report.rows.len();
    report.seconds = started.elapsed().as_secs_f64();
    println!("{}", report.summary());
    Ok(Some(report))
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().position(|one| one == name).map(|index| arguments.get(index + 1));
    let json = after("--json");
    let end = match after("--seconds").map(|text| text.and_then(|text| text.parse().ok())) {
        Some(Some(seconds)) => Some(Instant::now() + Duration::from_secs(seconds)),
        Some(None) => return Err("--seconds needs a number".into()),
        None => None,
    };
    let name = match std::env::var("RARUNET_TEST_DEVICE") {
        Ok(name) => name,
        Err(_) if HAVE_IMAGES && CudaDevice::count().is_ok_and(|count| count > 0) => "cuda:0".into(),
        Err(_) => {
            println!("no GPU to compare with cuDNN on");
            return Ok(());
        }
    };
    let emulated = name == "emulator";
    let wanted = std::env::var("RARUNET_TEST_PRECISION").ok();
    let all = if emulated { vec![Precision::Bf16] } else { vec![Precision::Bf16, Precision::Fp16] };
    let precisions = match wanted {
        Some(wanted) => Precision::ALL.into_iter().filter(|precision| precision.name() == wanted).collect(),
        None => all,
    };
    let mut reports = Vec::new();
    for precision in precisions {
        if is_past(end) {
            println!("no time for {precision}");
            break;
        }
        let Some(report) = measure(&name, precision, if emulated { &EMULATOR } else { &GPU }, end)? else { break };
        reports.push(report);
        if let Some(path) = json {
            let path = path.ok_or("--json needs a file")?;
            let text = serde_json::to_string_pretty(&reports).map_err(|error| error.to_string())?;
            std::fs::write(path, text).map_err(|error| format!("{path}: {error}"))?;
        }
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
