//! Graph and plan: differentiation, memory, and what a step must leave alone.

use rarunet_cuda::device::Device;
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::graph::{Graph, Region, ValueId};
use rarunet_cuda::model::{Mode, Model, Network, StepGraph};
use rarunet_cuda::ops::add::Add;
use rarunet_cuda::ops::batch_norm::{BatchNorm, BatchNormScale};
use rarunet_cuda::ops::convolution::Convolution;
use rarunet_cuda::ops::fold::Fold;
use rarunet_cuda::ops::fold_residual::FoldResidual;
use rarunet_cuda::ops::relu::Relu;
use rarunet_cuda::ops::residual::Residual;
use rarunet_cuda::ops::sigmoid::Sigmoid;
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::tensor::{Shape, Storage};

const WIDTHS: [usize; 5] = [8, 16, 16, 24, 24];

fn network(model: &str, threads: usize) -> Network<f32> {
    let device = CpuDevice::with(Some(threads), rarunet_cuda::device::cpu::InstructionSet::best()).unwrap();
    let mut network = Network::new(Model::new(model, WIDTHS).unwrap(), Box::new(device)).unwrap();
    network.initialise(3).unwrap();
    network
}

fn batch(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// A step's inputs are still there after it, so that it can be run again.
#[test]
fn inputs_survive_a_step() {
    let losses = |rewrite: bool| {
        let mut network = network("rar-unet", 2);
        let step = network.load(Mode::Train, 2, [32, 48]).unwrap();
        let (image, target) = (batch(2 * 32 * 48, 1), batch(2 * 32 * 48, 2));
        (1..4)
            .map(|number| {
                if rewrite || number == 1 {
                    network.write_batch(&step, &image, &target, &[1.0, 1.0]).unwrap();
                }
                network.train(&step, 1e-3, number).unwrap()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(losses(true), losses(false));
}

/// The same bits for any number of threads, and whatever stood in the arena before.
#[test]
fn steps_are_bit_equal_for_any_number_of_threads() {
    let run = |threads: usize, poison: bool| {
        let mut network = network("rar-unet", threads);
        let step = network.load(Mode::Train, 3, [48, 32]).unwrap();
        let (image, target) = (batch(3 * 48 * 32, 1), batch(3 * 48 * 32, 2));
        let mut losses = Vec::new();
        for number in 1..4 {
            if poison {
                network.poison().unwrap();
            }
            network.write_batch(&step, &image, &target, &[1.0, 0.0, 1.0]).unwrap();
            losses.push(network.train(&step, 1e-3, number).unwrap());
        }
        (losses, network.weights().unwrap(), network.moments().unwrap())
    };
    let expected = run(1, false);
    assert!(expected.0.iter().all(|losses| losses.batch.is_finite()));
    for (threads, poison) in [(1, true), (2, false), (3, true), (4, false)] {
        assert_eq!(run(threads, poison), expected, "{threads} threads, poisoned: {poison}");
    }
}

/// An output takes the storage of an input that nobody reads any more, and only of such a one.
#[test]
fn storage_is_shared_only_where_nobody_reads() {
    let shape = Shape::image(1, 4, 4, 8);
    let mut graph = Graph::new();
    let x = graph.input(shape.clone());
    let a = graph.apply_one(Relu, &[x]).unwrap();
    let b = graph.apply_one(Sigmoid, &[a]).unwrap();
    let c = graph.apply_one(Add::default(), &[a, b]).unwrap();
    let d = graph.apply_one(Sigmoid, &[c]).unwrap();
    let mut device = CpuDevice::<f32>::new().unwrap();
    let step = device.load(graph, &[d]).unwrap();
    let place = |value| device.plan(step).location(value);
    assert_ne!(place(x), place(a), "an input is kept");
    assert_ne!(place(a), place(b), "a is read again");
    assert_eq!(place(a), place(c), "c can take a's place");
    assert_eq!(place(c), place(d));
    let elements = shape.elements();
    assert!(device.plan(step).arena <= 3 * elements * size_of::<f32>(), "three buffers are enough");
    let values = batch(elements, 5);
    device.write(step, x, &values).unwrap();
    device.run(step).unwrap();
    let mut out = vec![0.0; elements];
    device.read(step, d, &mut out).unwrap();
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    for (x, out) in values.into_iter().zip(out) {
        assert!((sigmoid(x + sigmoid(x)) - out).abs() < 1e-6);
    }
}

/// What sums the gradients of a ReLU's output masks them as well, unless the unmasked sum is wanted, too.
#[test]
fn a_relu_is_differentiated_in_passing() {
    let shape = Shape::image(1, 4, 4, 8);
    let gradients = |with_output: bool| {
        let mut graph = Graph::new();
        let [x, dout] = [(); 2].map(|()| graph.input(shape.clone()));
        let y = graph.apply_one(Relu, &[x]).unwrap();
        let branches = [(); 2].map(|()| graph.apply_one(Sigmoid, &[y]).unwrap());
        let out = graph.apply_one(Add::default(), &branches).unwrap();
        let wrt = if with_output { vec![x, y] } else { vec![x] };
        let gradients: Vec<_> = graph.differentiate(&[(out, dout)], &wrt).unwrap().into_iter().flatten().collect();
        let passes = graph.nodes().iter().filter(|node| node.op.name() == "relu_gradient").count();
        let mut device = CpuDevice::<f32>::new().unwrap();
        let step = device.load(graph, &gradients).unwrap();
        let values: Vec<f32> = batch(shape.elements(), 5).iter().map(|value| value - 0.5).collect();
        device.write(step, x, &values).unwrap();
        device.write(step, dout, &batch(shape.elements(), 6)).unwrap();
        device.run(step).unwrap();
        let mut found = vec![vec![0.0; shape.elements()]; gradients.len()];
        found.iter_mut().zip(gradients).for_each(|(found, value)| device.read(step, value, found).unwrap());
        (passes, values, found)
    };
    let (passes, values, alone) = gradients(false);
    assert_eq!(passes, 0, "the sum masks");
    let (passes, _, both) = gradients(true);
    assert_eq!(passes, 1, "the sum is wanted as it is");
    assert_eq!(alone[0], both[0]);
    assert!(values.iter().any(|&x| x < 0.0) && both[1].iter().all(|&dy| dy > 0.0));
    for ((x, dx), dy) in values.into_iter().zip(&both[0]).zip(&both[1]) {
        assert_eq!(*dx, if x > 0.0 { *dy } else { 0.0 });
    }
}

/// What CBAM's pools and gate give to the gradient of a tensor, or of its map, takes one pass and no sum.
#[test]
fn gradients_of_attention_are_joined() {
    let mut step = Model::new("rar-unet", [8; 5]).unwrap().graph(Mode::Train, 1, [32, 32]).unwrap();
    let (graph, kept) = (std::mem::take(&mut step.graph), step.kept());
    let mut device = CpuDevice::<f32>::new().unwrap();
    let step = device.load(graph, &kept).unwrap();
    let plan = device.plan(step);
    let names: Vec<_> = plan.nodes.iter().map(|node| plan.graph.nodes()[node.index].op.name()).collect();
    let count = |name: &str| names.iter().filter(|&&it| it == name).count();
    assert_eq!(["attention_gradient", "attention_map_gradient", "channel_gate_gradient"].map(count), [4, 4, 4]);
    assert_eq!(["add", "add_masked"].map(count), [0, 0]);
}

/// The gradient of a batch norm of `whole`, with respect to `wrt`: how many passes mask it, and the values' gradients.
fn batch_norm_gradients(
    mut graph: Graph,
    whole: ValueId,
    given: &[ValueId],
    wrt: &[ValueId],
) -> (usize, Vec<Vec<f32>>) {
    let shape = graph.shape(whole).clone();
    let vector = Shape::vector(shape.channels.clone());
    let count = vector.elements();
    let [gamma, beta] = [(); 2].map(|()| graph.input(vector.clone()));
    let [mean, variance] = [0, count].map(|start| graph.state(vector.clone(), Region::Statistics, start));
    let momentum = graph.input(Shape::flat(1));
    let dout = graph.input(shape.clone());
    let out = graph.apply(BatchNorm::default(), &[whole, gamma, beta, mean, variance, momentum]).unwrap()[0];
    let gradients: Vec<_> = graph.differentiate(&[(out, dout)], wrt).unwrap().into_iter().map(Option::unwrap).collect();
    let passes = graph.nodes().iter().filter(|node| node.op.name() == "relu_gradient").count();
    let counts: Vec<usize> = wrt.iter().map(|&value| graph.shape(value).elements()).collect();
    let written: Vec<(ValueId, usize)> =
        given.iter().chain(&[gamma, dout]).map(|&value| (value, graph.shape(value).elements())).collect();
    let mut device = CpuDevice::<f32>::new().unwrap();
    device.allocate_state(Region::Statistics, 2 * count).unwrap();
    let step = device.load(graph, &gradients).unwrap();
    for (seed, (value, count)) in (5..).zip(written) {
        let values: Vec<f32> = batch(count, seed).iter().map(|value| value - 0.5).collect();
        device.write(step, value, &values).unwrap();
    }
    device.run(step).unwrap();
    let read = |(&value, &count): (&ValueId, &usize)| {
        let mut found = vec![0.0; count];
        device.read(step, value, &mut found).unwrap();
        found
    };
    (passes, gradients.iter().zip(&counts).map(read).collect())
}

/// Batch norm's gradient masks the channels that end in a ReLU, unless the gradient of all of them is wanted as it is.
#[test]
fn a_part_that_ends_in_a_relu_is_differentiated_in_passing() {
    let gradients = |with_whole: bool| {
        let mut graph = Graph::new();
        let given = [(); 2].map(|()| graph.input(Shape::image(1, 4, 4, 8)));
        let part = graph.apply_one(Relu, &given[1..]).unwrap();
        let whole = graph.concat(&[given[0], part]).unwrap();
        let wrt = if with_whole { [&given[..], &[whole]].concat() } else { given.to_vec() };
        batch_norm_gradients(graph, whole, &given, &wrt)
    };
    let (passes, alone) = gradients(false);
    assert_eq!(passes, 0, "batch norm's gradient masks");
    let (passes, all) = gradients(true);
    assert_eq!(passes, 1, "the whole's gradient is wanted as it is");
    assert_eq!(alone, all[..2]);
    assert!(alone[0].iter().all(|&dx| dx != 0.0) && alone[1].contains(&0.0));
    assert!(all[2].iter().all(|&dx| dx != 0.0), "not masked");
}

/// Of a residual block's inner ReLU bits of its output are kept, by which those who read its gradient mask that of the sum.
#[test]
fn a_residual_block_keeps_bits() {
    let step = Model::new("rar-unet", WIDTHS).unwrap().graph(Mode::Train, 1, [32, 32]).unwrap();
    let count = |name: &str| step.graph.nodes().iter().filter(|node| node.op.name() == name).count();
    // The deepest block has no batch norm.
    assert_eq!(["residual", "relu_gradient"].map(count), [10, 1]);
    let bits = step.graph.values().iter().filter(|value| value.shape.storage == Storage::Bits);
    let sizes: Vec<usize> = bits.map(|value| value.shape.elements()).collect();
    // A byte for eight channels of each pixel: 32 x 32 of 8 channels four times, then 16 x 16 of 16 three times, and so on.
    assert_eq!(sizes, [1024, 1024, 1024, 1024, 512, 512, 512, 128, 128, 48]);
}

/// A decoder's batch norm is folded into the layer that reads it, and that before a residual block into the block; its part of
/// the gradient into theirs.
#[test]
fn some_batch_norms_take_no_pass() {
    let graph = Model::new("rar-unet", WIDTHS).unwrap().graph(Mode::Train, 1, [32, 32]).unwrap().graph;
    let count = |name: &str| graph.nodes().iter().filter(|node| node.op.name() == name).count();
    let folds = ["batch_norm", "batch_norm_scale", "fold", "fold_residual"].map(count);
    assert_eq!(folds, [4, 14, 4, 10]);
    assert_eq!(count("affine"), 0);
}

/// The input gradient of a residual block's shortcut is part of that of its 3x3 convolution: of 1x1 ones the head's and the
/// shared MLPs' are left.
#[test]
fn a_shortcut_is_differentiated_in_passing() {
    let model = Model::new("rar-unet", WIDTHS).unwrap();
    let StepGraph { graph, gradients, .. } = model.graph(Mode::Train, 1, [32, 32]).unwrap();
    let mut device = CpuDevice::<f32>::new().unwrap();
    for region in Region::ALL {
        device.allocate_state(region, 1 << 20).unwrap();
    }
    let step = device.load(graph, &[gradients.unwrap()]).unwrap();
    let plan = device.plan(step);
    let names = plan.nodes.iter().map(|node| plan.graph.nodes()[node.index].op.name());
    let (same, head, mlps, spatial) = (27, 1, 8, 4);
    assert_eq!(names.filter(|&name| name == "convolution_input_gradient").count(), same + head + mlps + spatial);
}

/// A batch norm that is folded into a convolution, and one that is applied before it: outputs and gradients.
#[test]
fn a_folded_batch_norm_is_one_that_is_applied() {
    let shape = Shape::image(2, 4, 5, 11);
    let layer = Convolution::new(Window::same(1), 1);
    let run = |folded: bool| {
        let mut graph = Graph::new();
        let vector = Shape::vector(shape.channels.clone());
        let x = graph.input(shape.clone());
        let [gamma, beta] = [(); 2].map(|()| graph.input(vector.clone()));
        let weight = graph.input(layer.weight_shape(&shape.channels));
        let [bias, momentum] = [(); 2].map(|()| graph.input(Shape::flat(1)));
        let dout = graph.input(Shape::image(2, 4, 5, 1));
        let [mean, variance] = [0, vector.elements()].map(|at| graph.state(vector.clone(), Region::Statistics, at));
        let operands = [x, gamma, beta, mean, variance, momentum];
        let out = if folded {
            let norm = graph.apply(BatchNormScale::default(), &operands).unwrap();
            let layers = graph.apply(Fold, &[weight, bias, norm[0], norm[1], norm[2]]).unwrap();
            graph.apply_one(layer.clone(), &[x, layers[0], layers[1]]).unwrap()
        } else {
            let y = graph.apply(BatchNorm::default(), &operands).unwrap()[0];
            graph.apply_one(layer.clone(), &[y, weight, bias]).unwrap()
        };
        let wrt = [x, gamma, beta, weight, bias];
        let gradients = graph.differentiate(&[(out, dout)], &wrt).unwrap().into_iter().map(Option::unwrap);
        let found: Vec<ValueId> = [out].into_iter().chain(gradients).collect();
        // Far from 0, so that a mean that is forgotten shows.
        let given = [x, gamma, beta, bias, momentum, dout].into_iter().zip(3..).map(|(value, seed)| {
            let values = batch(graph.shape(value).values(), seed);
            (value, values.into_iter().map(|value| f64::from(value) + 1.5).collect())
        });
        // The rows of padded channels are zero.
        let padded = layer.weight_shape(&shape.channels).values();
        let weights = (0..padded).map(|row| if row < 11 { 0.3 * row as f64 - 1.0 } else { 0.0 }).collect();
        let given = given.chain([(weight, weights)]).collect();
        compute(graph, &found, given)
    };
    assert_close(&run(true), &run(false), 1e-11);
}

/// The same of one between two residual blocks, where the second one's border has no shift.
#[test]
fn a_batch_norm_folded_into_a_residual_block_is_one_that_is_applied() {
    let shape = Shape::image(2, 5, 4, 16);
    let run = |folded: bool| {
        let mut graph = Graph::new();
        let first = Residual::new(8, true);
        let second = if folded { Residual::bordered(16, true) } else { Residual::new(16, true) };
        let vector = Shape::vector(first.main.out.clone());
        let sum = shape.with_channels(first.main.out.clone());
        let shapes = [
            &[shape.clone()][..],
            &first.parameter_shapes(&shape.channels),
            &[vector.clone(), vector.clone()],
            &second.parameter_shapes(&sum.channels),
        ];
        let inputs: Vec<ValueId> = shapes.concat().into_iter().map(|shape| graph.input(shape)).collect();
        let (momentum, dout) = (graph.input(Shape::flat(1)), graph.input(shape.clone()));
        let [mean, variance] = [0, vector.elements()].map(|at| graph.state(vector.clone(), Region::Statistics, at));
        let sum = graph.apply(first, &inputs[..5]).unwrap()[0];
        let norm = [sum, inputs[5], inputs[6], mean, variance, momentum];
        let out = if folded {
            let norm = graph.apply(BatchNormScale::default(), &norm).unwrap();
            let folded = graph.apply(FoldResidual, &[&inputs[7..], &norm[..3]].concat()).unwrap();
            graph.apply(second, &[&[sum], &folded[..]].concat()).unwrap()[0]
        } else {
            let y = graph.apply(BatchNorm::default(), &norm).unwrap()[0];
            graph.apply(second, &[&[y], &inputs[7..]].concat()).unwrap()[0]
        };
        let gradients = graph.differentiate(&[(out, dout)], &inputs).unwrap().into_iter().map(Option::unwrap);
        let found: Vec<ValueId> = [out].into_iter().chain(gradients).collect();
        let given = inputs.into_iter().chain([momentum, dout]).zip(3..).map(|(value, seed)| {
            let values = batch(graph.shape(value).values(), seed);
            (value, values.into_iter().map(|value| f64::from(value) - 0.4).collect())
        });
        let given = given.collect();
        compute(graph, &found, given)
    };
    assert_close(&run(true), &run(false), 1e-9);
}

/// What a step on the CPU in f64 finds, of what it is given; there may be statistics of a few channels.
fn compute(graph: Graph, found: &[ValueId], given: Vec<(ValueId, Vec<f64>)>) -> Vec<Vec<f64>> {
    let counts: Vec<usize> = found.iter().map(|&value| graph.shape(value).values()).collect();
    let mut device = CpuDevice::<f64>::new().unwrap();
    device.allocate_state(Region::Statistics, 64).unwrap();
    let step = device.load(graph, found).unwrap();
    device.poison().unwrap();
    for (value, values) in given {
        device.write(step, value, &values).unwrap();
    }
    device.run(step).unwrap();
    let read = |(&value, count): (&ValueId, usize)| {
        let mut found = vec![0.0; count];
        device.read(step, value, &mut found).unwrap();
        found
    };
    found.iter().zip(counts).map(read).collect()
}

fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < tolerance * (1.0 + expected.abs()), "{found} {expected}");
    }
}

/// Of a step's tensors behind a ReLU, only the deepest block's, which has no batch norm, is masked in a pass of its own.
#[test]
fn a_step_masks_in_passing() {
    let graph = Model::new("rar-unet", WIDTHS).unwrap().graph(Mode::Train, 1, [32, 32]).unwrap().graph;
    let passes = graph.nodes().iter().filter(|node| node.op.name() == "relu_gradient").count();
    assert_eq!(passes, 1);
}

/// Parts of a concatenation are produced in their slices: nothing is copied but what already lives elsewhere.
#[test]
fn concatenation_copies_only_the_image() {
    let copies = |model: &str| {
        let graph =
            Model::new(model, [32, 64, 128, 256, 512]).unwrap().graph(Mode::Evaluate, 1, [32, 32]).unwrap().graph;
        graph.nodes().iter().filter(|node| node.op.name() == "concat_copy").count()
    };
    assert_eq!(copies("unet"), 0);
    assert_eq!(copies("rar-unet"), 1, "the image, which is written from outside");
}

/// The paper's counts, Table 4 and Table 1.
#[test]
fn parameter_counts_are_the_papers() {
    let expected = [
        ("unet", 7_762_465),
        ("residual-unet", 9_899_625),
        ("path-unet", 8_912_673),
        ("attention-unet", 7_785_157),
        ("residual-attention-unet", 9_922_317),
        ("residual-path-unet", 11_049_833),
        ("rar-unet", 11_794_125),
        ("dense-unet", 15_484_683),
    ];
    for (name, count) in expected {
        assert_eq!(Model::new(name, rarunet_cuda::model::PAPER_WIDTHS).unwrap().parameter_count(), count, "{name}");
    }
}

/// 43.6 GFLOP forward and 130.8 with the backward pass, an image of 256 x 256.
#[test]
fn operations_are_the_papers_network() {
    let model = Model::new("rar-unet", rarunet_cuda::model::PAPER_WIDTHS).unwrap();
    let mut device = CpuDevice::<f32>::new().unwrap();
    for (mode, gflop) in [(Mode::Evaluate, 43.6), (Mode::Train, 130.8)] {
        let graph = model.graph(mode, 1, [256, 256]).unwrap();
        let step = device.load(graph.graph, &[graph.prediction, graph.loss]).unwrap();
        let found = device.plan(step).operations as f64 / 1e9;
        assert!((found / gflop - 1.0).abs() < 0.01, "{mode:?}: {found} GFLOP, not {gflop}");
    }
}

/// Narrow and odd widths work for every model.
#[test]
fn any_widths_train() {
    for architecture in rarunet_cuda::model::ARCHITECTURES {
        for widths in [[1, 2, 3, 4, 5], [9, 7, 33, 16, 8]] {
            let model = Model::new(architecture.name, widths).unwrap();
            let mut network = Network::new(model, Box::new(CpuDevice::<f32>::new().unwrap())).unwrap();
            network.initialise(1).unwrap();
            let step = network.load(Mode::Train, 2, [16, 32]).unwrap();
            network.poison().unwrap();
            network.write_batch(&step, &batch(1024, 1), &batch(1024, 2), &[1.0, 1.0]).unwrap();
            let losses = network.train(&step, 1e-3, 1).unwrap();
            assert!(losses.batch.is_finite(), "{} {widths:?}", architecture.name);
            let weights = network.weights().unwrap();
            assert!(weights.values().flatten().all(|value| value.is_finite()), "{} {widths:?}", architecture.name);
        }
    }
}
