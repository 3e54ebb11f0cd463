//! The CUDA emulator, tested through cudarc with kernels of its own (`tests/emulator/*.cu`), which the machinery of the
//! build compiles when the tests run. Without a C++ compiler the tests say so and pass.

mod driver;

#[path = "../../build/command.rs"]
#[allow(dead_code)]
mod command;
#[path = "../../build/emulator.rs"]
#[allow(dead_code)]
mod compile;
#[path = "../../build/kernel_source.rs"]
#[allow(dead_code)]
mod kernel_source;

use std::path::{Path, PathBuf};
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
    /// Opens the emulator and the module made of `tests/emulator/<file>.cu`. None, said on stderr, without a compiler.
    pub fn open(file: &str) -> Option<Self> {
        static MODULES: OnceLock<Option<PathBuf>> = OnceLock::new();
        let modules = MODULES.get_or_init(compile_modules).as_ref()?;
        rarunet_cuda::device::emulator::open().expect("the emulator was built");
        let context = CudaContext::new(0).expect("the emulator has one device");
        // SAFETY: each test uses one stream, or orders its streams by events itself.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("streams are unlimited");
        let module = context.load_module(Ptx::from_file(modules.join(file).with_extension("so"))).expect("compiled");
        Some(Device { context, stream, module })
    }

    pub fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// A grid and a block of one dimension, without dynamic shared memory.
pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Compiles this folder's kernels; the folder of the modules. Several test processes may come here at a time.
fn compile_modules() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let library = Path::new(rarunet_cuda::device::emulator::LIBRARY);
    let compiler = compile::Compiler::find(root).filter(|_| !library.as_os_str().is_empty());
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
