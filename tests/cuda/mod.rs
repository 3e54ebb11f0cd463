//! The CUDA device, on the emulator.

mod convolution;

use rarunet_cuda::device::Device;
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::gradcheck;

/// What f32 kernels and f64 central differences agree to.
const TOLERANCE: f64 = 1e-4;

fn emulator() -> Box<dyn Device<f32>> {
    Box::new(CudaDevice::emulator().unwrap())
}

#[test]
fn cuda_gradients() {
    let op = std::env::var("RARUNET_OP").ok();
    let checks =
        gradcheck::run::<f32>(|| Ok(emulator()), op.as_deref(), TOLERANCE, |case| eprintln!("{}", case.label()));
    for check in checks.unwrap() {
        println!("{:24} {:3} cases, {:.2e}", check.op, check.cases, check.max_relative_error);
        assert!(check.passed, "{check:?}");
    }
}
