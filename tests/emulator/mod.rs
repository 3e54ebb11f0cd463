//! The CUDA emulator, tested through cudarc with kernels of its own (`tests/emulator/*.cu`), which the machinery of the
//! build compiles when the tests run. Without an emulator the tests say so and pass.

mod declarations;
mod driver;
mod faults;
mod kernels;
mod races;

#[path = "../../build/command.rs"]
#[allow(dead_code)]
pub mod command;
#[path = "../../build/emulator.rs"]
#[allow(dead_code)]
mod compile;
#[path = "../../build/kernel_source.rs"]
#[allow(dead_code)]
pub mod kernel_source;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;

/// An emulated device with one of the modules of this folder.
pub struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

impl Device {
    /// Opens the emulator and the module made of `tests/emulator/<file>.cu`. None, said on stderr, without an emulator.
    pub fn open(file: &str) -> Option<Self> {
        static MODULES: OnceLock<Option<PathBuf>> = OnceLock::new();
        let modules = MODULES.get_or_init(compile_modules).as_ref()?;
        Some(Self::with_module(Ptx::from_file(modules.join(file).with_extension("so"))))
    }

    /// Opens the emulator and loads `image`.
    pub fn with_module(image: Ptx) -> Self {
        rarunet_cuda::device::emulator::open().expect("the emulator was built");
        let context = CudaContext::new(0).expect("the emulator has one device");
        // SAFETY: each test uses one stream, or orders its streams by events itself.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("streams are unlimited");
        let module = context.load_module(image).expect("the module was compiled");
        Device { context, stream, module }
    }

    pub fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Memory that the emulator has filled with NaN.
    pub fn fresh<T: cudarc::driver::DeviceRepr>(&self, count: usize) -> cudarc::driver::CudaSlice<T> {
        // SAFETY: all bit patterns are values of the types used here
        unsafe { self.stream.alloc(count) }.expect("the tests are small")
    }
}

/// Launches a kernel; the result is the driver's.
macro_rules! launch {
    ($device:expr, $function:expr, $shape:expr, $($argument:expr),* $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        // SAFETY: the emulator finds the wrong accesses that these tests provoke, and the arguments are the kernel's
        unsafe { $device.stream.launch_builder(&$function)$(.arg($argument))*.launch($shape) }.map(|_| ())
    }};
}
use launch;

/// A grid and a block of one dimension, without dynamic shared memory.
pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Runs the tests whose names begin with `filter` in a process of their own with these environment variables; what
/// they printed. The process's tests see `in_child()`.
pub fn run_in_child(filter: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().expect("tests run from a file"));
    command.args([filter, "--nocapture"]).env("EMULATOR_TEST_CHILD", "1");
    for name in ["RARUNET_EMULATOR_ORDER", "RARUNET_EMULATOR_THREADS", "RARUNET_EMULATOR_COMPUTE_CAPABILITY"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().expect("a test binary can be run");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), printed)
}

/// Whether this is a process of `run_in_child`.
pub fn in_child() -> bool {
    std::env::var_os("EMULATOR_TEST_CHILD").is_some()
}

/// Small numbers of both signs, the same at each run.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 65536.0 - 0.5
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Compiles this folder's kernels; the folder of the modules. Several test processes may come here at a time.
fn compile_modules() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let library = Path::new(rarunet_cuda::device::emulator::LIBRARY);
    let compiler = compile::Compiler::find(root, true).filter(|_| !library.as_os_str().is_empty());
    let Some(compiler) = compiler else {
        eprintln!("skipped: no CUDA emulator in this build, or no C++ compiler");
        return None;
    };
    std::fs::create_dir_all(&out).expect("the target folder is writable");
    let lock = std::fs::File::create(out.join("lock")).expect("the target folder is writable");
    lock.lock().expect("file locks work");
    let paths = command::files_with_extension(&root.join("tests/emulator"), &["cu"]);
    let files: Vec<_> = paths.iter().map(|path| kernel_source::KernelFile::read(path).expect("scanned")).collect();
    compiler.compile_modules(&files, library, &out).unwrap_or_else(|message| panic!("{message}"));
    Some(out)
}
