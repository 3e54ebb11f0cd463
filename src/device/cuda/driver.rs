//! Opening a driver and a device of it: what can be wrong there, and what is said about it.

use super::timing::Marks;
use crate::device::kernels::{self, Element};
use crate::device::{Precision, emulator};
use crate::plan::Branch;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The oldest driver the calls made here are in, as CUDA counts: 12.0.
const OLDEST_DRIVER: i32 = 12000;

/// What the emulator's device is called; see kernels/emulator/driver.cpp.
const EMULATOR_NAME: &str = "CUDA emulator";

/// Of the streams of the main branch and of that aside; the lower number goes first where both have work.
const PRIORITIES: [i32; 2] = [0, 0];

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `cuda:0`, or `emulator`.
    pub device: String,
    /// As the driver calls it.
    pub name: String,
    /// Major and minor compute capability.
    pub capability: (i32, i32),
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// The CUDA version that the driver supports, major and minor.
    pub driver: (i32, i32),
}

/// The first compute capability whose tensor cores know bf16 and tf32.
const AMPERE: (i32, i32) = (8, 0);
/// The only one whose warp groups multiply.
const HOPPER: (i32, i32) = (9, 0);

impl Description {
    /// Whether warp groups multiply: the emulator's always do where a GPU's of its kind would.
    pub fn has_warp_groups(&self) -> bool {
        self.capability == HOPPER && (kernels::HAVE_HOPPER || self.name == EMULATOR_NAME)
    }

    /// Bytes of shared memory that a block may have at most (CUDA programming guide, technical specifications), or that
    /// those of unknown devices surely may.
    pub fn shared_memory(&self) -> usize {
        let kilobytes = match self.capability {
            (7, _) => 64,
            (8, 0 | 7) => 163,
            (9 | 10, _) => 227,
            _ => 99,
        };
        kilobytes << 10
    }

    /// The precision asked for, or the best for the tensor cores at hand: bf16, or fp16 where there is no bf16.
    ///
    /// # Errors
    /// If the device does not compute in it.
    pub fn precision(&self, wanted: Option<Precision>) -> Result<Precision> {
        let ampere = self.capability >= AMPERE;
        match wanted {
            None if ampere => Ok(Precision::Bf16),
            None => Ok(Precision::Fp16),
            Some(Precision::F64) => Err(message(&self.device, "no f64: use --device cpu or --precision f32")),
            Some(precision @ (Precision::Tf32 | Precision::Bf16)) if !ampere => {
                let (major, minor) = self.capability;
                let text = format!("no {precision} at compute capability {major}.{minor}: use --precision fp16 or f32");
                Err(message(&self.device, text))
            }
            Some(precision) => Ok(precision),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Description { device, name, capability: (major, minor), memory, driver, .. } = self;
        let gib = *memory as f64 / f64::from(1 << 30);
        let (driver_major, driver_minor) = driver;
        write!(
            f,
            "{device}, {name}, compute capability {major}.{minor}, {gib:.1} GiB, driver for CUDA {driver_major}.{driver_minor}"
        )
    }
}

fn message(device: &str, message: impl Into<String>) -> Error {
    Error::Device { device: device.into(), message: message.into() }
}

/// A driver's error in words: the emulator's own name the kernel, the block and the thread.
fn driver_error(device: &str, what: &str, error: DriverError) -> Error {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    message(device, format!("{what}: {text} ({:?})", error.0))
}

/// Finds the driver and the CUDA version it supports.
fn driver_version(device: &str) -> Result<(i32, i32)> {
    // SAFETY: this opens the driver's library, whose initialisation is the driver's own business.
    if !unsafe { sys::is_culib_present() } {
        return Err(message(device, "no CUDA driver (libcuda) was found: install NVIDIA's, or use --device cpu"));
    }
    result::init().map_err(|error| init_error(device, error))?;
    let mut version = 0;
    // SAFETY: the driver writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| driver_error(device, "driver version", error))?;
    let version_pair = (version / 1000, version % 1000 / 10);
    if version < OLDEST_DRIVER {
        let (major, minor) = version_pair;
        return Err(message(
            device,
            format!("the driver is for CUDA {major}.{minor}: install one for CUDA 12 or later"),
        ));
    }
    Ok(version_pair)
}

fn init_error(device: &str, error: DriverError) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => message(device, "the CUDA driver finds no GPU: use --device cpu"),
        _ => driver_error(device, "the CUDA driver does not start", error),
    }
}

/// How many GPUs there are.
pub fn count() -> Result<usize> {
    driver_version("cuda")?;
    let count = CudaContext::device_count().map_err(|error| init_error("cuda", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What GPU `ordinal` is.
pub fn describe(ordinal: usize) -> Result<Description> {
    let device = format!("cuda:{ordinal}");
    describe_as(device, ordinal)
}

fn describe_as(device: String, ordinal: usize) -> Result<Description> {
    let driver = driver_version(&device)?;
    let count = count()?;
    if ordinal >= count {
        return Err(message(&device, format!("there is no such GPU: {count} found, counted from 0")));
    }
    let ask = || -> std::result::Result<_, DriverError> {
        let handle = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: the handle is the driver's.
        let attribute = |attribute| unsafe { result::device::get_attribute(handle, attribute) };
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: the handle is the driver's.
        let memory = unsafe { result::device::total_mem(handle)? };
        Ok((result::device::get_name(handle)?, capability, multiprocessors, memory))
    };
    let (name, capability, multiprocessors, memory) =
        ask().map_err(|error| driver_error(&device, "device attributes", error))?;
    let multiprocessors = usize::try_from(multiprocessors).unwrap_or(0);
    Ok(Description { device, name, capability, multiprocessors, memory, driver })
}

/// An open device: its context, its streams and its kernels.
pub struct Driver {
    pub description: Description,
    pub context: Arc<CudaContext>,
    /// All work goes through this one.
    pub stream: Arc<CudaStream>,
    /// Of a graph's other branch: nothing is launched here but while a step is captured.
    pub aside: Arc<CudaStream>,
    /// Where launches go.
    pub branch: Branch,
    /// By the name of the kernel file, and what it was compiled for.
    modules: HashMap<(&'static str, Option<Element>), Arc<CudaModule>>,
    /// Likewise by the name of the kernel.
    functions: HashMap<(&'static str, Option<Element>), CudaFunction>,
    /// While launches are timed: what is marked after each.
    pub marks: Option<Marks>,
}

impl Driver {
    /// Opens GPU `ordinal`, with the kernels for f32 and for `element`.
    pub fn open(ordinal: usize, element: impl Fn(&Description) -> Result<Element>) -> Result<Self> {
        let description = describe(ordinal)?;
        let device = &description.device;
        if description.name.contains(EMULATOR_NAME) {
            return Err(message(device, "this process uses the emulator, and a process uses one of the two"));
        }
        if !kernels::HAVE_IMAGES {
            let message_text = "this build has no GPU code: run scripts/install-nvcc.sh and build again";
            return Err(message(device, message_text));
        }
        let element = element(&description)?;
        Self::with(description, ordinal, element)
    }

    pub fn emulator(element: impl Fn(&Description) -> Result<Element>) -> Result<Self> {
        emulator::open()?;
        let description = describe_as("emulator".into(), 0)?;
        if !description.name.contains(EMULATOR_NAME) {
            return Err(message("emulator", "this process uses GPUs, and a process uses one of the two"));
        }
        let element = element(&description)?;
        Self::with(description, 0, element)
    }

    fn with(description: Description, ordinal: usize, element: Element) -> Result<Self> {
        let device = description.device.clone();
        let error = |what: &'static str| move |error| driver_error(&device, what, error);
        let context = CudaContext::new(ordinal).map_err(error.clone()("context"))?;
        // SAFETY: all work goes through one stream, so nothing has to be ordered by events, which a capture would
        // pick up; a capture orders its two branches itself.
        unsafe { context.disable_event_tracking() };
        let [stream, aside] = PRIORITIES.map(|priority| context.new_stream_with_priority(priority));
        let (stream, aside) = (stream.map_err(error.clone()("stream"))?, aside.map_err(error("stream"))?);
        let mut modules = HashMap::new();
        let needed = [None, Some(Element::F32), Some(element)];
        for image in kernels::IMAGES.iter().filter(|image| needed.contains(&image.element)) {
            let module = context.load_module(Ptx::from_binary(image.bytes.to_vec()));
            let module = module.map_err(|error| module_error(&description, image.file, error))?;
            modules.insert((image.file, image.element), module);
        }
        let (branch, functions) = (Branch::Main, HashMap::new());
        Ok(Driver { description, context, stream, aside, branch, modules, functions, marks: None })
    }

    /// The device's name in errors and flags.
    fn device(&self) -> &str {
        &self.description.device
    }

    pub fn message(&self, text: String) -> Error {
        message(self.device(), text)
    }

    pub fn error(&self, what: &str, error: DriverError) -> Error {
        driver_error(self.device(), what, error)
    }

    /// The stream of a branch.
    pub fn stream_of(&self, branch: Branch) -> &Arc<CudaStream> {
        match branch {
            Branch::Main => &self.stream,
            Branch::Aside => &self.aside,
        }
    }

    /// Makes this device's context the calling thread's.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| self.error("context", error))
    }

    /// Waits until all that was launched is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|error| self.error("a kernel failed", error))
    }

    /// A kernel's function for tensors of `element`, found once.
    pub fn function(&mut self, kernel: kernels::Kernel, element: Element) -> Result<CudaFunction> {
        let element = kernels::compiled_for(kernel.file, element);
        if let Some(function) = self.functions.get(&(kernel.name, element)) {
            return Ok(function.clone());
        }
        let (module, symbol) = (&self.modules[&(kernel.file, element)], kernel.symbol(element));
        let function = module.load_function(&symbol).map_err(|error| self.error(&symbol, error))?;
        self.functions.insert((kernel.name, element), function.clone());
        Ok(function)
    }
}

/// Why kernels cannot be loaded: there is no code for this GPU, or this driver cannot read it.
fn module_error(description: &Description, file: &str, error: DriverError) -> Error {
    let Description { device, capability: (major, minor), driver: (driver_major, driver_minor), .. } = description;
    match error.0 {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => message(
            device,
            format!(
                "this build has no code for compute capability {major}.{minor}: build with RARUNET_CUDA_ARCHS={major}{minor}"
            ),
        ),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_INVALID_PTX => message(
            device,
            format!(
                "the driver is for CUDA {driver_major}.{driver_minor}, older than the compiler of the kernels: \
                 install a newer driver, or build with an older nvcc"
            ),
        ),
        _ => driver_error(device, &format!("kernels/{file}.cu"), error),
    }
}
