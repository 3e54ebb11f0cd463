//! Every metric of a scan of the paper's largest size, and of one slice.

use criterion::{Criterion, criterion_group, criterion_main};
use rarunet_cuda::metrics::{Counts, evaluate_slices, evaluate_volume};

const SHAPE: [usize; 3] = [512, 512, 600];
const SPACING: [f64; 3] = [0.7, 0.7, 1.0];

/// A column of vertebrae with processes that sways along z, `shift` voxels along x.
fn spine(shift: f64) -> Vec<bool> {
    let [columns, rows, slices] = SHAPE;
    let mut mask = Vec::with_capacity(columns * rows * slices);
    for z in 0..slices {
        let sway = 40.0 * (z as f64 / 90.0).sin();
        let swell = 0.8 + 0.4 * (z as f64 / 5.0).sin().abs();
        for y in 0..rows {
            for x in 0..columns {
                let (x, y) = (x as f64 - 256.0 - shift, y as f64 - 270.0 - sway);
                let body = (x / 34.0).powi(2) + (y / 26.0).powi(2) < swell;
                let canal = (x / 14.0).powi(2) + ((y - 34.0) / 11.0).powi(2) < 1.0;
                let arch = (x / 24.0).powi(2) + ((y - 34.0) / 20.0).powi(2) < swell;
                let processes = x.abs() < 55.0 && (y - 34.0).abs() < 7.0 || x.abs() < 7.0 && (34.0..90.0).contains(&y);
                mask.push(!canal && (body || arch || processes && z % 30 < 18));
            }
        }
    }
    mask
}

fn metrics(criterion: &mut Criterion) {
    let (prediction, reference) = (spine(2.0), spine(0.0));
    let slice = 300 * 512 * 512..301 * 512 * 512;
    let mut group = criterion.benchmark_group("metrics");
    group.sample_size(10);
    group.bench_function("volume", |bencher| {
        bencher.iter(|| evaluate_volume(&prediction, &reference, SHAPE, SPACING, 1));
    });
    group.bench_function("slices", |bencher| bencher.iter(|| evaluate_slices(&prediction, &reference, SHAPE, 1)));
    group.bench_function("slice", |bencher| {
        let shape = [512, 512, 1];
        bencher.iter(|| evaluate_volume(&prediction[slice.clone()], &reference[slice.clone()], shape, SPACING, 1));
    });
    group.bench_function("counts", |bencher| bencher.iter(|| Counts::of(&prediction, &reference)));
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
