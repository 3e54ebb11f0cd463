//! Opens the CUDA emulator: a stand-in for the driver's `libcuda.so.1` that the build makes from the very same .cu
//! files with the host's C++ compiler. cudarc then finds it instead of a driver, and the whole CUDA path runs on a
//! machine without a GPU.
//!
//! What it checks and what it cannot is described in `kernels/emulator/README.md`. Settings, by environment variable:
//! `RARUNET_EMULATOR_LIBRARY` (where its library is, if it was moved; the build's own place by default),
//! `RARUNET_EMULATOR_THREADS` (how many cores it uses, all by default), `RARUNET_EMULATOR_ORDER` (`forward`,
//! `reversed`, `shuffled` or `shuffled:<seed>`: the order of threads and blocks) and
//! `RARUNET_EMULATOR_COMPUTE_CAPABILITY` (`8.6` by default: how much shared memory a block may have).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::{Error, Result};

/// The emulated driver that the build made; empty if there was no C++ compiler.
pub const LIBRARY: &str = env!("RARUNET_EMULATOR_LIBRARY");

/// Opens the emulator, so that cudarc's next search for a CUDA driver finds it. To be called before anything else of
/// cudarc: that keeps the first driver it finds.
///
/// # Errors
/// If the build made no emulator, or the library cannot be opened.
pub fn open() -> Result<()> {
    static OPENED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let device_error = |message: &String| Error::Device { device: "emulator".into(), message: message.clone() };
    let library = || std::env::var_os("RARUNET_EMULATOR_LIBRARY").map_or_else(|| LIBRARY.into(), PathBuf::from);
    OPENED.get_or_init(|| open_library(&library())).as_ref().copied().map_err(device_error)
}

fn open_library(library: &Path) -> std::result::Result<(), String> {
    if library.as_os_str().is_empty() {
        return Err("this build has no CUDA emulator: build on x86-64 Linux with a C++ compiler".into());
    }
    // cudarc asks for libcuda.so, then for libcuda.so.1 among other names. The loader answers with a library that is
    // open already under that name, before it looks for files.
    for path in [library.to_path_buf(), library.with_file_name("libcuda.so")] {
        // SAFETY: the emulator's initialisation code sets up constant tables and nothing else.
        let opened = unsafe { libloading::Library::new(&path) }
            .map_err(|error| format!("{}: {error}; run cargo build again", path.display()))?;
        std::mem::forget(opened); // open for as long as the process lives
    }
    Ok(())
}
