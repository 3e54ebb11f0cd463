//! Compiles the CUDA emulator, and the .cu files as C++ for it.
//!
//! What is made: `libcuda.so.1`, the emulated driver; `libcuda.so`, an empty library that leads to it (see below); and
//! `modules/<op>.so` or `modules/<op>_<element>.so`, one for each .cu file and element.

use std::path::{Path, PathBuf};

use super::command::{Job, files_with_extension, find_program, run_all};
use super::kernel_source::KernelFile;

/// The host's C++ compiler and the flags for this machine.
pub struct Compiler {
    program: PathBuf,
    flags: Vec<String>,
    /// Whether kernels check the indices of arrays of known length, `__shared__` ones above all. It makes
    /// register-tiled kernels several times slower.
    check_bounds: bool,
    /// kernels/
    kernels: PathBuf,
    headers: Vec<PathBuf>,
}

impl Compiler {
    /// `$CXX`, c++, g++ or clang++; None if there is none. `root` is the crate's folder.
    pub fn find(root: &Path, check_bounds: bool) -> Option<Self> {
        let wanted = std::env::var_os("CXX").map(PathBuf::from);
        let names = ["c++", "g++", "clang++"].map(PathBuf::from);
        let program = find_program(wanted.into_iter().chain(names))?;
        let kernels = root.join("kernels");
        let emulator = kernels.join("emulator");
        let mut headers = files_with_extension(&kernels, &["cuh"]);
        headers.extend(files_with_extension(&emulator, &["hpp", "h"]));
        let mut flags: Vec<String> = ["-std=c++17", "-g1", "-fPIC", "-fno-strict-aliasing"].map(String::from).into();
        flags.push(format!("-I{}", emulator.display()));
        flags.push(format!("-I{}", kernels.display()));
        flags.extend(instruction_set().map(String::from));
        Some(Compiler { program, flags, check_bounds, kernels, headers })
    }

    fn compile(&self, source: &Path, more_inputs: &[PathBuf], more_flags: &[&str], output: PathBuf) -> Job {
        let mut arguments = self.flags.clone();
        arguments.extend(more_flags.iter().map(|flag| flag.to_string()));
        arguments.extend(["-c".into(), source.display().to_string(), "-o".into(), output.display().to_string()]);
        let inputs = [source.to_path_buf()].iter().chain(&self.headers).chain(more_inputs).cloned().collect();
        Job { program: self.program.clone(), arguments, inputs, output }
    }

    fn link(&self, inputs: Vec<PathBuf>, flags: &[&str], output: PathBuf) -> Job {
        let mut arguments = vec!["-shared".to_string(), "-o".into(), output.display().to_string()];
        arguments.extend(flags.iter().map(|flag| flag.to_string()));
        arguments.extend(inputs.iter().map(|input| input.display().to_string()));
        arguments.extend(["-pthread".into(), "-ldl".into()]);
        Job { program: self.program.clone(), arguments, inputs, output }
    }

    /// Makes the emulated driver in `out` and returns the path of `libcuda.so.1`.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn compile_driver(&self, out: &Path) -> Result<PathBuf, String> {
        create(out)?;
        let sources = files_with_extension(&self.kernels.join("emulator"), &["cpp"]);
        let object = |source: &PathBuf| out.join(source.with_extension("o").file_name().unwrap_or_default());
        let objects: Vec<PathBuf> = sources.iter().map(object).collect();
        let jobs: Vec<Job> = sources
            .iter()
            .zip(&objects)
            .map(|(source, object)| self.compile(source, &[], &["-O3"], object.clone()))
            .collect();
        run_all(&jobs)?;
        // Its worker threads live as long as the process, so it must never be unloaded.
        let flags = ["-Wl,-soname,libcuda.so.1", "-Wl,-z,nodelete", "-Wl,-z,defs"];
        let library = out.join("libcuda.so.1");
        self.link(objects, &flags, library.clone()).run()?;
        // cudarc asks for libcuda.so first, and a real driver may have that name on a machine with a GPU: this empty
        // library takes the name in the emulator's own process and depends on libcuda.so.1, where the symbols are.
        let flags = ["-Wl,-soname,libcuda.so", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"];
        self.link(vec![library.clone()], &flags, out.join("libcuda.so")).run()?;
        Ok(library)
    }

    /// Compiles .cu files for the emulated driver `library`: `out/<stem>.so` for each, and no other .so stays there.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn compile_modules(&self, files: &[KernelFile], library: &Path, out: &Path) -> Result<(), String> {
        create(out)?;
        let mut compiles = Vec::new();
        let mut links = Vec::new();
        let variants = files.iter().flat_map(|file| file.variants().into_iter().map(move |variant| (file, variant)));
        for (file, variant) in variants {
            let source = out.join(file.variant_stem(variant)).with_extension("cpp");
            write_if_changed(&source, &module_source(file, variant))?;
            let object = source.with_extension("o");
            let mut flags = vec![
                "-O2", // -O3 of GCC 12 halves the speed of register-tiled kernels
                // static shared arrays of templates must stay this module's own
                "-fvisibility=hidden",
                "-Wno-unknown-pragmas",
                "-fstack-clash-protection", // a large frame touches every page, so it cannot jump over a guard page
                // what these checks find is reported by kernels/emulator/sanitizer.cpp
                "-fsanitize=alignment,integer-divide-by-zero",
            ];
            if self.check_bounds {
                flags.push("-fsanitize=bounds");
            }
            if is_gcc(&self.program) {
                flags.push("-mtls-dialect=gnu2"); // cheaper access to __shared__ arrays
            }
            compiles.push(self.compile(&source, std::slice::from_ref(&file.path), &flags, object.clone()));
            links.push(self.link(vec![object, library.to_path_buf()], &[], source.with_extension("so")));
        }
        run_all(&compiles)?;
        run_all(&links)?;
        for module in files_with_extension(out, &["so"]) {
            if !links.iter().any(|link| link.output == module) {
                std::fs::remove_file(&module).map_err(|error| format!("{}: {error}", module.display()))?;
            }
        }
        Ok(())
    }
}

/// Compiles the emulator and the crate's kernels into `out`; returns the path of the library to open. None, with one
/// warning, where that is not possible.
pub fn compile_emulator(kernels: &[KernelFile], root: &Path, out: &Path) -> Option<PathBuf> {
    let target = std::env::var("TARGET").unwrap_or_default();
    if !(target.starts_with("x86_64") && target.contains("linux")) || std::env::var("HOST") != Ok(target.clone()) {
        println!("cargo:warning=the CUDA emulator runs on x86-64 Linux alone, not on {target}: left out");
        return None;
    }
    let check_bounds = std::env::var("RARUNET_EMULATOR_CHECK_BOUNDS").is_ok_and(|value| value == "1");
    let Some(compiler) = Compiler::find(root, check_bounds) else {
        println!("cargo:warning=no C++ compiler ($CXX, c++, g++, clang++): the CUDA emulator is left out");
        return None;
    };
    let compiled = compiler
        .compile_driver(out)
        .and_then(|library| compiler.compile_modules(kernels, &library, &out.join("modules")).map(|()| library));
    match compiled {
        Ok(library) => Some(library),
        Err(message) => panic!("the CUDA emulator does not compile\n{message}"),
    }
}

/// The C++ source of a module: the .cu file for one of its elements, then the table of the kernels found in it.
fn module_source(file: &KernelFile, variant: Option<(&str, &str)>) -> String {
    let table: Vec<String> = file.symbols(variant).iter().map(|symbol| format!("EMULATED_KERNEL({symbol})")).collect();
    let element = variant.map_or(String::new(), |(ending, _)| format!("#define ELEMENT_{ending}\n"));
    format!(
        "{element}#include \"cuda_runtime_emulation.hpp\"\n#include \"{}\"\nEMULATED_MODULE({})\n",
        file.path.display(),
        table.join(", ")
    )
}

/// What of x86-64-v3 matters here, if this machine has it. cuInit refuses to run elsewhere.
fn instruction_set() -> impl Iterator<Item = &'static str> {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default().to_string();
    let has = move |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let all = ["avx2", "fma", "f16c"].into_iter().all(has);
    ["-mavx2", "-mfma", "-mf16c"].into_iter().filter(move |_| all)
}

fn is_gcc(program: &Path) -> bool {
    let version = std::process::Command::new(program).arg("--version").output();
    version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Free Software Foundation"))
}

fn create(folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn write_if_changed(path: &Path, text: &str) -> Result<(), String> {
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
