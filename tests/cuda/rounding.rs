//! The CPU where it rounds as a GPU does: what it stores, and how near it comes to the kernels.

use super::convolution::values as eighths;
use super::training::{LEARNING_RATE, SIZE, batch};
use crate::emulator::{in_child, run_in_child};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::cuda::planned;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::{Graph, Region, ValueId};
use rarunet_cuda::model::{LossScale, Mode, Model, Network};
use rarunet_cuda::ops::adam;
use rarunet_cuda::ops::batch_norm::{BatchNormInference, BatchNormScale};
use rarunet_cuda::ops::fold_residual::FoldResidual;
use rarunet_cuda::ops::relu::Relu;
use rarunet_cuda::ops::residual::Residual;
use rarunet_cuda::tensor::{Shape, Storage};
use std::collections::BTreeMap;

const BATCH: usize = 3;
const CAPABILITY: &str = "RARUNET_EMULATOR_COMPUTE_CAPABILITY";
/// How many networks are compared.
const NETWORKS: u64 = 6;
const REDUCED: [Precision; 2] = [Precision::Bf16, Precision::Fp16];

pub fn cpu(precision: Precision) -> CpuDevice<f32> {
    CpuDevice::new().unwrap().rounding(precision)
}

fn model() -> Model {
    Model::new("rar-unet", [8, 9, 10, 16, 24]).unwrap()
}

/// How many of the values a precision holds, and how many there are.
fn held(precision: Precision, values: &[f32]) -> [usize; 2] {
    let element = precision.element(Storage::Reduced);
    [values.iter().filter(|&&value| element.round(value) == value).count(), values.len()]
}

#[test]
fn what_a_gpu_stores_in_16_bits_is_rounded_and_nothing_else() {
    for precision in REDUCED {
        let (mut device, model) = (cpu(precision), model());
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for parameter in model.parameters() {
            let end = parameter.start + parameter.stored_count();
            device.allocate_state(parameter.region, end).unwrap();
            device.allocate_state(Region::Moments, 2 * end).unwrap();
            let values = parameter.to_stored(&parameter.initial_values(&mut random));
            device.write_state(parameter.region, parameter.start, &values).unwrap();
        }
        let mut step = model.graph(Mode::Train, BATCH, SIZE).unwrap();
        let graph = std::mem::take(&mut step.graph);
        let values: Vec<ValueId> = graph.nodes().iter().flat_map(|node| node.outputs.clone()).collect();
        let shapes: Vec<_> = values.iter().map(|&value| graph.shape(value).clone()).collect();
        let id = device.load(graph, &values).unwrap();
        let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], 1);
        let rate = adam::rate(LEARNING_RATE, 1).map(|value| value as f32);
        let inputs: [(ValueId, &[f32]); 6] = [
            (step.image, &image),
            (step.target, &target),
            (step.weight, &[1.0; BATCH]),
            (step.momentum, &[0.1]),
            (step.loss_scale, &[1024.0]),
            (step.rate, &rate),
        ];
        inputs.iter().for_each(|(value, data)| device.write(id, *value, data).unwrap());
        device.run(id).unwrap();
        let mut totals = BTreeMap::new();
        let numbers = values.iter().zip(&shapes).filter(|(_, shape)| shape.storage != Storage::Bits);
        for (&value, shape) in numbers {
            let mut data = vec![0.0; shape.values()];
            device.read(id, value, &mut data).unwrap();
            let total = totals.entry(shape.storage == Storage::Reduced).or_insert([0; 2]);
            total.iter_mut().zip(held(precision, &data)).for_each(|(total, count)| *total += count);
        }
        let ([reduced, of], [full, of_full]) = (totals[&true], totals[&false]);
        println!("{precision}: {reduced} of {of} activations, {full} of {of_full} other values");
        assert!(reduced == of && of > 100_000, "{precision}: {reduced} of {of}");
        assert!(10 * full < 9 * of_full, "{precision}: {full} of {of_full}");
    }
}

/// A network with random weights that has trained one step, its weights before, and what it predicted.
struct Trained {
    network: Network<f32>,
    before: BTreeMap<String, Vec<f32>>,
    prediction: Vec<f32>,
}

fn train(device: Box<dyn Device<f32>>, seed: u64) -> Trained {
    let mut network = Network::new(model(), device).unwrap();
    network.initialise(seed).unwrap();
    let before = network.weights().unwrap();
    let step = network.load(Mode::Train, BATCH, SIZE).unwrap();
    network.poison().unwrap();
    let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], 1);
    network.write_batch(&step, &image, &target, &[1.0; BATCH]).unwrap();
    assert!(!network.train(&step, LEARNING_RATE, 1).unwrap().skipped);
    let mut prediction = vec![0.0; target.len()];
    network.prediction(&step, &mut prediction).unwrap();
    Trained { network, before, prediction }
}

/// The norm of the difference over the norm.
fn difference(found: &Trained, expected: &Trained) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let pairs = found.prediction.iter().zip(&expected.prediction);
    norm(&mut pairs.map(|(a, b)| a - b)) / norm(&mut expected.prediction.iter().copied())
}

/// As a mean of some networks it is much nearer to the kernels than f32 is. Not the same: sums in another order are rounded
/// to another neighbour now and then, and each layer makes more of it.
#[test]
fn a_network_comes_to_what_the_kernels_do() {
    let mut sums = [[0.0; 2]; 2];
    for seed in 1..=NETWORKS {
        let exact = train(Box::new(CpuDevice::new().unwrap()), seed);
        for (precision, sums) in REDUCED.into_iter().zip(&mut sums) {
            let Some(device) = super::open_in(precision) else { return };
            let (expected, rounded) = (train(Box::new(device), seed), train(Box::new(cpu(precision)), seed));
            sums[0] += difference(&rounded, &expected);
            sums[1] += difference(&exact, &expected);
        }
    }
    for (precision, [near, far]) in REDUCED.into_iter().zip(sums) {
        println!("{precision}: {:.1e} where f32 differs by {:.1e}", near / NETWORKS as f64, far / NETWORKS as f64);
        assert!(near < 0.5 * far, "{precision}: {near} and {far}");
    }
}

/// Where all sums are exact, to the same bits: a residual sum is rounded once, the sum of gradients and its mask between. In
/// few blocks and in many, an odd number of shares of the pixels; with output channels whose bits the gradients' kernels read,
/// and others.
#[test]
fn a_residual_sum_comes_to_the_same_bits() {
    let (few, many) = ((2, 9, 13), (22, 33, 19));
    let cases = [(few, 40, 64), (few, 8, 256), (few, 8, 288), (many, 40, 40), (many, 40, 96), (many, 24, 64)];
    for (precision, ((batch, height, width), inputs, outputs)) in
        REDUCED.into_iter().flat_map(|precision| cases.map(|case| (precision, case)))
    {
        let image = &Shape::image(batch, height, width, inputs);
        if precision == Precision::Bf16 && std::env::var(CAPABILITY).is_ok_and(|capability| capability == "7.5") {
            continue;
        }
        let Some(device) = super::open_in(precision) else { return };
        let expected = residual(Box::new(device), image, outputs);
        let found = residual(Box::new(cpu(precision).direct()), image, outputs);
        let what = ["out", "dx", "dmain", "dshortcut", "dbias", "dshortcut_bias", "dborder"];
        assert_eq!([expected.len(), found.len()], [what.len(); 2]);
        for ((what, expected), found) in what.iter().zip(&expected).zip(&found) {
            let wrong = expected.iter().zip(found).filter(|(expected, found)| expected != found).count();
            assert_eq!(wrong, 0, "{precision}, {image} to {outputs}: elements of {} of {what}", expected.len());
        }
    }
}

/// What reaches a block's 3x3 convolution is masked by the kernels that read it, wherever its channels come in 32s, up to
/// 256; and not for its weights on Turing. Large images get the large tiles.
#[test]
fn a_residual_blocks_gradient_is_masked_in_passing() {
    let masked = |capability: (i32, i32), size: usize, [inputs, outputs]: [usize; 2]| {
        let (op, x) = (Residual::new(outputs, true), Shape::image(8, size, size, inputs));
        let dout = x.with_channels(op.main.out.clone());
        let shapes = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &[dout]].concat();
        let mut graph = Graph::new();
        let inputs: Vec<ValueId> = shapes.iter().map(|shape| graph.input(shape.clone())).collect();
        let out = graph.apply(op, &inputs[..5]).unwrap()[0];
        let gradients = graph.differentiate(&[(out, inputs[5])], &inputs[..5]).unwrap();
        let kept: Vec<ValueId> = gradients.into_iter().flatten().collect();
        let launches = planned(graph, &kept, 0, Precision::Fp16, capability).unwrap().launches;
        let count = |start: &str| launches.iter().filter(|launch| launch.kernel.starts_with(start)).count();
        assert_eq!(count("residual_backward_input_3x3"), 1, "{launches:?}");
        count("residual_backward_f16")
    };
    for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
        let for_weights = usize::from(capability == (7, 5));
        for (size, channels) in [(64, [33, 32]), (64, [24, 64]), (16, [256, 256]), (128, [96, 96]), (128, [8, 256])] {
            assert_eq!(masked(capability, size, channels), for_weights, "{capability:?}, {size}, {channels:?}");
        }
        assert_eq!(masked(capability, 16, [64, 288]), 1 + for_weights, "{capability:?}");
        assert_eq!(masked(capability, 16, [64, 40]), 2, "{capability:?}");
    }
}

/// Where a block has shared memory for two groups of warps, and where there is no kernel for both weight gradients.
#[test]
fn residual_blocks_on_other_devices() {
    if in_child() || std::env::var_os("RARUNET_TEST_DEVICE").is_some() || super::open().is_none() {
        return;
    }
    let [roomy, turing, hopper] = ["8.0", "7.5", "9.0"].map(|capability| (CAPABILITY, capability));
    let shuffled = ("RARUNET_EMULATOR_ORDER", "shuffled:7");
    for variables in [&[roomy][..], &[roomy, shuffled], &[turing], &[hopper], &[hopper, shuffled]] {
        for test in ["a_residual_sum_comes_to_the_same_bits", "a_folded_residual_block_comes_close_to_the_cpus"] {
            let (passed, printed) = run_in_child(&format!("cuda::rounding::{test}"), variables);
            assert!(passed && printed.contains("1 passed"), "{variables:?}: {printed}");
        }
    }
}

/// Into which a batch norm is folded, behind another block: where channels come in 64s, and where they do not.
#[test]
fn a_folded_residual_block_comes_close_to_the_cpus() {
    for (precision, tolerance) in [(Precision::Bf16, 1e-2), (Precision::Fp16, 2e-3)] {
        if precision == Precision::Bf16 && std::env::var(CAPABILITY).is_ok_and(|capability| capability == "7.5") {
            continue;
        }
        for channels in [64, 40] {
            let Some(device) = super::open_in(precision) else { return };
            let found = folded(Box::new(device), channels);
            let expected = folded(Box::new(cpu(precision)), channels);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let norm =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|value| value.powi(2)).sum::<f32>().sqrt();
                let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
                let error = difference / norm(&mut expected.iter().copied());
                assert!(error < tolerance, "{precision}, {channels} channels, value {index}: {error}");
            }
        }
    }
}

/// Output and gradients of two residual blocks, between which there is a batch norm.
fn folded(mut device: Box<dyn Device<f32>>, channels: usize) -> Vec<Vec<f32>> {
    let (first, second) = (Residual::new(channels, true), Residual::bordered(channels, true));
    let x = Shape::image(2, 18, 35, 8);
    let sum = x.with_channels(first.main.out.clone());
    let vector = Shape::vector(sum.channels.clone());
    let [of_first, of_second] = [(&first, &x), (&second, &sum)].map(|(op, x)| op.parameter_shapes(&x.channels));
    let norm = [vector.clone(), vector.clone()];
    let shapes = [std::slice::from_ref(&x), &of_first, &norm, &of_second, &[Shape::flat(1), sum.clone()]].concat();
    let mut graph = Graph::new();
    let inputs: Vec<ValueId> = shapes.iter().map(|shape| graph.input(shape.clone())).collect();
    let running = [0, channels].map(|start| graph.state(vector.clone(), Region::Statistics, start));
    let sum = graph.apply(first, &inputs[..5]).unwrap()[0];
    let norm = [sum, inputs[5], inputs[6], running[0], running[1], inputs[11]];
    let norm = graph.apply(BatchNormScale::default(), &norm).unwrap();
    let folded = graph.apply(FoldResidual, &[&inputs[7..11], &norm[..3]].concat()).unwrap();
    let out = graph.apply(second, &[&[sum], &folded[..]].concat()).unwrap()[0];
    let gradients = graph.differentiate(&[(out, inputs[12])], &inputs[..11]).unwrap();
    let kept: Vec<ValueId> = std::iter::once(out).chain(gradients.into_iter().flatten()).collect();
    device.allocate_state(Region::Statistics, 2 * channels).unwrap();
    computed(device, graph, &inputs, &kept)
}

/// Output and gradients of a residual block of `relu(x)`, to which something is added at the border.
fn residual(device: Box<dyn Device<f32>>, x: &Shape, outputs: usize) -> Vec<Vec<f32>> {
    let op = Residual::bordered(outputs, true);
    let [main, bias, shortcut, _] = op.parameter_shapes(&x.channels);
    let dout = Shape::image(x.batch, x.spatial[1], x.spatial[2], outputs);
    let shapes = [x.clone(), main, shortcut, bias.clone(), bias, Shape::matrix(8, op.main.out.clone()), dout];
    let mut graph = Graph::new();
    let inputs: Vec<ValueId> = shapes.iter().map(|shape| graph.input(shape.clone())).collect();
    let [x, main, shortcut, bias, shortcut_bias, border, dout] = [0, 1, 2, 3, 4, 5, 6].map(|index| inputs[index]);
    let y = graph.apply_one(Relu, &[x]).unwrap();
    let out = graph.apply(op, &[y, main, bias, shortcut, shortcut_bias, border]).unwrap()[0];
    let gradients = graph.differentiate(&[(out, dout)], &inputs[..6]).unwrap();
    let kept: Vec<ValueId> = std::iter::once(out).chain(gradients.into_iter().flatten()).collect();
    computed(device, graph, &inputs, &kept)
}

/// The values that are kept, of inputs in eighths.
fn computed(mut device: Box<dyn Device<f32>>, graph: Graph, inputs: &[ValueId], kept: &[ValueId]) -> Vec<Vec<f32>> {
    let count = |&value: &ValueId| graph.shape(value).values();
    let (given, counts): (Vec<_>, Vec<_>) = (inputs.iter().map(count).collect(), kept.iter().map(count).collect());
    let step = device.load(graph, kept).unwrap();
    device.poison().unwrap();
    for (seed, (&input, count)) in inputs.iter().zip(given).enumerate() {
        device.write(step, input, &eighths(count, seed)).unwrap();
    }
    device.run(step).unwrap();
    let read = |(&value, count): (&ValueId, usize)| {
        let mut data = vec![0.0; count];
        device.read(step, value, &mut data).unwrap();
        data
    };
    kept.iter().zip(counts).map(read).collect()
}

/// What is no number in one of a residual block's branches is so in its sum.
#[test]
fn a_residual_sum_keeps_what_is_no_number() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
        for branch in [2, 4] {
            let Some(mut device) = super::open_in(precision) else { return };
            let op = Residual::new(40, true);
            let x = Shape::image(2, 9, 13, 16);
            let shapes = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels)].concat();
            let mut graph = Graph::new();
            let inputs: Vec<ValueId> = shapes.iter().map(|shape| graph.input(shape.clone())).collect();
            let out = graph.apply(op, &inputs).unwrap()[0];
            let count = graph.shape(out).values();
            let step = device.load(graph, &[out]).unwrap();
            for (index, (&input, shape)) in inputs.iter().zip(&shapes).enumerate() {
                let mut data = eighths(shape.values(), index);
                if index == branch {
                    data[7] = f32::NAN;
                }
                device.write(step, input, &data).unwrap();
            }
            device.run(step).unwrap();
            let mut found = vec![0.0; count];
            device.read(step, out, &mut found).unwrap();
            let wrong = found.iter().enumerate().filter(|(index, value)| value.is_nan() != (index % 40 == 7)).count();
            assert_eq!(wrong, 0, "{precision}, bias {branch}");
        }
    }
}

/// A block that is normalised in passing comes to the same bits as one with a batch norm behind it.
#[test]
fn a_normalised_residual_block_is_one_with_a_batch_norm() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
        for (batch, channels) in [(1, 40), (30, 33), (30, 64)] {
            let Some(mut device) = super::open_in(precision) else { return };
            let (op, x) = (Residual::normalised(channels), Shape::image(batch, 9, 13, 16));
            let norm = [(); 4].map(|()| Shape::vector(op.main.out.clone()));
            let shapes = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &norm].concat();
            let mut graph = Graph::new();
            let inputs: Vec<ValueId> = shapes.iter().map(|shape| graph.input(shape.clone())).collect();
            let found = graph.apply_one(op, &inputs).unwrap();
            let sum = graph.apply_one(Residual::new(channels, false), &inputs[..5]).unwrap();
            let expected = graph.apply_one(BatchNormInference::default(), &[&[sum], &inputs[5..]].concat()).unwrap();
            let count = graph.shape(found).values();
            let step = device.load(graph, &[found, expected]).unwrap();
            device.poison().unwrap();
            for (index, (&input, shape)) in inputs.iter().zip(&shapes).enumerate() {
                let mut data: Vec<f32> = eighths(shape.values(), index);
                if index == 8 {
                    data.iter_mut().for_each(|variance| *variance = variance.abs() + 0.3);
                }
                device.write(step, input, &data).unwrap();
            }
            device.run(step).unwrap();
            let [found, expected] = [found, expected].map(|value| {
                let mut data = vec![0.0; count];
                device.read(step, value, &mut data).unwrap();
                data
            });
            let wrong = found.iter().zip(&expected).filter(|(found, expected)| found.to_bits() != expected.to_bits());
            assert_eq!(wrong.count(), 0, "{precision}, {batch} images, of {count} values");
            assert!(found.iter().any(|value| value.abs() > 1.0), "{precision}");
        }
    }
}

/// Adam's first step changes a parameter by the learning rate: far less than 16 bits could show.
#[test]
fn the_parameters_that_are_trained_stay_as_they_are() {
    for precision in REDUCED {
        let Trained { mut network, before, .. } = train(Box::new(cpu(precision)), 7);
        let after = network.weights().unwrap();
        let trained = before.iter().filter(|(name, _)| !name.contains("running"));
        let changes = trained.flat_map(|(name, before)| before.iter().zip(&after[name])).map(|(a, b)| (a - b).abs());
        let changes: Vec<f32> = changes.collect();
        let changed = changes.iter().filter(|&&change| change > 0.0).count();
        let largest = changes.iter().copied().fold(0.0, f32::max);
        assert!(f64::from(largest) < 1.1 * LEARNING_RATE, "{precision}: {largest}");
        assert!(2 * changed > changes.len(), "{precision}: {changed} of {}", changes.len());
        assert_eq!(network.loss_scale().is_some(), precision == Precision::Fp16);
    }
}

#[test]
fn fp16_leaves_out_steps_that_overflow() {
    let mut network = Network::new(model(), Box::new(cpu(Precision::Fp16))).unwrap();
    network.initialise(7).unwrap();
    let step = network.load(Mode::Train, BATCH, SIZE).unwrap();
    let (image, target) = batch(BATCH * SIZE[0] * SIZE[1], 1);
    network.set_loss_scale(Some(LossScale { scale: 2f64.powi(40), steps: 0 }));
    network.write_batch(&step, &image, &target, &[1.0; BATCH]).unwrap();
    assert!(network.train(&step, LEARNING_RATE, 1).unwrap().skipped);
    assert_eq!(network.loss_scale().map(|scale| scale.scale), Some(2f64.powi(39)));
}
