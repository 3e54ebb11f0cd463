//! Compiles the kernels for GPUs.
//!
//! Each .cu file becomes a fatbin of its own (one for each element that it is compiled for), which holds the code of all
//! targets. One file for all kernels would need
//! file-scope names to be unique across ops, and every change would compile everything; this way a change compiles one
//! file, and the files are compiled in parallel.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{Job, files_with_extension, find_program, run_all};
use super::kernel_source::{Images, KernelFile};

/// What is compiled for, unless `RARUNET_CUDA_ARCHS` says otherwise (as a list of these words: `86` or `86,90+ptx`).
const TARGETS: &[&str] = &[
    "75",     // Turing (T4, RTX 20): the first with mma.sync as used here; fp16 only
    "80",     // A100: bf16, tf32, cp.async
    "86",     // RTX 30, A10, A40
    "89",     // Ada: RTX 40, L4, L40
    "90",     // Hopper: H100, H200; its own instructions, too (sm_90a)
    "90+ptx", // PTX, which the driver compiles for any later GPU that no code here is for
    "100",    // Blackwell: B100, B200
    "120",    // Blackwell: RTX 50, RTX PRO
];

/// Compiles all files. None, with one warning, without nvcc.
///
/// # Errors
/// What nvcc said, or that there is none although `RARUNET_REQUIRE_NVCC=1`.
pub fn compile_kernels(files: &[KernelFile], root: &Path, out: &Path) -> Result<Option<Images>, String> {
    let Some(nvcc) = find_nvcc(root) else {
        let message = "no nvcc ($NVCC, $CUDA_HOME, $CUDA_PATH, target/cuda, PATH, /usr/local/cuda)";
        if std::env::var("RARUNET_REQUIRE_NVCC").is_ok_and(|value| value == "1") {
            return Err(format!("{message}, and RARUNET_REQUIRE_NVCC=1; scripts/install-nvcc.sh installs one"));
        }
        println!("cargo:warning={message}: built without GPU code; scripts/install-nvcc.sh installs one");
        return Ok(None);
    };
    std::fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let flags = flags(&nvcc, root)?;
    let headers = files_with_extension(&root.join("kernels"), &["cuh"]);
    let variants = files.iter().flat_map(|file| file.variants().into_iter().map(move |variant| (file, variant)));
    let jobs: Vec<Job> = variants
        .map(|(file, variant)| {
            let output = out.join(file.variant_stem(variant)).with_extension("fatbin");
            let mut arguments: Vec<String> = flags.iter().filter(|flag| has_element(flag, variant)).cloned().collect();
            arguments.extend(variant.map(|(ending, _)| format!("-DELEMENT_{ending}")));
            arguments.extend([file.path.display().to_string(), "-o".into(), output.display().to_string()]);
            let inputs = [&file.path].into_iter().chain(&headers).cloned().collect();
            Job { program: nvcc.clone(), arguments, inputs, output }
        })
        .collect();
    run_all(&jobs)?;
    let hopper = flags.iter().any(|flag| flag.ends_with("code=sm_90a"));
    Ok(Some(Images { paths: jobs.into_iter().map(|job| job.output).collect(), hopper }))
}

/// Whether what a flag is for can compute with the variant's element: sm_75 knows no bf16. Without any other target it
/// is compiled all the same, and traps.
fn has_element(flag: &str, variant: Option<(&str, &str)>) -> bool {
    !(flag.contains("code=sm_75") && variant.is_some_and(|(ending, _)| ending == "bf16"))
}

/// The nvcc that the build uses; `root` is the crate's folder.
pub fn find_nvcc(root: &Path) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let homes = [variable("CUDA_HOME"), variable("CUDA_PATH")].into_iter().flatten();
    let installed = ["target/cuda/nvidia/cu13", "target/cuda"].map(|folder| root.join(folder));
    let in_folders = homes.chain(installed).map(|folder| folder.join("bin/nvcc"));
    let elsewhere = [PathBuf::from("nvcc"), PathBuf::from("/usr/local/cuda/bin/nvcc")];
    find_program(variable("NVCC").into_iter().chain(in_folders).chain(elsewhere))
}

/// nvcc's flags, with one `-gencode=` for each target that it knows.
///
/// # Errors
/// If nvcc does not start, or knows none of the targets.
pub fn flags(nvcc: &Path, root: &Path) -> Result<Vec<String>, String> {
    let wanted = std::env::var("RARUNET_CUDA_ARCHS").unwrap_or_default();
    let targets: Vec<&str> = match wanted.as_str() {
        "" => TARGETS.to_vec(),
        list => list.split(',').map(str::trim).collect(),
    };
    let known = ask(nvcc, "--list-gpu-code")? + &ask(nvcc, "--list-gpu-arch")?;
    let mut flags: Vec<String> = ["-fatbin", "-O3", "-std=c++17"].map(String::from).into();
    flags.push(format!("-I{}", root.join("kernels").display()));
    let help = ask(nvcc, "--help")?;
    if help.contains("--compress-mode") {
        flags.push("--compress-mode=size".into()); // since CUDA 12.4; a quarter of the size
    }
    let mut unknown = Vec::new();
    for target in targets {
        let (number, code) = match target.strip_suffix("+ptx") {
            Some(number) => (number, format!("compute_{number}")),
            None => (target, format!("sm_{target}")),
        };
        if known.lines().any(|line| line.trim() == code) {
            let own = if code == "sm_90" && help.contains("sm_90a") { "a" } else { "" };
            flags.push(format!("-gencode=arch=compute_{number}{own},code={code}{own}"));
        } else {
            unknown.push(target);
        }
    }
    if !flags.iter().any(|flag| flag.starts_with("-gencode")) {
        return Err(format!("{} knows none of the targets {}", nvcc.display(), unknown.join(", ")));
    }
    if !unknown.is_empty() {
        println!("cargo:warning={} does not know the targets {}: left out", nvcc.display(), unknown.join(", "));
    }
    Ok(flags)
}

fn ask(nvcc: &Path, question: &str) -> Result<String, String> {
    let answer = Command::new(nvcc).arg(question).output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}
