//! Each op of RAR-U-Net's training step by itself, at the network's own shapes: all runs of the op in one step, on the
//! CPU and on the device that `RARUNET_TEST_DEVICE` names.

mod device;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use device::{Loaded, load, names};
use rarunet_cuda::model::Mode;
use rarunet_cuda::plan::shapes;
use rarunet_cuda::tensor::Shape;
use std::collections::BTreeMap;
use std::time::Duration;

fn kernels(criterion: &mut Criterion) {
    for device in names() {
        let Loaded { mut network, step } = load(&device, Mode::Train);
        network.train(&step, 1e-5, 1).expect("the device works"); // what the ops read is there from now on
        let (plan, precision) = (network.plan(&step), network.device().precision());
        let mut bytes = BTreeMap::<&str, u64>::new();
        for node in &plan.nodes {
            let (inputs, outputs) = shapes(&plan.graph, node.index);
            let size = |shape: &&Shape| shape.elements() * precision.element(shape.storage).bytes();
            let moved: usize = inputs.iter().chain(&outputs).map(size).sum();
            let name = plan.graph.nodes()[node.index].op.name();
            *bytes.entry(name).or_default() += moved as u64;
        }
        let mut group = criterion.benchmark_group(format!("kernels/{device}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for (op, bytes) in bytes {
            group.throughput(Throughput::Bytes(bytes)); // of all tensors that are read or written
            group.bench_function(op, |bencher| bencher.iter(|| network.run_op(&step, op).expect("the device works")));
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
