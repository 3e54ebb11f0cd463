//! `bench`: how fast a training step or inference is.

use super::{device, flags, output};
use crate::Result;
use crate::device::cpu::{CpuDevice, InstructionSet};
use crate::device::{Device, LaunchTime, Precision};
use crate::floors::Floors;
use crate::metrics::summary::quantile;
use crate::model::{Mode, Model, Network, Step};
use crate::plan::{Plan, shapes};
use crate::tensor::Shape;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Time a training step (forward, backward, Adam), or inference, on random images
///
/// Two steps warm up, the median of the others counts. On the CPU the peak memory is what the plan says: the
/// arena that holds all of a step's tensors, and the state (parameters, running statistics and, in training,
/// Adam's moments).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda bench --model unet --size 128 --batch 4 --json")]
pub struct Args {
    /// Which network; `models` lists them
    #[arg(long, value_name = "NAME", default_value = "rar-unet")]
    model: String,
    /// Channels of the five levels
    #[arg(long, value_name = "LIST", value_parser = flags::widths, default_value = "32,64,128,256,512")]
    widths: [usize; 5],
    /// Pixels along a side, a multiple of 16
    #[arg(long, value_name = "PIXELS", value_parser = flags::size, default_value = "256")]
    size: usize,
    /// Images a step
    #[arg(long, value_name = "N", value_parser = flags::batch, default_value = "8")]
    batch: usize,
    /// Steps that are timed
    #[arg(long, value_name = "N", value_parser = flags::whole(1..=1_000_000), default_value = "5")]
    steps: usize,
    #[command(flatten)]
    device: device::DeviceArgs,
    /// Time inference
    #[arg(long)]
    infer: bool,
    /// Time each op of the step by itself, too: on the CPU beside the peak of its arithmetic, on a GPU launch by launch
    /// and by the GPU's own clock
    #[arg(long, conflicts_with = "plan")]
    ops: bool,
    /// Time nothing: print what each kernel of the step moves and computes on a GPU, and the least time that takes on
    /// some GPUs (in bf16 unless --precision says otherwise; no GPU is needed)
    #[arg(long)]
    plan: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    widths: [usize; 5],
    /// Numbers that are trained.
    parameters: usize,
    device: String,
    /// What the device is in words.
    device_name: String,
    precision: Precision,
    infer: bool,
    size: usize,
    batch: usize,
    steps: usize,
    /// Seconds of a step.
    median_s: f64,
    images_per_s: f64,
    #[serde(rename = "peak_mem_GiB")]
    peak_mem_gib: f64,
    /// Floating-point operations of a step, in 10^9.
    gflop_per_step: f64,
    gflop_per_s: f64,
    /// The CPU's peak, measured; with --ops.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_gflop_per_s: Option<f64>,
    /// With --ops, the slowest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ops: Vec<OpTime>,
    /// With --ops on a GPU, in the order of the step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    launches: Vec<LaunchTime>,
}

/// All runs of an op in a step.
#[derive(Serialize)]
struct OpTime {
    op: &'static str,
    runs: usize,
    median_s: f64,
    gflop: f64,
    gflop_per_s: f64,
    /// Of all tensors that each run, on a GPU each launch, reads or writes.
    gb: f64,
    gb_per_s: f64,
}

impl OpTime {
    /// Of no runs yet.
    fn new(op: &'static str) -> Self {
        OpTime { op, runs: 0, median_s: 0.0, gflop: 0.0, gflop_per_s: 0.0, gb: 0.0, gb_per_s: 0.0 }
    }
}

/// Steps before the first that is timed.
const WARM_UP: usize = 2;

pub fn run(args: &Args) -> Result<()> {
    let model = flags::model(&args.model, args.widths)?;
    crate::preprocessing::check_size(args.size)?;
    if args.plan {
        return plan(args, &model);
    }
    let mut network = Network::new(model, args.device.open()?)?;
    network.initialise(1)?;
    let mode = if args.infer { Mode::Evaluate } else { Mode::Train };
    let step = network.load(mode, args.batch, [args.size; 2])?;
    let mut seconds = time(&mut network, &step, args.steps)?;
    let median_s = quantile(&mut seconds, 0.5);
    let gflop_per_step = network.plan(&step).operations as f64 / 1e9;
    let launches = if args.ops { network.time_launches(&step, args.steps)? } else { None };
    let ops = match &launches {
        Some(launches) => sum_launches(network.plan(&step), launches),
        None if args.ops => time_ops(&mut network, &step, args.steps)?,
        None => Vec::new(),
    };
    let peak = match args.device.device.resolve() {
        device::DeviceName::Cpu if args.ops => {
            Some(CpuDevice::<f32>::with(args.device.threads, InstructionSet::best())?.peak() / 1e9)
        }
        _ => None,
    };
    let report = Report {
        model: args.model.clone(),
        widths: args.widths,
        parameters: network.model().parameter_count(),
        device: args.device.device.resolve().to_string(),
        device_name: network.device().name(),
        precision: network.device().precision(),
        infer: args.infer,
        size: args.size,
        batch: args.batch,
        steps: args.steps,
        median_s,
        images_per_s: args.batch as f64 / median_s,
        peak_mem_gib: network.planned_bytes() as f64 / (1u64 << 30) as f64,
        gflop_per_step,
        gflop_per_s: gflop_per_step / median_s,
        peak_gflop_per_s: peak,
        ops,
        launches: launches.unwrap_or_default(),
    };
    match args.json {
        true => output::print_json(&report),
        false => output::print(&text(&report)),
    }
}

/// Prints what the step costs at least.
fn plan(args: &Args, model: &Model) -> Result<()> {
    let mode = if args.infer { Mode::Evaluate } else { Mode::Train };
    let precision = args.device.precision.exactly().unwrap_or(Precision::Bf16);
    let floors = Floors::new(model, mode, args.batch, args.size, precision)?;
    if args.json {
        return output::print_json(&floors);
    }
    let (gb, gib) = (floors.bytes as f64 / 1e9, floors.memory as f64 / f64::from(1 << 30));
    let Floors { precision, batch, size, launches, .. } = floors;
    let table = floors.table();
    output::print(&format!(
        "{batch} images of {size} x {size}, {precision}: {launches} launches, {gb:.2} GB of traffic, {gib:.2} GiB of memory\n\n{table}"
    ))
}

/// The seconds of each step after those that warm up.
fn time(network: &mut Network<f32>, step: &Step, steps: usize) -> Result<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let pixels = step.batch * step.size[0] * step.size[1];
    let image: Vec<f32> = (0..pixels).map(|_| random.random()).collect();
    let target: Vec<f32> = (0..pixels).map(|_| f32::from(u8::from(random.random_bool(0.1)))).collect();
    let weight = vec![1.0; step.batch];
    let progress = output::Progress::new("bench", (WARM_UP + steps) * step.batch, "images");
    let mut seconds = Vec::with_capacity(steps);
    network.write_batch(step, &image, &target, &weight)?;
    for number in 1..=WARM_UP + steps {
        let start = Instant::now();
        match step.mode {
            Mode::Train => {
                // As training does: the next batch is written meanwhile.
                network.begin_training(step, 1e-5, number as u64)?;
                network.write_batch(step, &image, &target, &weight)?;
                network.finish_training(step)?;
            }
            _ => {
                network.evaluate(step)?;
                network.write_batch(step, &image, &target, &weight)?;
            }
        }
        if number > WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
        progress.advance(step.batch);
    }
    Ok(seconds)
}

/// The ops of a plan by name, their times not yet known, and where each runs.
fn ops(plan: &Plan, device: &dyn Device<f32>) -> BTreeMap<&'static str, (OpTime, Vec<usize>)> {
    let mut ops = BTreeMap::new();
    for (position, node) in plan.nodes.iter().enumerate() {
        let op = &plan.graph.nodes()[node.index].op;
        let (inputs, outputs) = shapes(&plan.graph, node.index);
        let (total, positions) = ops.entry(op.name()).or_insert((OpTime::new(op.name()), Vec::new()));
        total.runs += 1;
        total.gflop += op.operations(&inputs, &outputs) as f64 / 1e9;
        let bytes = |shape: &&Shape| shape.elements() * device.element(shape.storage).bytes();
        total.gb += inputs.iter().chain(&outputs).map(bytes).sum::<usize>() as f64 / 1e9;
        positions.push(position);
    }
    ops
}

/// The seconds of each op of a step that ran before, the slowest first.
fn time_ops(network: &mut Network<f32>, step: &Step, times: usize) -> Result<Vec<OpTime>> {
    let ops = ops(network.plan(step), network.device());
    let mut totals = Vec::with_capacity(ops.len());
    for (mut total, positions) in ops.into_values() {
        network.run_nodes(step, &positions)?; // to warm up
        let seconds = (0..times).map(|_| network.time_nodes(step, &positions, 1));
        total.median_s = quantile(&mut seconds.collect::<Result<Vec<_>>>()?, 0.5);
        totals.push(total);
    }
    Ok(sorted(totals))
}

/// The same of a step's launches.
fn sum_launches(plan: &Plan, launches: &[LaunchTime]) -> Vec<OpTime> {
    let mut totals = BTreeMap::<&str, OpTime>::new();
    for LaunchTime { launch, seconds } in launches {
        let total = totals.entry(launch.op).or_insert(OpTime::new(launch.op));
        total.median_s += seconds;
        total.gflop += launch.operations as f64 / 1e9;
        total.gb += launch.bytes as f64 / 1e9;
    }
    for total in totals.values_mut() {
        let runs = plan.nodes.iter().filter(|node| plan.graph.nodes()[node.index].op.name() == total.op);
        total.runs = runs.count();
    }
    sorted(totals.into_values().collect())
}

/// With their speeds, the slowest first.
fn sorted(mut ops: Vec<OpTime>) -> Vec<OpTime> {
    for total in &mut ops {
        total.gflop_per_s = total.gflop / total.median_s;
        total.gb_per_s = total.gb / total.median_s;
    }
    ops.sort_by(|a, b| b.median_s.total_cmp(&a.median_s));
    ops
}

/// A row for each op; an op's share of the peak is more than all where its algorithm saves products.
fn table(report: &Report) -> String {
    let mut text = "\n| op | runs | ms | share of all | GB | GB/s | GFLOP | GFLOP/s | of the peak |\n\
                    |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let all: f64 = report.ops.iter().map(|op| op.median_s).sum();
    for OpTime { op, runs, median_s, gflop, gflop_per_s, gb, gb_per_s } in &report.ops {
        let peak = report.peak_gflop_per_s.filter(|_| *gflop > 0.0);
        let peak = peak.map_or(String::new(), |peak| format!("{:.0}%", 100.0 * gflop_per_s / peak));
        let (milliseconds, share) = (1e3 * median_s, 100.0 * median_s / all);
        text.push_str(&format!(
            "| {op} | {runs} | {milliseconds:.3} | {share:.1}% | {gb:.3} | {gb_per_s:.0} | {gflop:.1} | {gflop_per_s:.0} | {peak} |\n"
        ));
    }
    if !report.launches.is_empty() {
        text.push_str(&format!("\n{} launches, {:.3} ms in all.\n", report.launches.len(), 1e3 * all));
    }
    match report.peak_gflop_per_s {
        Some(peak) => format!("{text}\nThe peak of the tile kernel's arithmetic: {peak:.0} GFLOP/s.\n"),
        None => text,
    }
}

fn text(report: &Report) -> String {
    let ops = if report.ops.is_empty() { String::new() } else { table(report) };
    let what = if report.infer { "inference" } else { "training step" };
    format!(
        "{}, {} parameters, {what}, {} images of {size} x {size}, {} on {}\n\
         {:.4} s a step (median of {}), {:.2} images/s, {:.1} GFLOP a step, {:.1} GFLOP/s, {:.3} GiB\n{ops}",
        report.model,
        report.parameters,
        report.batch,
        report.precision,
        report.device_name,
        report.median_s,
        report.steps,
        report.images_per_s,
        report.gflop_per_step,
        report.gflop_per_s,
        report.peak_mem_gib,
        size = report.size,
    )
}
