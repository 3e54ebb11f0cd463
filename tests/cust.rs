//! The same kernels, loaded and launched by cust, whose code and bindings are not cudarc's: what both compute agrees bit
//! by bit. Run by `scripts/cust.sh`, which says what libcuda to link.

use cust::context::Context;
use cust::device::Device as CustDevice;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use cust::{CudaFlags, launch};
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::kernels::{ADD_FORWARD, Element, IMAGES, Kernel, RELU_FORWARD, SIGMOID_FORWARD};
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::{Graph, ValueId};
use rarunet_cuda::ops::{add::Add, relu::Relu, sigmoid::Sigmoid};
use rarunet_cuda::tensor::Shape;

/// Pixels and channels of the tensors.
const SHAPES: [(usize, usize); 4] = [(1, 1), (35, 3), (1000, 16), (77, 64)];

/// As the other tests choose it: the GPU that `RARUNET_TEST_DEVICE` names, or the emulator.
fn open() -> CudaDevice {
    let device = match std::env::var("RARUNET_TEST_DEVICE") {
        Ok(name) => {
            assert_eq!(name, "cuda:0", "cust takes the first GPU");
            CudaDevice::open(0, Some(Precision::F32))
        }
        Err(_) => CudaDevice::emulator(Some(Precision::F32)),
    };
    device.unwrap()
}

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 8192.0 - 4.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The output of a graph with one op, by way of this crate's device.
fn by_cudarc(
    (pixels, channels): (usize, usize),
    inputs: &[&[f32]],
    build: impl Fn(&mut Graph, &[ValueId]) -> ValueId,
) -> Vec<f32> {
    let mut device = open();
    let mut graph = Graph::new();
    let ids: Vec<ValueId> = inputs.iter().map(|_| graph.input(Shape::image(1, 1, pixels, channels))).collect();
    let out = build(&mut graph, &ids);
    let step = device.load(graph, &[out]).unwrap();
    for (id, input) in ids.iter().zip(inputs) {
        device.write(step, *id, input).unwrap();
    }
    device.run(step).unwrap();
    let mut found = vec![0.0; pixels * channels];
    device.read(step, out, &mut found).unwrap();
    found
}

/// A context, a stream, and a kernel's module. Fields are dropped in this order.
struct Cust {
    module: Module,
    stream: Stream,
    _context: Context,
}

impl Cust {
    fn new(kernel: Kernel) -> Self {
        cust::init(CudaFlags::empty()).unwrap();
        let context = Context::new(CustDevice::get_device(0).unwrap()).unwrap();
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
        let wanted = (kernel.file, Some(Element::F32));
        let image = IMAGES.iter().find(|image| (image.file, image.element) == wanted).unwrap().bytes;
        Cust { module: Module::from_fatbin(image, &[]).unwrap(), stream, _context: context }
    }

    /// The output of a kernel of one or two inputs, one channel a thread, on a grid of its own choice.
    fn run(&self, kernel: Kernel, (pixels, channels): (usize, usize), inputs: &[&[f32]]) -> Vec<f32> {
        let function = self.module.get_function(kernel.symbol(Some(Element::F32))).unwrap();
        let stream = &self.stream;
        let inputs: Vec<_> = inputs.iter().map(|input| DeviceBuffer::from_slice(input).unwrap()).collect();
        let out = DeviceBuffer::from_slice(&vec![f32::NAN; pixels * channels]).unwrap();
        let (grid, block) = ((3, 1, 1), (channels as u32, 2, 1));
        let (out_pointer, p, c) = (out.as_device_ptr(), pixels as i32, channels as i32);
        // SAFETY: the arguments are those of kernels/{add,relu,sigmoid}.cu, and the buffers are as long as they say.
        unsafe {
            match &inputs[..] {
                [x] => launch!(function<<<grid, block, 0, stream>>>(out_pointer, x.as_device_ptr(), p, c, c, c, 1i32)),
                [a, b] => launch!(function<<<grid, block, 0, stream>>>(
                    out_pointer, a.as_device_ptr(), b.as_device_ptr(), p, c, c, c, c, 1i32, 0i32
                )),
                _ => panic!("one or two inputs"),
            }
        }
        .unwrap();
        self.stream.synchronize().unwrap();
        let mut found = vec![0.0; pixels * channels];
        out.copy_to(&mut found).unwrap();
        found
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Both ways give the same bits, and what `expected` says to within 1e-6.
fn check(
    kernel: Kernel,
    inputs: usize,
    build: impl Fn(&mut Graph, &[ValueId]) -> ValueId + Copy,
    expected: impl Fn(&[f32]) -> f32,
) {
    open(); // the emulator, if it is to be used, before cust looks for a driver
    let cust = Cust::new(kernel);
    for shape in SHAPES {
        let values: Vec<_> = (0..inputs).map(|index| numbers(shape.0 * shape.1, 1 + index as u32)).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let (first, second) = (by_cudarc(shape, &values, build), cust.run(kernel, shape, &values));
        assert_eq!(bits(&first), bits(&second), "{} of {shape:?}", kernel.name);
        for (index, found) in second.iter().enumerate() {
            let expected = expected(&values.iter().map(|values| values[index]).collect::<Vec<_>>());
            assert!((found - expected).abs() <= 1e-6, "{}: {found} instead of {expected}", kernel.name);
        }
    }
}

#[test]
fn add_agrees() {
    check(ADD_FORWARD, 2, |graph, x| graph.apply_one(Add::default(), x).unwrap(), |x| x[0] + x[1]);
}

#[test]
fn relu_agrees() {
    check(RELU_FORWARD, 1, |graph, x| graph.apply_one(Relu, x).unwrap(), |x| x[0].max(0.0));
}

#[test]
fn sigmoid_agrees() {
    check(SIGMOID_FORWARD, 1, |graph, x| graph.apply_one(Sigmoid, x).unwrap(), |x| 1.0 / (1.0 + (-x[0]).exp()));
}

/// A name that no kernel has is an error of cust's, too.
#[test]
fn unknown_kernels_are_refused() {
    open();
    assert!(Cust::new(RELU_FORWARD).module.get_function("relu_sideways_f32").is_err());
}
