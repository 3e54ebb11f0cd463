//! Convolution at shapes that need each of its kernels, against the CPU in f64, whose gradients gradcheck answers for.
//!
//! All values are multiples of 1/8 up to 1, so that f32 sums of their products are exact as far as 2^18: results are
//! equal, and nothing wrong can hide in rounding. In 16 bits, results are the exact ones rounded. What tf32 rounds is
//! tried with values of more digits.

use crate::emulator::{self, in_child, run_in_child};
use rarunet_cuda::device::cpu::{CpuDevice, Real};
use rarunet_cuda::device::cuda::Padding;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::{Graph, ValueId};
use rarunet_cuda::ops::add::Add;
use rarunet_cuda::ops::convolution::Convolution;
use rarunet_cuda::ops::transposed_convolution::TransposedConvolution;
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::tensor::{Channels, Shape};

/// An op with weights and a bias, and its input. `sliced`: its input and output are slices of wider buffers.
struct Setup {
    op: Layer,
    x: Shape,
    sliced: bool,
}

#[derive(Clone, Debug)]
enum Layer {
    Convolution(Convolution),
    Transposed(TransposedConvolution),
}

impl Layer {
    fn parameters(&self, x: &Shape) -> [Shape; 2] {
        match self {
            Layer::Convolution(op) => [op.weight_shape(&x.channels), Shape::vector(op.out.clone())],
            Layer::Transposed(op) => [op.weight_shape(&x.channels), Shape::vector(op.out.clone())],
        }
    }

    fn apply(&self, graph: &mut Graph, inputs: &[ValueId]) -> ValueId {
        let outputs = match self {
            Layer::Convolution(op) => graph.apply(op.clone(), inputs),
            Layer::Transposed(op) => graph.apply(op.clone(), inputs),
        };
        outputs.unwrap()[0]
    }
}

/// A setup's graph.
struct Built {
    graph: Graph,
    inputs: Vec<ValueId>,
    kept: Vec<ValueId>,
}

impl Setup {
    fn build(&self) -> Built {
        let mut graph = Graph::new();
        let parameters = self.op.parameters(&self.x);
        let mut inputs: Vec<ValueId> =
            std::iter::once(&self.x).chain(&parameters).map(|shape| graph.input(shape.clone())).collect();
        let mut x = inputs[0];
        if self.sliced {
            x = graph.apply_one(Add::default(), &[x, x]).unwrap();
            let other = graph.input(self.x.with_channels(Channels::new(16)));
            inputs.push(other);
            let other = graph.apply_one(Add::default(), &[other, other]).unwrap();
            graph.concat(&[other, x]).unwrap();
        }
        let mut out = self.op.apply(&mut graph, &[x, inputs[1], inputs[2]]);
        if self.sliced {
            let other = graph.input(graph.shape(out).with_channels(Channels::new(24)));
            inputs.push(other);
            out = graph.concat(&[out, other]).unwrap();
        }
        let seed = graph.input(graph.shape(out).clone());
        let gradients = graph.differentiate(&[(out, seed)], &inputs[..3]).unwrap();
        inputs.push(seed);
        let kept = std::iter::once(out).chain(gradients.into_iter().flatten()).collect();
        Built { graph, inputs, kept }
    }
}

/// Multiples of 1/8 from -1 to 1, in an order without pattern.
pub fn values<T: Real>(count: usize, seed: usize) -> Vec<T> {
    let mut state = seed as u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        T::from_f64(((state >> 33) % 17) as f64 / 8.0 - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Numbers of f32 from -1 to 1.
fn fractions<T: Real>(count: usize, seed: usize) -> Vec<T> {
    emulator::numbers(count, seed as u32).into_iter().map(|value| T::from_f64(f64::from(2.0 * value))).collect()
}

/// The rows of a matrix that stand for padded channels are zero, as those of a network's weights are.
fn clear_padding<T: Real>(matrix: &mut [T], columns: usize, channels: &Channels) {
    let mut padding = vec![true; channels.stored()];
    channels.stored_indices().for_each(|channel| padding[channel] = false);
    let rows = matrix.chunks_exact_mut(columns).zip(padding.iter().cycle());
    rows.filter(|&(_, &padding)| padding).for_each(|(row, _)| row.fill(T::ZERO));
}

/// Everything that was kept, after a run on memory that was poisoned.
fn run<T: Real>(
    setup: &Setup,
    mut device: Box<dyn Device<T>>,
    values: impl Fn(usize, usize) -> Vec<T>,
) -> Vec<Vec<f64>> {
    let Built { graph, inputs, kept } = setup.build();
    let shapes: Vec<Shape> = inputs.iter().map(|&input| graph.shape(input).clone()).collect();
    let counts: Vec<usize> = kept.iter().map(|&value| graph.shape(value).values()).collect();
    let step = device.load(graph, &kept).unwrap();
    device.poison().unwrap();
    for (index, (&input, shape)) in inputs.iter().zip(&shapes).enumerate() {
        let mut values = values(shape.values(), index);
        if index == 1 {
            let channels = match &setup.op {
                Layer::Convolution(_) => &setup.x.channels,
                Layer::Transposed(op) => &op.out,
            };
            clear_padding(&mut values, shape.channels.count(), channels);
        }
        device.write(step, input, &values).unwrap();
    }
    device.run(step).unwrap();
    let read = |(&value, &count): (&ValueId, &usize)| {
        let mut data = vec![T::ZERO; count];
        device.read(step, value, &mut data).unwrap();
        data.into_iter().map(T::to_f64).collect()
    };
    kept.iter().zip(&counts).map(read).collect()
}

/// In f32, tf32, bf16 and fp16; in a process of `run_in_child` not in fp16, whose code is that of bf16.
fn check(setups: &[Setup]) {
    let precisions = [Precision::Bf16, Precision::F32, Precision::Tf32, Precision::Fp16];
    check_in(&precisions[..if in_child() { 3 } else { 4 }], setups);
}

fn check_in(precisions: &[Precision], setups: &[Setup]) {
    for setup in setups {
        let expected = run::<f64>(setup, Box::new(CpuDevice::new().unwrap().direct()), values);
        for &precision in precisions {
            let Some(device) = super::open_in(precision) else { return };
            let found = run::<f32>(setup, Box::new(super::Checked(device, Padding::Zero)), values);
            assert_eq!(found.len(), expected.len());
            let Built { graph, kept, .. } = setup.build();
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let element = precision.element(graph.shape(kept[index]).storage);
                let wrong = |(found, expected): &(&f64, &f64)| **found != f64::from(element.round(**expected as f32));
                let wrong = found.iter().zip(expected).filter(wrong).count();
                let what = ["out", "dx", "dweight", "dbias"][index];
                let Setup { op, x, .. } = setup;
                assert_eq!(wrong, 0, "{precision}, {op:?} of {x}: wrong elements of {} of {what}", found.len());
            }
        }
    }
}

fn convolution(window: Window, out: usize, x: Shape) -> Setup {
    Setup { op: Layer::Convolution(Convolution::new(window, out)), x, sliced: false }
}

fn transposed(kernel: [usize; 3], out: usize, x: Shape) -> Setup {
    let op = TransposedConvolution { kernel, out: Channels::new(out) };
    Setup { op: Layer::Transposed(op), x, sliced: false }
}

fn sliced(setup: Setup) -> Setup {
    Setup { sliced: true, ..setup }
}

fn volume(spatial: [usize; 3], channels: usize) -> Shape {
    Shape::volume(2, spatial, Channels::new(channels))
}

fn relu(window: Window, out: usize, x: Shape) -> Setup {
    Setup { op: Layer::Convolution(Convolution::new(window, out).relu()), ..convolution(window, out, x) }
}

fn grouped(window: Window, groups: usize, out: usize, x: Shape) -> Setup {
    let op = Convolution { groups, ..Convolution::new(window, out) };
    Setup { op: Layer::Convolution(op), ..convolution(window, out, x) }
}

/// Those that are products of tiles.
fn tile_setups() -> Vec<Setup> {
    vec![
        // Forward and input gradient 128 x 32.
        convolution(Window::same(3), 32, Shape::image(2, 128, 129, 8)),
        // Forward 128 x 64, weight gradient 128 x 64 in parts.
        relu(Window::same(3), 500, Shape::image(1, 63, 67, 16)),
        // Input gradient 128 x 64.
        convolution(Window::same(3), 8, Shape::image(1, 63, 67, 500)),
        // Weight gradient 128 x 32 in parts.
        convolution(Window::same(3), 96, Shape::image(2, 61, 63, 33)),
        // 64 x 32, of slices.
        sliced(relu(Window::same(3), 40, Shape::image(2, 9, 13, 33))),
        sliced(convolution(Window::same(1), 70, Shape::image(3, 5, 7, 24))),
        convolution(Window::square(3, 2, 1), 24, Shape::image(2, 9, 12, 16)),
        convolution(Window::square(3, 1, 0), 24, Shape::image(2, 9, 12, 16)),
        convolution(Window::cube(3, 1, 1), 16, volume([5, 6, 7], 16)),
        grouped(Window::same(3), 2, 48, Shape::image(2, 9, 7, 32)),
    ]
}

#[test]
fn tiles() {
    check(&tile_setups());
}

#[test]
fn anything_goes() {
    check(&[
        convolution(Window::same(3), 5, Shape::image(2, 17, 9, 3)),
        sliced(convolution(Window::square(3, 2, 1), 11, Shape::image(2, 13, 8, 9))),
        convolution(Window::square(1, 2, 0), 9, Shape::image(2, 13, 8, 9)),
        convolution(Window::square(2, 3, 1), 40, Shape::image(1, 13, 11, 40)),
        convolution(Window::cube(3, 2, 1), 6, volume([5, 6, 7], 10)),
        convolution(Window::cube(2, 2, 0), 17, volume([4, 5, 6], 5)),
        // Too large for bits.
        convolution(Window::same(17), 8, Shape::image(1, 11, 12, 8)),
        grouped(Window::same(3), 8, 24, Shape::image(2, 9, 7, 16)),
        grouped(Window::square(3, 2, 1), 4, 8, Shape::image(2, 9, 7, 48)),
        // Channel by channel, in several parts.
        grouped(Window::same(3), 40, 40, Shape::image(1, 30, 41, 40)),
    ]);
}

#[test]
fn few_channels() {
    check(&[
        // The first layer, its weights and bias in several parts.
        relu(Window::same(3), 32, Shape::image(3, 50, 60, 1)),
        convolution(Window::same(3), 72, Shape::image(2, 9, 11, 7)),
        sliced(convolution(Window::square(5, 2, 2), 16, Shape::image(2, 9, 11, 8))),
        convolution(Window::square(7, 2, 3), 16, Shape::image(2, 19, 21, 1)),
        convolution(Window::cube(3, 1, 1), 24, volume([3, 4, 5], 2)),
        sliced(relu(Window::same(3), 40, Shape::image(1, 7, 131, 1))),
        // The head, and CBAM's spatial attention.
        relu(Window::same(1), 1, Shape::image(2, 9, 13, 300)),
        convolution(Window::same(1), 1, Shape::image(3, 50, 60, 96)),
        convolution(Window::same(7), 1, Shape::image(2, 33, 41, 2)),
        relu(Window::same(3), 3, Shape::image(2, 9, 11, 40)),
        convolution(Window::same(3), 4, Shape::image(2, 9, 11, 4)),
        convolution(Window::square(3, 2, 1), 2, Shape::image(2, 9, 11, 96)),
    ]);
}

#[test]
fn few_pixels() {
    check(&[
        relu(Window::same(1), 64, Shape::image(16, 1, 1, 512)),
        convolution(Window::same(1), 512, Shape::image(16, 1, 1, 64)),
        convolution(Window::same(1), 4, Shape::image(5, 1, 1, 33)),
        convolution(Window::same(1), 33, Shape::image(5, 1, 1, 4)),
        convolution(Window::same(3), 33, Shape::image(3, 1, 1, 33)),
        convolution(Window::same(3), 24, Shape::image(1, 1, 9, 16)),
    ]);
}

#[test]
fn transposed_convolution() {
    check(&[
        transposed([1, 2, 2], 256, Shape::image(1, 33, 64, 16)),
        sliced(transposed([1, 2, 2], 33, Shape::image(2, 9, 7, 40))),
        transposed([2, 3, 1], 9, volume([3, 4, 5], 20)),
        transposed([2, 2, 2], 3, volume([3, 4, 5], 6)),
        transposed([1, 2, 2], 8, Shape::image(2, 9, 7, 3)),
        transposed([1, 2, 2], 1, Shape::image(2, 9, 7, 32)),
    ]);
}

/// Forward and input gradient.
fn group_setups() -> Vec<Setup> {
    vec![
        sliced(relu(Window::same(3), 100, Shape::image(2, 17, 9, 24))),
        sliced(convolution(Window::same(3), 24, Shape::image(3, 18, 13, 100))),
        relu(Window::same(3), 64, Shape::image(1, 33, 7, 40)),
    ]
}

/// The kernels that a setup's run launches.
fn kernels(setup: &Setup, device: &mut dyn Device<f32>) -> Vec<String> {
    let Built { graph, kept, .. } = setup.build();
    let step = device.load(graph, &kept).unwrap();
    device.run(step).unwrap();
    let launches = device.time_launches(step, 1).unwrap().expect("the device times launches");
    launches.into_iter().map(|timed| timed.launch.kernel).collect()
}

/// Of Hopper; the emulator has them where it is asked to be one.
#[test]
fn warp_groups() {
    let Some(mut device) = super::open_in(Precision::Bf16) else { return };
    let setups = group_setups();
    let launched: Vec<String> = setups.iter().flat_map(|setup| kernels(setup, &mut device)).collect();
    let has = |kernel: &str| launched.iter().any(|launched| launched.starts_with(kernel));
    if has("convolution_forward_3x3_128x64_hopper") {
        assert!(has("convolution_backward_input_3x3_128x64_hopper"), "{launched:?}");
        return check_in(&[Precision::Bf16, Precision::Fp16], &setups);
    }
    assert!(!in_child(), "{launched:?}");
    if std::env::var_os("RARUNET_TEST_DEVICE").is_some() {
        return eprintln!("skipped: the GPU is no Hopper");
    }
    let hopper = ("RARUNET_EMULATOR_COMPUTE_CAPABILITY", "9.0");
    for test in [
        "convolution::warp_groups",
        "rounding::a_residual_sum_comes_to_the_same_bits",
        "rounding::a_normalised_residual_block_is_one_with_a_batch_norm",
    ] {
        for order in ["forward", "shuffled:7"] {
            let (passed, printed) =
                run_in_child(&format!("cuda::{test}"), &[hopper, ("RARUNET_EMULATOR_ORDER", order)]);
            assert!(passed && printed.contains("1 passed"), "{order}: {printed}");
        }
    }
}

/// The norm of the difference over the norm.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let differences = &mut found.iter().zip(expected).map(|(found, expected)| found - expected);
    norm(differences) / norm(&mut expected.iter().copied())
}

/// The nearest number of 11 binary digits; ties away from zero.
fn round_to_tf32(value: f64) -> f64 {
    f64::from(f32::from_bits(((value as f32).to_bits() + 0x1000) & !0x1fff))
}

/// What f32 sums of up to 8000 products may lose. A tensor core adds 8 of them at a time, and cuts off what f32 does not
/// hold, half a unit in the last place each time; the emulator rounds.
fn tf32_sums() -> f64 {
    let is_gpu = std::env::var_os("RARUNET_TEST_DEVICE").is_some();
    if is_gpu { 8000.0 / 8.0 * f64::from(f32::EPSILON) / 2.0 } else { 5e-6 }
}

/// Tensor cores get the factors rounded to the nearest, and add in f32: results are those of rounded factors, and so not
/// quite the exact ones. The bias's gradient has no products.
#[test]
fn tf32_rounds_factors_alone() {
    let transposed =
        [transposed([1, 2, 2], 256, Shape::image(1, 33, 64, 16)), transposed([2, 2, 2], 24, volume([3, 4, 5], 40))];
    let mut worst = [[0.0_f64; 2]; 3];
    for setup in tile_setups().iter().chain(&transposed) {
        let Some(device) = super::open_in(Precision::Tf32) else { return };
        let found = run::<f32>(setup, Box::new(device), fractions);
        let cpu = || Box::new(CpuDevice::new().unwrap().direct());
        let exact = run::<f64>(setup, cpu(), fractions);
        let rounded = run::<f64>(setup, cpu(), |count, index| {
            // Neither the bias nor what lies beside the slices is a factor.
            let is_factor = index < 2 || index == if setup.sliced { 5 } else { 3 };
            let values = fractions(count, index);
            if is_factor { values.into_iter().map(round_to_tf32).collect() } else { values }
        });
        for (index, what) in ["out", "dx", "dweight"].into_iter().enumerate() {
            let errors = [&exact, &rounded].map(|expected| error(&found[index], &expected[index]));
            let Setup { op, x, .. } = setup;
            let case = format!(
                "{what} of {op:?} of {x}: {:.1e} from exact, {:.1e} from rounded factors",
                errors[0], errors[1]
            );
            println!("{case}");
            let is = |property: fn(&Convolution) -> bool| matches!(op, Layer::Convolution(op) if property(op));
            // The input gradient of a strided window has no tiles, and is in f32.
            let rounds = index != 1 || !is(|op| op.window.stride != [1; 3]);
            // Which values a ReLU lets through differs, too.
            let most = if index > 0 && is(|op| op.relu) { 2e-2 } else { 2e-3 };
            let [from_exact, from_rounded] = if rounds { errors } else { [errors[1], errors[0]] };
            assert!((1e-4..most).contains(&from_exact) && from_rounded < tf32_sums(), "{case}");
            let [exact, rounded] = worst[index];
            worst[index] = [exact.max(from_exact), rounded.max(from_rounded)];
        }
    }
    for (what, [exact, rounded]) in ["out", "dx", "dweight"].into_iter().zip(worst) {
        println!("{what}: at most {exact:.1e} from exact, {rounded:.1e} from rounded factors");
    }
}

/// Forward, what fp16 cannot hold is the largest that it can; a gradient becomes infinite, which lowers the loss scale. On
/// the CPU that rounds, too.
#[test]
fn fp16_saturates_forward_alone() {
    let x = volume([1, 9, 17], 16);
    let setups = [
        (convolution(Window::same(3), 16, x.clone()), 65504.0),
        (relu(Window::same(1), 16, x.clone()), 65504.0),
        (transposed([1, 2, 2], 16, x.clone()), 65504.0),
        // Not of tensor cores.
        (convolution(Window::square(3, 2, 1), 16, x), f32::INFINITY),
    ];
    for (setup, expected) in setups {
        let Some(cuda) = super::open_in(Precision::Fp16) else { return };
        let cpu = super::rounding::cpu(Precision::Fp16);
        for mut device in [Box::new(cuda) as Box<dyn Device<f32>>, Box::new(cpu)] {
            let Built { graph, inputs, kept } = setup.build();
            let counts: Vec<usize> = inputs.iter().chain(&kept).map(|&value| graph.shape(value).values()).collect();
            let step = device.load(graph, &kept).unwrap();
            for (&input, &count) in inputs.iter().zip(&counts) {
                device.write(step, input, &vec![-100.0; count]).unwrap(); // of the image, the weights, the bias and dout
            }
            device.run(step).unwrap();
            let [out, dx] = [0, 1].map(|index| {
                let mut found = vec![0.0; counts[inputs.len() + index]];
                device.read(step, kept[index], &mut found).unwrap();
                found
            });
            // 16 products of 10000 and more: 160000, which only fp16 cannot hold.
            let (name, op) = (device.name(), &setup.op);
            assert!(out.iter().all(|&value| value == expected), "{name}: {op:?}");
            assert!(dx.iter().all(|&value| value == f32::INFINITY), "{name}: {op:?}");
        }
    }
}

/// Threads and blocks in other orders show a missing barrier.
#[test]
fn any_order_of_threads() {
    if in_child() || std::env::var_os("RARUNET_TEST_DEVICE").is_some() {
        return;
    }
    for order in ["reversed", "shuffled:7"] {
        for test in ["tiles", "anything_goes", "few_channels", "few_pixels", "transposed_convolution"] {
            let (passed, printed) =
                run_in_child(&format!("cuda::convolution::{test}"), &[("RARUNET_EMULATOR_ORDER", order)]);
            assert!(passed && printed.contains("1 passed"), "{order}: {printed}");
        }
    }
}
