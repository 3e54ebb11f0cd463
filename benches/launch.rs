//! What a launch costs, by cudarc and by cust: a hundred launches of a small kernel, and waiting for them. Run by
//! `scripts/cust.sh bench`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use cust::launch;
use cust::memory::DeviceBuffer;
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use rarunet_cuda::device::emulator;
use rarunet_cuda::device::kernels::{Element, IMAGES, RELU_FORWARD};

const LAUNCHES: u64 = 100;
/// Elements: one block's work.
const COUNT: i32 = 256;

fn launches(criterion: &mut Criterion) {
    if std::env::var_os("RARUNET_TEST_DEVICE").is_none() {
        emulator::open().expect("the emulator was built");
    }
    let wanted = (RELU_FORWARD.file, Some(Element::F32));
    let image =
        IMAGES.iter().find(|image| (image.file, image.element) == wanted).expect("it is compiled for f32").bytes;
    let symbol = RELU_FORWARD.symbol(Some(Element::F32));
    let mut group = criterion.benchmark_group("launch");
    group.sample_size(20).throughput(Throughput::Elements(LAUNCHES));

    let context = CudaContext::new(0).expect("there is a device");
    // SAFETY: one stream does all the work.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("streams are unlimited");
    let module = context.load_module(Ptx::from_binary(image.to_vec())).expect("the image is this build's");
    let function = module.load_function(&symbol).expect("the kernel exists");
    let mut values = stream.alloc_zeros::<f32>(COUNT as usize).expect("there is room");
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 256, 1), shared_mem_bytes: 0 };
    group.bench_function("cudarc", |bencher| {
        bencher.iter(|| {
            for _ in 0..LAUNCHES {
                let (x, sizes) = (values.slice(0..), [COUNT, 1, 1, 1, 1]);
                let mut builder = stream.launch_builder(&function);
                builder.arg(&x).arg(&x);
                for size in &sizes {
                    builder.arg(size);
                }
                // SAFETY: the kernel's arguments; relu may work in place.
                unsafe { builder.launch(shape) }.expect("it is launched");
            }
            stream.synchronize().expect("it runs");
        });
    });
    stream.memset_zeros(&mut values).expect("it is there");

    let _context = cust::context::Context::new(cust::device::Device::get_device(0).expect("there is a device"));
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).expect("streams are unlimited");
    let module = Module::from_fatbin(image, &[]).expect("the image is this build's");
    let function = module.get_function(&symbol).expect("the kernel exists");
    let values = DeviceBuffer::from_slice(&[0.0f32; COUNT as usize]).expect("there is room");
    group.bench_function("cust", |bencher| {
        bencher.iter(|| {
            for _ in 0..LAUNCHES {
                let x = values.as_device_ptr();
                // SAFETY: the kernel's arguments; relu may work in place.
                unsafe { launch!(function<<<1, (1, 256, 1), 0, stream>>>(x, x, COUNT, 1i32, 1i32, 1i32, 1i32)) }
                    .expect("it is launched");
            }
            stream.synchronize().expect("it runs");
        });
    });
    group.finish();
}

criterion_group!(benches, launches);
criterion_main!(benches);
