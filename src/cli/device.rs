//! Which device computes, and how: the flags that commands share, and the one place
//! where devices are opened.

use crate::device::cpu::{CpuDevice, InstructionSet};
use crate::device::cuda::CudaDevice;
use crate::device::kernels::HAVE_IMAGES;
use crate::device::{Device, Precision};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A device as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The best there is.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// The CUDA kernels, run by the CPU.
    Emulator,
}

impl DeviceName {
    /// The device that `auto` stands for: the first GPU, if driver, device and kernels are there, else the CPU.
    /// Any other stands for itself.
    pub fn resolve(self) -> DeviceName {
        match self {
            DeviceName::Auto if HAVE_IMAGES && CudaDevice::count().is_ok_and(|count| count > 0) => DeviceName::Cuda(0),
            DeviceName::Auto => DeviceName::Cpu,
            other => other,
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(match text {
            "auto" => DeviceName::Auto,
            "cpu" => DeviceName::Cpu,
            "cuda" => DeviceName::Cuda(0),
            "emulator" => DeviceName::Emulator,
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                DeviceName::Cuda(number.ok_or("give auto, cpu, cuda:N (such as cuda:0) or emulator")?)
            }
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceName::Auto => write!(f, "auto"),
            DeviceName::Cpu => write!(f, "cpu"),
            DeviceName::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceName::Emulator => write!(f, "emulator"),
        }
    }
}

/// A precision as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrecisionName {
    /// What suits the device: bf16 on a GPU, fp16 where it has no bf16, f32 on the CPU.
    Auto,
    Exactly(Precision),
}

impl PrecisionName {
    /// The one that was asked for.
    pub fn exactly(self) -> Option<Precision> {
        match self {
            PrecisionName::Auto => None,
            PrecisionName::Exactly(precision) => Some(precision),
        }
    }
}

impl FromStr for PrecisionName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match Precision::ALL.into_iter().find(|precision| precision.name() == text) {
            Some(precision) => Ok(PrecisionName::Exactly(precision)),
            None if text == "auto" => Ok(PrecisionName::Auto),
            None => Err("give auto, f32, tf32, bf16, fp16 or, to check gradients on the CPU, f64".into()),
        }
    }
}

/// The flags about the device.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceName,
    /// What numbers to compute with: auto, f32, tf32, bf16 or fp16; auto is bf16 on a GPU, fp16 on one without bf16,
    /// f32 on the CPU. There bf16 and fp16 save neither time nor memory: it computes in f32 and rounds as a GPU would,
    /// to show what one comes to
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    pub precision: PrecisionName,
    /// Threads of the CPU; as many as it has cores unless told otherwise
    #[arg(long, value_name = "N", value_parser = super::flags::whole(1..=1024))]
    pub threads: Option<usize>,
}

impl DeviceArgs {
    /// Opens the device for networks.
    ///
    /// # Errors
    /// If it is not there or does not compute in this precision.
    pub fn open(&self) -> Result<Box<dyn Device<f32>>> {
        open(self.device, self.precision, self.threads)
    }
}

/// Opens a device that computes networks; `threads` are the CPU's, all cores if not given.
///
/// # Errors
/// If it is not there or does not compute in this precision; the message says why, and what to use instead.
pub fn open(name: DeviceName, precision: PrecisionName, threads: Option<usize>) -> Result<Box<dyn Device<f32>>> {
    match (name.resolve(), precision.exactly()) {
        (DeviceName::Cuda(ordinal), precision) => Ok(Box::new(CudaDevice::open(ordinal, precision)?)),
        (DeviceName::Emulator, precision) => Ok(Box::new(CudaDevice::emulator(precision)?)),
        (_, None | Some(Precision::F32)) => Ok(Box::new(CpuDevice::with(threads, InstructionSet::best())?)),
        (_, Some(precision @ (Precision::Bf16 | Precision::Fp16))) if name == DeviceName::Auto => {
            let message =
                format!("there is no GPU for {precision}: use --precision f32, or --device cpu, which only rounds");
            Err(unavailable(name, &message))
        }
        (_, Some(precision @ (Precision::Bf16 | Precision::Fp16))) => {
            Ok(Box::new(CpuDevice::with(threads, InstructionSet::best())?.rounding(precision)))
        }
        (name, Some(other)) => Err(unavailable(name, &format!("no networks in {other}: use --precision f32"))),
    }
}

/// The error of a device that cannot do what was asked.
pub fn unavailable(name: DeviceName, message: &str) -> Error {
    Error::Device { device: name.to_string(), message: message.to_owned() }
}
