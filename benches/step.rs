//! A training step and inference of RAR-U-Net, on the CPU and on the device that `RARUNET_TEST_DEVICE` names.

mod device;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use device::{Loaded, load};
use rarunet_cuda::model::Mode;
use std::time::Duration;

fn step(criterion: &mut Criterion) {
    for (name, mode) in [("train", Mode::Train), ("infer", Mode::Evaluate)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(3));
        let devices = ["cpu".into()].into_iter().chain(std::env::var("RARUNET_TEST_DEVICE"));
        for device in devices {
            let Loaded { mut network, step } = load(&device, mode);
            let [height, width] = step.size;
            group.throughput(Throughput::Elements(step.batch as u64)); // images
            let id = BenchmarkId::new(&device, format!("{}x{height}x{width}", step.batch));
            let mut number = 0;
            group.bench_function(id, |bencher| {
                bencher.iter(|| match mode {
                    Mode::Train => {
                        number += 1;
                        network.train(&step, 1e-5, number)
                    }
                    _ => network.evaluate(&step),
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
