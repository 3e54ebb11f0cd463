//! What nvcc made of the kernels: code for every target, in registers alone, and not much of it.
//!
//! Without nvcc and its cuobjdump the tests say so and pass.

#[path = "../../build/nvcc.rs"]
#[allow(dead_code)]
mod build;

use crate::emulator::{command, kernel_source};
use rarunet_cuda::device::kernels::{Element, HAVE_IMAGES, IMAGES};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What all images may take in the program: three element types for seven targets.
const MAX_BYTES: usize = 8 << 20;

/// What a kernel takes on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    registers: usize,
    /// Bytes of a thread's stack frame: arrays that are no registers, and what is spilled.
    stack: usize,
    /// Bytes of other thread-local memory.
    local: usize,
}

/// nvcc, and cuobjdump beside it. None, said on stderr, where one is missing.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let nvcc = build::find_nvcc(Path::new(env!("CARGO_MANIFEST_DIR")));
    let tools = nvcc.map(|nvcc| (nvcc.with_file_name("cuobjdump"), nvcc));
    match tools.filter(|(cuobjdump, _)| HAVE_IMAGES && cuobjdump.is_file()) {
        Some((cuobjdump, nvcc)) => Some((nvcc, cuobjdump)),
        None => {
            eprintln!("skipped: no nvcc with cuobjdump beside it; scripts/install-nvcc.sh installs both");
            None
        }
    }
}

/// The usage of each (target, kernel) that cuobjdump finds in a file.
fn usages(cuobjdump: &Path, file: &Path) -> BTreeMap<(String, String), Usage> {
    let output = Command::new(cuobjdump).arg("-res-usage").arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}{}", file.display(), String::from_utf8_lossy(&output.stderr));
    let mut usages = BTreeMap::new();
    let (mut target, mut kernel) = (String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("arch = ") {
            target = name.to_string();
        } else if let Some(name) = line.strip_prefix("Function ") {
            kernel = name.trim_end_matches(':').to_string();
        } else if line.starts_with("REG:") {
            let number = |key: &str| {
                let value = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
                value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{key} in {line:?}"))
            };
            let usage = Usage { registers: number("REG"), stack: number("STACK"), local: number("LOCAL") };
            usages.insert((target.clone(), kernel.clone()), usage);
        }
    }
    usages
}

/// The targets that machine code is made for: "sm_80" and so on.
fn targets(nvcc: &Path) -> BTreeSet<String> {
    let flags = build::flags(nvcc, Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let codes = flags.iter().filter_map(|flag| flag.strip_prefix("-gencode=")?.split_once("code="));
    codes.map(|(_, code)| code.to_string()).filter(|code| code.starts_with("sm_")).collect()
}

#[test]
fn nvcc_keeps_kernels_in_registers_on_every_target() {
    let Some((nvcc, cuobjdump)) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    let targets = targets(&nvcc);
    let mut complaints = Vec::new();
    let mut registers = (0, String::new());
    let mut kernels = 0;
    for image in IMAGES {
        let path = folder.path().join(image.file).with_extension("fatbin");
        std::fs::write(&path, image.bytes).unwrap();
        let usages = usages(&cuobjdump, &path);
        for target in targets.iter().filter(|&target| !(target == "sm_75" && image.element == Some(Element::Bf16))) {
            for &symbol in image.symbols {
                kernels += 1;
                let what = format!("{symbol} for {target}");
                let Some(usage) = usages.get(&(target.clone(), symbol.to_string())) else {
                    complaints.push(format!("{what}: no code"));
                    continue;
                };
                registers = registers.max((usage.registers, what.clone()));
                if usage.stack + usage.local > 0 {
                    complaints.push(format!("{what}: {usage:?}"));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    println!("{kernels} kernels for {} targets, at most {} registers ({})", targets.len(), registers.0, registers.1);
}

#[test]
fn nvcc_makes_little_code() {
    if tools().is_some() {
        let bytes: usize = IMAGES.iter().map(|image| image.bytes.len()).sum();
        println!("{bytes} bytes");
        assert!((1..MAX_BYTES).contains(&bytes), "{bytes} bytes of GPU code");
    }
}

/// Spills and stack frames are found where there are some.
#[test]
fn nvcc_report_shows_spills_and_stack_frames() {
    let Some((nvcc, cuobjdump)) = tools() else { return };
    // More live values than a thread has registers, with so many threads a block; an array indexed at run time.
    let source = r#"
        extern "C" __global__ void __launch_bounds__(1024) spills(float* x, int n) {
          float values[128];
        #pragma unroll
          for (int i = 0; i < 128; ++i) values[i] = x[i * n];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 128; ++i) x[i * n + 1] = values[127 - i] * values[i];
        }
        extern "C" __global__ void has_a_stack_frame(float* x, int n) {
          float values[16];
          for (int i = 0; i < 16; ++i) values[(i * n) & 15] = x[i];
          for (int i = 0; i < 16; ++i) x[i] = values[i];
        }
        extern "C" __global__ void has_neither(float* x) { x[threadIdx.x] += 1.0f; }"#;
    let folder = tempfile::tempdir().unwrap();
    let (path, compiled) = (folder.path().join("planted.cu"), folder.path().join("planted.cubin"));
    std::fs::write(&path, source).unwrap();
    let target = targets(&nvcc).pop_first().unwrap();
    let output =
        Command::new(&nvcc).args(["-cubin", "-arch", &target, "-o"]).arg(&compiled).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let usages = usages(&cuobjdump, &compiled);
    let stack = |kernel: &str| usages.iter().find(|((_, name), _)| name == kernel).map(|(_, usage)| usage.stack);
    assert!(stack("spills") > Some(0) && stack("has_a_stack_frame") > Some(0), "{usages:?}");
    assert_eq!(stack("has_neither"), Some(0), "{usages:?}");
}
