//! The devices that are timed: `cpu`, and the one that `RARUNET_TEST_DEVICE` names (`cuda:<number>` or `emulator`), in
//! the precision that `RARUNET_TEST_PRECISION` names, or what suits it.

use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::device::cuda::CudaDevice;
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::model::{Mode, Model, Network, PAPER_WIDTHS, Step};

/// RAR-U-Net on a device, with a step that is ready to run.
pub struct Loaded {
    pub network: Network<f32>,
    pub step: Step,
}

/// Loads a step at a size that suits the device: the paper's on a GPU, less on the CPU, and next to nothing on the
/// emulator.
pub fn load(name: &str, mode: Mode) -> Loaded {
    let precision = std::env::var("RARUNET_TEST_PRECISION").ok().map(|name| {
        let found = Precision::ALL.into_iter().find(|precision| precision.name() == name);
        found.expect("RARUNET_TEST_PRECISION is f32, tf32, bf16 or fp16")
    });
    let (device, widths, size, batch): (Box<dyn Device<f32>>, _, _, _) = match name {
        "cpu" => (Box::new(CpuDevice::new().expect("threads start")), PAPER_WIDTHS, 64, 2),
        "emulator" => (Box::new(CudaDevice::emulator(precision).expect("it was built")), [8; 5], 16, 1),
        _ => {
            let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let number = number.expect("RARUNET_TEST_DEVICE is cuda:<number> or emulator");
            (Box::new(CudaDevice::open(number, precision).expect("the GPU opens")), PAPER_WIDTHS, 256, 8)
        }
    };
    let model = Model::new("rar-unet", widths).expect("the network exists");
    let mut network = Network::new(model, device).expect("there is room");
    network.initialise(1).expect("the device works");
    let step = network.load(mode, batch, [size; 2]).expect("there is room");
    let pixels = batch * size * size;
    let image: Vec<f32> = (0..pixels).map(|pixel| (pixel * 7919 % 1000) as f32 / 1000.0).collect();
    let target: Vec<f32> = (0..pixels).map(|pixel| f32::from(u8::from(pixel % 10 == 0))).collect();
    network.write_batch(&step, &image, &target, &vec![1.0; batch]).expect("the device works");
    Loaded { network, step }
}
