//! The CUDA device, on the emulator: what its kernels compute and where they write, its graphs, memory and errors.
//!
//! `RARUNET_TEST_DEVICE=cuda:0` runs these tests on a GPU. Without either they say so and pass.

mod checked;
mod convolution;
mod errors;
mod pooling;
mod rounding;
mod timing;
mod training;

use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::cuda::{CudaDevice, Padding};
use rarunet_cuda::device::{Device, Precision, StepId, emulator};
use rarunet_cuda::gradcheck;
use rarunet_cuda::graph::{Graph, Region, ValueId};
use rarunet_cuda::model::{Mode, Model, Network};
use rarunet_cuda::ops::add::Add;
use rarunet_cuda::ops::batch_norm::BatchNormScale;
use rarunet_cuda::plan::Plan;
use rarunet_cuda::tensor::{Channels, Shape};

/// What f32 kernels agree to with f64 and its central differences, of a tensor's largest magnitude.
const TOLERANCE: f64 = 1e-5;

/// The device that is tested; None, said on stderr, if there is none.
pub fn open() -> Option<CudaDevice> {
    open_in(Precision::F32)
}

/// As [`open`], in this precision.
pub fn open_in(precision: Precision) -> Option<CudaDevice> {
    let device = match std::env::var("RARUNET_TEST_DEVICE") {
        Ok(name) => {
            let ordinal = name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
            CudaDevice::open(ordinal.expect("RARUNET_TEST_DEVICE is cuda:<number>"), Some(precision))
        }
        Err(_) if emulator::LIBRARY.is_empty() => {
            eprintln!("skipped: no CUDA emulator in this build");
            return None;
        }
        Err(_) => CudaDevice::emulator(Some(precision)),
    };
    Some(device.unwrap())
}

/// Runs every step with its kernels watched, and forwards all else.
struct Checked(CudaDevice, Padding);

impl Device<f32> for Checked {
    fn name(&self) -> String {
        self.0.name()
    }
    fn precision(&self) -> Precision {
        self.0.precision()
    }
    fn allocate_state(&mut self, region: Region, count: usize) -> rarunet_cuda::Result<()> {
        self.0.allocate_state(region, count)
    }
    fn load(&mut self, graph: Graph, keep: &[ValueId]) -> rarunet_cuda::Result<StepId> {
        self.0.load(graph, keep)
    }
    fn planned_bytes(&self) -> u64 {
        self.0.planned_bytes()
    }
    fn plan(&self, step: StepId) -> &Plan {
        self.0.plan(step)
    }
    fn write(&mut self, step: StepId, value: ValueId, data: &[f32]) -> rarunet_cuda::Result<()> {
        self.0.write(step, value, data)
    }
    fn run(&mut self, step: StepId) -> rarunet_cuda::Result<()> {
        self.0.run_checked(step, self.1)
    }
    fn run_nodes(&mut self, step: StepId, positions: &[usize]) -> rarunet_cuda::Result<()> {
        self.0.run_nodes(step, positions)
    }
    fn read(&mut self, step: StepId, value: ValueId, data: &mut [f32]) -> rarunet_cuda::Result<()> {
        self.0.read(step, value, data)
    }
    fn write_state(&mut self, region: Region, start: usize, data: &[f32]) -> rarunet_cuda::Result<()> {
        self.0.write_state(region, start, data)
    }
    fn read_state(&mut self, region: Region, start: usize, data: &mut [f32]) -> rarunet_cuda::Result<()> {
        self.0.read_state(region, start, data)
    }
    fn poison(&mut self) -> rarunet_cuda::Result<()> {
        self.0.poison()
    }
}

/// Every op's cases: outputs and gradients, that kernels write nothing but their outputs and workspaces, and that
/// padding stays zero.
fn check_gradients(precision: Precision, tolerance: f64) {
    if open_in(precision).is_none() {
        return;
    }
    let checked = || -> rarunet_cuda::Result<Box<dyn Device<f32>>> {
        Ok(Box::new(Checked(open_in(precision).unwrap(), Padding::Zero)))
    };
    let op = std::env::var("RARUNET_TEST_OP").ok();
    let checks = gradcheck::run(checked, op.as_deref(), tolerance, |case| eprintln!("{}", case.label())).unwrap();
    for check in &checks {
        println!("{:24} {:3} cases, {:.2e}", check.op, check.cases, check.max_relative_error);
    }
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn cuda_gradients() {
    check_gradients(Precision::F32, TOLERANCE);
}

/// The norm of the difference over the norm, with the factors of convolutions rounded to 11 bits.
#[test]
fn cuda_gradients_tf32() {
    check_gradients(Precision::Tf32, 2e-3);
}

/// With inputs and results rounded to 8 bits.
#[test]
fn cuda_gradients_bf16() {
    check_gradients(Precision::Bf16, 1e-2);
}

/// To 11 bits.
#[test]
fn cuda_gradients_fp16() {
    check_gradients(Precision::Fp16, 2e-3);
}

/// Whole networks write nothing but outputs and workspaces, and padding stays zero, in each mode.
#[test]
fn cuda_networks_write_their_outputs_alone() {
    for (name, precision) in [
        ("rar-unet", Precision::F32),
        ("dense-unet", Precision::F32),
        ("rar-unet", Precision::Tf32),
        ("rar-unet", Precision::Bf16),
        ("dense-unet", Precision::Fp16),
    ] {
        let Some(device) = open_in(precision) else { return };
        let model = Model::new(name, [8, 9, 10, 16, 24]).unwrap();
        let mut network = Network::new(model, Box::new(Checked(device, Padding::Zero))).unwrap();
        network.initialise(1).unwrap();
        for mode in [Mode::Train, Mode::Statistics, Mode::Evaluate] {
            let step = network.load(mode, 2, [16, 32]).unwrap();
            network.poison().unwrap();
            let (image, target) = training::batch(2 * 16 * 32, 3);
            network.write_batch(&step, &image, &target, &[1.0, 1.0]).unwrap();
            match mode {
                Mode::Train => drop(network.train(&step, 1e-3, 1).unwrap()),
                Mode::Statistics => network.estimate_statistics(&step, 1).unwrap(),
                Mode::Evaluate => drop(network.evaluate(&step).unwrap()),
            }
        }
    }
}

/// A channel that holds what is no number has no scale that is one; its neighbours do. On the CPU as well.
#[test]
fn cuda_statistics_keep_what_is_no_number() {
    let Some(cuda) = open() else { return };
    let devices: [Box<dyn Device<f32>>; 2] = [Box::new(cuda), Box::new(CpuDevice::new().unwrap())];
    for mut device in devices {
        let mut graph = Graph::new();
        let (image, vector) = (Shape::image(2, 5, 4, 3), Shape::vector(Channels::new(3)));
        let [x, gamma, beta] = [&image, &vector, &vector].map(|shape| graph.input(shape.clone()));
        let [mean, variance] =
            [0, vector.elements()].map(|start| graph.state(vector.clone(), Region::Statistics, start));
        let momentum = graph.input(Shape::flat(1));
        let norm = graph.apply(BatchNormScale::default(), &[x, gamma, beta, mean, variance, momentum]).unwrap();
        device.allocate_state(Region::Statistics, 2 * vector.elements()).unwrap();
        let step = device.load(graph, &norm[..2]).unwrap();
        let mut values: Vec<f32> = (0..image.values()).map(|index| (index % 7) as f32).collect();
        values[3 * 11 + 1] = f32::NAN;
        for (input, values) in [(x, &values[..]), (gamma, &[1.0; 3]), (beta, &[0.5; 3]), (momentum, &[0.1])] {
            device.write(step, input, values).unwrap();
        }
        device.run(step).unwrap();
        for output in &norm[..2] {
            let mut found = [0.0; 3];
            device.read(step, *output, &mut found).unwrap();
            assert_eq!(found.map(f32::is_nan), [false, true, false], "{}: {found:?}", device.name());
        }
    }
}

/// A graph that adds `inputs` and their sum in state, and what to write and read.
fn sum_graph(count: usize, start: usize) -> (Graph, ValueId, ValueId) {
    let mut graph = Graph::new();
    let shape = Shape::flat(count);
    let (state, x) = (graph.state(shape.clone(), Region::Parameters, start), graph.input(shape));
    let sum = graph.apply(Add::default(), &[state, x]).unwrap()[0];
    (graph, x, sum)
}

/// Captured steps go on working when another step or more state makes the memory move.
#[test]
fn cuda_graphs_follow_memory_that_moves() {
    let Some(mut device) = open() else { return };
    device.allocate_state(Region::Parameters, 4).unwrap();
    let (graph, x, sum) = sum_graph(4, 0);
    let step = device.load(graph, &[sum]).unwrap();
    let mut found = [0.0; 4];
    let mut total = [0.0; 4];
    for run in 0..9 {
        if run == 3 {
            device.allocate_state(Region::Parameters, 1 << 16).unwrap();
        }
        if run == 6 {
            let (larger, _, sum) = sum_graph(1 << 16, 0);
            device.load(larger, &[sum]).unwrap();
            device.poison().unwrap();
        }
        let values = [run as f32, 1.0, -2.0, 0.5];
        device.write(step, x, &values).unwrap();
        device.run(step).unwrap();
        device.read(step, sum, &mut found).unwrap();
        // The sum is stored where the state is.
        total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
        assert_eq!(found, total, "run {run}");
    }
}

/// Parameters are rounded in groups, the last of which must not reach beyond their memory.
#[test]
fn cuda_state_has_whole_groups() {
    for (precision, copy_bytes) in [(Precision::F32, 0), (Precision::Tf32, 0), (Precision::Bf16, 2)] {
        let Some(mut device) = open_in(precision) else { return };
        device.allocate_state(Region::Parameters, 13).unwrap();
        assert_eq!(device.planned_bytes(), 16 * (4 + copy_bytes), "{precision}");
    }
}

/// A step that reads what nobody wrote shows it.
#[test]
fn cuda_poison_is_not_a_number() {
    let Some(mut device) = open() else { return };
    let mut graph = Graph::new();
    let (a, b) = (graph.input(Shape::flat(5)), graph.input(Shape::flat(5)));
    let sum = graph.apply(Add::default(), &[a, b]).unwrap()[0];
    let step = device.load(graph, &[sum]).unwrap();
    device.poison().unwrap();
    device.write(step, a, &[1.0; 5]).unwrap();
    device.run(step).unwrap();
    let mut found = [0.0; 5];
    device.read(step, sum, &mut found).unwrap();
    assert!(found.iter().all(|value| value.is_nan()), "{found:?}");
}
