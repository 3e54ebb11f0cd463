//! Training on the CUDA device: as on the CPU, and the same bits each time.

use crate::emulator::{in_child, run_in_child};
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::model::{LossScale, Losses, Mode, Model, Network};
use std::collections::BTreeMap;

const STEPS: usize = 20;
const BATCH: usize = 3;
pub const SIZE: [usize; 2] = [16, 32];
/// The paper's. At much higher rates Adam's first steps, whose size does not depend on the gradient's, turn rounding into
/// different weights.
pub const LEARNING_RATE: f64 = 1e-5;
/// How near the losses are to the CPU's, relatively.
const TOLERANCE: f64 = 1e-4;

/// Images and masks: bright discs on noise, the masks of them.
pub fn batch(count: usize, seed: u32) -> (Vec<f32>, Vec<f32>) {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let inside = |pixel: usize| {
        let (y, x) = (pixel / SIZE[1] % SIZE[0], pixel % SIZE[1]);
        (y as f32 - 7.0).powi(2) + (x as f32 - 12.0 - seed as f32).powi(2) < 30.0
    };
    let target: Vec<f32> = (0..count).map(|pixel| f32::from(u8::from(inside(pixel)))).collect();
    let image = target.iter().map(|target| target + noise()).collect();
    (image, target)
}

/// The losses of some steps, and the weights after them.
fn train(device: Box<dyn Device<f32>>, steps: usize) -> (Vec<Losses<f32>>, BTreeMap<String, Vec<f32>>) {
    let mut network = Network::new(Model::new("rar-unet", [8, 9, 10, 16, 24]).unwrap(), device).unwrap();
    network.initialise(7).unwrap();
    let step = network.load(Mode::Train, BATCH, SIZE).unwrap();
    network.poison().unwrap();
    let mut losses = Vec::new();
    for number in 1..=steps {
        let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], number as u32 % 4);
        let weight = if number % 5 == 0 { [1.0, 0.0, 1.0] } else { [1.0; 3] };
        network.write_batch(&step, &image, &target, &weight).unwrap();
        losses.push(network.train(&step, LEARNING_RATE, number as u64).unwrap());
    }
    (losses, network.weights().unwrap())
}

/// Tensor cores read copies of the weights, which training keeps: weights that are set after it count as well.
#[test]
fn cuda_weights_that_are_set_reach_the_copies() {
    for precision in [Precision::Bf16, Precision::Fp16] {
        let network = || {
            let model = Model::new("rar-unet", [8, 9, 10, 16, 24]).unwrap();
            let mut network = Network::new(model, Box::new(super::open_in(precision)?)).unwrap();
            network.initialise(7).unwrap();
            Some(network)
        };
        let Some(mut changed) = network() else { return };
        let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], 1);
        let evaluate = |network: &mut Network<f32>| {
            let step = network.load(Mode::Evaluate, BATCH, SIZE).unwrap();
            network.write_batch(&step, &image, &target, &[1.0; BATCH]).unwrap();
            network.evaluate(&step).unwrap().samples
        };
        let before = changed.weights().unwrap();
        let step = changed.load(Mode::Train, BATCH, SIZE).unwrap();
        changed.write_batch(&step, &image, &target, &[1.0; BATCH]).unwrap();
        changed.train(&step, 1e-2, 1).unwrap();
        let trained = evaluate(&mut changed);
        changed.set_weights(|parameter| Ok(before[&parameter.name].clone())).unwrap();
        let (found, expected) = (evaluate(&mut changed), evaluate(&mut network().unwrap()));
        assert_eq!(found, expected, "{precision}");
        assert_ne!(found, trained, "{precision}: training changes something");
    }
}

#[test]
fn cuda_trains_as_the_cpu_does() {
    let Some(device) = super::open() else { return };
    let (cuda, _) = train(Box::new(device), STEPS);
    let (cpu, _) = train(Box::new(CpuDevice::new().unwrap()), STEPS);
    let mut worst = 0.0;
    for (cuda, cpu) in cuda.iter().zip(&cpu) {
        let pairs =
            std::iter::once((cuda.batch, cpu.batch)).chain(cuda.samples.iter().copied().zip(cpu.samples.clone()));
        for (cuda, cpu) in pairs {
            let error = f64::from((cuda - cpu).abs() / cpu.abs());
            assert!(error <= TOLERANCE, "{cuda} differs from {cpu} by {error:.1e}");
            worst = f64::max(worst, error);
        }
    }
    // The same batch.
    let (first, last) = (cuda[0].batch, cuda[16].batch);
    println!("loss from {first} to {last}, relative difference at most {worst:.1e}");
    assert!(last < first, "training lowers the loss");
}

#[test]
fn cuda_training_gives_the_same_bits_again() {
    let (Some(first), Some(second)) = (super::open(), super::open()) else { return };
    let (first, second) = (train(Box::new(first), STEPS), train(Box::new(second), STEPS));
    assert_eq!(first.0, second.0);
    assert_eq!(first.1, second.1);
    assert!(first.0.iter().all(|losses| losses.batch.is_finite()));
}

/// Steps that are compared between orders: the first is launched, the second captured and replayed.
const ORDER_STEPS: usize = 3;

/// All bits of the losses and weights after a few steps.
fn fingerprint() -> String {
    let (losses, weights) = train(Box::new(super::open().unwrap()), ORDER_STEPS);
    let losses = losses.iter().flat_map(|losses| losses.samples.iter().chain([&losses.batch]));
    let bits = losses.chain(weights.values().flatten()).map(|value| u64::from(value.to_bits()));
    format!("{:016x}", bits.fold(0, |hash: u64, bits| (hash ^ bits).wrapping_mul(0x0100_0000_01b3).rotate_left(23)))
}

/// A race between threads or blocks would show.
#[test]
fn cuda_training_does_not_depend_on_the_order_of_threads() {
    if super::open().is_none() || std::env::var_os("RARUNET_TEST_DEVICE").is_some() {
        return;
    }
    let expected = format!("fingerprint: {}", fingerprint());
    println!("{expected}");
    if in_child() {
        return;
    }
    let name = "cuda::training::cuda_training_does_not_depend_on_the_order_of_threads";
    for (order, threads) in [("forward", "1"), ("reversed", "2"), ("shuffled:5", "2")] {
        let variables = [("RARUNET_EMULATOR_ORDER", order), ("RARUNET_EMULATOR_THREADS", threads)];
        let (passed, printed) = run_in_child(name, &variables);
        assert!(passed && printed.contains(&expected), "{order}, {expected}:\n{printed}");
    }
}

/// Factors of 11 bits, and 16 bits, change the losses by little, and training lowers them all the same.
#[test]
fn cuda_trains_on_tensor_cores() {
    if super::open().is_none() {
        return;
    }
    let (expected, _) = train(Box::new(CpuDevice::new().unwrap()), STEPS);
    for (precision, tolerance) in [(Precision::Tf32, 5e-3), (Precision::Bf16, 2e-2), (Precision::Fp16, 5e-3)] {
        let (found, _) = train(Box::new(super::open_in(precision).unwrap()), STEPS);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(!found.skipped, "{precision}: a step was left out");
            let error = (found.batch - expected.batch).abs() / expected.batch;
            assert!(error <= tolerance, "{precision}: {} instead of {}", found.batch, expected.batch);
        }
        assert!(found[16].batch < found[0].batch, "{precision}: training lowers the loss");
    }
}

/// Where a gradient is not finite nothing changes, and the scale of the loss is halved until all are.
#[test]
fn cuda_fp16_leaves_out_steps_that_overflow() {
    let Some(device) = super::open_in(Precision::Fp16) else { return };
    let mut network = Network::new(Model::new("rar-unet", [8, 9, 10, 16, 24]).unwrap(), Box::new(device)).unwrap();
    network.initialise(7).unwrap();
    let step = network.load(Mode::Train, BATCH, SIZE).unwrap();
    let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], 1);
    network.set_loss_scale(Some(LossScale { scale: 2f64.powi(40), steps: 0 }));
    let before = network.weights().unwrap();
    let (mut scale, mut skipped) = (2f64.powi(40), 0);
    loop {
        network.write_batch(&step, &image, &target, &[1.0; BATCH]).unwrap();
        let trained = |weights: &BTreeMap<String, Vec<f32>>| {
            let trained = weights.iter().filter(|(name, _)| !name.contains("running"));
            trained.map(|(_, values)| values.clone()).collect::<Vec<_>>()
        };
        let losses = network.train(&step, LEARNING_RATE, 1).unwrap();
        let (now, before) = (trained(&network.weights().unwrap()), trained(&before));
        assert_eq!(now == before, losses.skipped);
        if !losses.skipped {
            break;
        }
        skipped += 1;
        scale /= 2.0;
        assert_eq!(network.loss_scale().map(|loss_scale| loss_scale.scale), Some(scale));
        assert!(skipped < 40, "some scale fits");
    }
    assert!(skipped > 0, "2^40 is too much");
    let gradients = network.gradients(&step).unwrap();
    assert!(gradients.values().flatten().all(|gradient| gradient.abs() < 10.0), "gradients are without the scale");
}
