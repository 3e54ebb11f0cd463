//! Each op of RAR-U-Net's training step by itself, at each of the network's own shapes: on the device that
//! `RARUNET_TEST_DEVICE` names, by its own clock, or on the CPU at a small size.

mod device;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use device::{Loaded, load};
use rarunet_cuda::device::Precision;
use rarunet_cuda::model::Mode;
use rarunet_cuda::plan::{Plan, shapes};
use rarunet_cuda::tensor::Shape;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where an op first runs at some shapes.
struct Found {
    position: usize,
    /// Of all tensors that are read or written.
    bytes: u64,
    /// Runs at these shapes in a step.
    runs: usize,
}

/// Each op at each of its shapes: its name, and how it reads in a list.
fn distinct(plan: &Plan, precision: Precision) -> BTreeMap<(&'static str, String), Found> {
    let mut found = BTreeMap::new();
    for (position, node) in plan.nodes.iter().enumerate() {
        let (inputs, outputs) = shapes(&plan.graph, node.index);
        let list = |shapes: &[&Shape]| shapes.iter().map(|shape| shape.to_string()).collect::<Vec<_>>().join(", ");
        let bytes = |shape: &&Shape| (shape.elements() * precision.element(shape.storage).bytes()) as u64;
        let bytes = inputs.iter().chain(&outputs).map(bytes).sum();
        let key = (plan.graph.nodes()[node.index].op.name(), format!("{} to {}", list(&inputs), list(&outputs)));
        found.entry(key).or_insert(Found { position, bytes, runs: 0 }).runs += 1;
    }
    found
}

fn kernels(criterion: &mut Criterion) {
    let device = std::env::var("RARUNET_TEST_DEVICE").unwrap_or("cpu".into());
    let Loaded { mut network, step } = load(&device, Mode::Train);
    network.train(&step, 1e-5, 1).expect("the device works"); // what the ops read is there from now on
    let found = distinct(network.plan(&step), network.device().precision());
    let mut group = criterion.benchmark_group(format!("kernels/{device}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(20)).measurement_time(Duration::from_millis(50));
    for ((op, shapes), Found { position, bytes, runs }) in found {
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(BenchmarkId::new(op, format!("{shapes}, {runs} in a step")), |bencher| {
            bencher.iter_custom(|times| {
                let seconds = network.time_nodes(&step, &[position], times as usize).expect("the device works");
                Duration::from_secs_f64(seconds)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
