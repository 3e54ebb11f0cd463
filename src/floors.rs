//! The least time that a step can take on a GPU: of each launch the bytes and operations, and what they come to at the
//! speeds of named GPUs. Nothing is launched, and no GPU has to be there.

use crate::Result;
use crate::device::Precision;
use crate::device::cuda::{Planned, PlannedLaunch, planned};
use crate::graph::Region;
use crate::model::{Mode, Model};
use crate::ops::adam::moment_starts;
use serde::Serialize;
use std::collections::BTreeMap;

/// A GPU's speeds, from its maker's data sheet unless said otherwise.
struct Gpu {
    name: &'static str,
    /// Products of 16 bits with sums in fp32, in 10^12 operations a second.
    tensor_tflops: f64,
    /// The same in tf32; as everything else where there is none.
    tf32_tflops: f64,
    /// Everything else.
    f32_tflops: f64,
    /// 10^9 bytes a second.
    gb_per_s: f64,
}

const GPUS: [Gpu; 4] = [
    Gpu { name: "RTX 2080 Ti", tensor_tflops: 54.0, tf32_tflops: 13.4, f32_tflops: 13.4, gb_per_s: 616.0 },
    Gpu { name: "RTX 3090", tensor_tflops: 71.0, tf32_tflops: 35.6, f32_tflops: 35.6, gb_per_s: 936.0 },
    Gpu { name: "RTX 4090", tensor_tflops: 165.2, tf32_tflops: 82.6, f32_tflops: 82.6, gb_per_s: 1008.0 },
    // Measured, but for tf32: a large matrix product, a large copy.
    Gpu { name: "H200", tensor_tflops: 790.0, tf32_tflops: 494.5, f32_tflops: 67.0, gb_per_s: 4300.0 },
];

/// All launches of one kernel.
#[derive(Debug, Default, Serialize)]
pub struct KernelCost {
    pub launches: usize,
    /// Of all tensors that each launch reads or writes.
    pub bytes: u64,
    pub operations: u64,
    /// Seconds at least, by GPU.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// What a step costs.
#[derive(Debug, Serialize)]
pub struct Floors {
    pub precision: Precision,
    pub batch: usize,
    pub size: usize,
    pub launches: usize,
    pub bytes: u64,
    pub operations: u64,
    /// Bytes of arena and state.
    pub memory: u64,
    pub seconds: BTreeMap<&'static str, f64>,
    pub kernels: BTreeMap<String, KernelCost>,
}

impl Gpu {
    fn seconds(&self, launch: &PlannedLaunch) -> f64 {
        let tflops = match &launch.kernel {
            kernel if kernel.ends_with("_tf32") => self.tf32_tflops,
            kernel if kernel.contains("_3x3_") || kernel.contains("_1x1_") => self.tensor_tflops,
            _ => self.f32_tflops,
        };
        f64::max(launch.operations as f64 / (tflops * 1e12), launch.bytes as f64 / (self.gb_per_s * 1e9))
    }
}

impl Floors {
    /// Of a step of `batch` images of `size` x `size` pixels, on GPUs from sm_80 on.
    ///
    /// # Errors
    /// If the size does not fit the model, or no GPU computes in this precision.
    pub fn new(model: &Model, mode: Mode, batch: usize, size: usize, precision: Precision) -> Result<Self> {
        let mut step = model.graph(mode, batch, [size; 2])?;
        let kept = step.kept();
        let of = |region| {
            let own = step.parameters.iter().filter(move |parameter| parameter.region == region);
            own.map(|parameter| parameter.stored_count()).sum::<usize>()
        };
        let (parameters, statistics) = (of(Region::Parameters), of(Region::Statistics));
        let moments = if mode == Mode::Train { moment_starts(parameters)[2] } else { 0 };
        let graph = std::mem::take(&mut step.graph);
        let Planned { launches, arena } = planned(graph, &kept, parameters, precision, (8, 0))?;
        let mut floors = Floors {
            precision,
            batch,
            size,
            launches: launches.len(),
            bytes: 0,
            operations: 0,
            memory: arena + ((parameters + statistics + moments) * size_of::<f32>()) as u64,
            seconds: BTreeMap::new(),
            kernels: BTreeMap::new(),
        };
        for launch in &launches {
            let kernel = floors.kernels.entry(launch.kernel.clone()).or_default();
            kernel.launches += 1;
            kernel.bytes += launch.bytes;
            kernel.operations += launch.operations;
            floors.bytes += launch.bytes;
            floors.operations += launch.operations;
            for gpu in &GPUS {
                *kernel.seconds.entry(gpu.name).or_default() += gpu.seconds(launch);
                *floors.seconds.entry(gpu.name).or_default() += gpu.seconds(launch);
            }
        }
        Ok(floors)
    }

    /// As a table in Markdown, the most expensive kernels first.
    pub fn table(&self) -> String {
        let names: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).collect();
        let times = |seconds: &BTreeMap<&str, f64>| {
            names.iter().map(|name| format!("{:.3}", seconds[name] * 1e3)).collect::<Vec<_>>().join(" | ")
        };
        let row = |name: &str, launches: usize, bytes: u64, operations: u64, seconds: &BTreeMap<&'static str, f64>| {
            let (gb, gflop) = (bytes as f64 / 1e9, operations as f64 / 1e9);
            format!("| {name} | {launches} | {gb:.3} | {gflop:.1} | {} |\n", times(seconds))
        };
        let mut text = format!(
            "| kernel | launches | GB | GFLOP | {} |\n|---|---|---|---|{}\n",
            names.iter().map(|name| format!("{name}, ms")).collect::<Vec<_>>().join(" | "),
            "---|".repeat(names.len())
        );
        let mut kernels: Vec<_> = self.kernels.iter().collect();
        kernels.sort_by_key(|(_, kernel)| std::cmp::Reverse(kernel.bytes));
        for (name, kernel) in kernels {
            text += &row(name, kernel.launches, kernel.bytes, kernel.operations, &kernel.seconds);
        }
        text + &row("**all**", self.launches, self.bytes, self.operations, &self.seconds)
    }
}
