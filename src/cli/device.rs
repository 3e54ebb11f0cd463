//! Which device computes, and how: the flags that `train`, `predict` and `bench` share, and the one place
//! where devices are opened.

use crate::device::Device;
use crate::device::cpu::{CpuDevice, InstructionSet};
use crate::device::cuda::CudaDevice;
use crate::device::kernels::HAVE_IMAGES;
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

/// What numbers a device computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// What suits the device.
    Auto,
    F64,
    F32,
    Tf32,
    Bf16,
    Fp16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self).expect("every precision can be typed");
        f.write_str(value.get_name())
    }
}

/// The flags about the device.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceName,
    /// What numbers to compute with
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: Precision,
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
        self.precision()?;
        open(self.device, self.threads)
    }

    /// The precision that `auto` stands for on this device, or the one asked for.
    ///
    /// # Errors
    /// If the device cannot compute in it.
    pub fn precision(&self) -> Result<Precision> {
        match self.precision {
            Precision::Auto | Precision::F32 => Ok(Precision::F32),
            other => Err(unavailable(self.device.resolve(), &format!("no networks in {other}: use --precision f32"))),
        }
    }
}

/// Opens a device that computes networks; `threads` are the CPU's, all cores if not given.
///
/// # Errors
/// If it is not there; the message says why, and what to use instead.
pub fn open(name: DeviceName, threads: Option<usize>) -> Result<Box<dyn Device<f32>>> {
    match name.resolve() {
        DeviceName::Cuda(ordinal) => Ok(Box::new(CudaDevice::open(ordinal)?)),
        DeviceName::Emulator => Ok(Box::new(CudaDevice::emulator()?)),
        DeviceName::Auto | DeviceName::Cpu => Ok(Box::new(CpuDevice::with(threads, InstructionSet::best())?)),
    }
}

/// The error of a device that cannot do what was asked.
pub fn unavailable(name: DeviceName, message: &str) -> Error {
    Error::Device { device: name.to_string(), message: message.to_owned() }
}
