//! Compiles `kernels/*.cu` twice: with nvcc for GPUs, and with the host's C++ compiler for the CUDA emulator that the
//! tests run on. Neither compiler has to be there; the build never asks for a GPU.
//!
//! It makes, in `OUT_DIR`: `kernels.rs` (a constant for each kernel, each file's constants, the GPU images), `fatbin/`, and `emulator/`; the
//! path of the emulator's library is the environment variable `RARUNET_EMULATOR_LIBRARY` at compile time, empty if
//! there is none.

use std::path::PathBuf;

#[path = "build/command.rs"]
mod command;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/kernel_source.rs"]
mod kernel_source;
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let settings = ["RARUNET_CUDA_ARCHS", "RARUNET_REQUIRE_NVCC", "RARUNET_EMULATOR_CHECK_BOUNDS"];
    for variable in ["CXX", "NVCC", "CUDA_HOME", "CUDA_PATH"].into_iter().chain(settings) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if let Err(message) = build() {
        panic!("{message}");
    }
}

fn build() -> Result<(), String> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).ok_or(format!("cargo did not set {name}"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR")?, folder("OUT_DIR")?);
    let read = |extension| -> Result<Vec<_>, String> {
        let paths = command::files_with_extension(&root.join("kernels"), &[extension]);
        paths.iter().map(|path| kernel_source::KernelFile::read(path)).collect()
    };
    let (files, headers) = (read("cu")?, read("cuh")?);
    let library = emulator::compile_emulator(&files, &root, &out.join("emulator"));
    println!("cargo:rustc-env=RARUNET_EMULATOR_LIBRARY={}", library.unwrap_or_default().display());
    let images = nvcc::compile_kernels(&files, &root, &out.join("fatbin"))?;
    let table = kernel_source::rust_table(&files, &headers, images.as_ref())?;
    std::fs::write(out.join("kernels.rs"), table).map_err(|error| format!("kernels.rs: {error}"))
}
