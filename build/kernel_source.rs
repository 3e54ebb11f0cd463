//! Reads kernel declarations out of .cu files and writes the Rust table of them, `kernels.rs`.
//!
//! A file that says `Element` is compiled once for each of [`ELEMENTS`], and its kernels' names then end in the element's.
//! A kernel is declared as `KERNEL(name)(parameters) {` or `KERNEL_WITH_THREADS(name, threads)(parameters) {`. A macro
//! may stand for parameters that several kernels share.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What `Element` stands for, the one of 32 bits first: the ending of kernel names, and the variant of `Element` in src/device/kernels.rs.
pub const ELEMENTS: &[(&str, &str)] = &[("f32", "F32"), ("bf16", "Bf16"), ("f16", "F16")];

/// A .cu or .cuh file, the kernels it declares and its constants.
pub struct KernelFile {
    pub path: PathBuf,
    pub kernels: Vec<Kernel>,
    /// `constexpr int NAME = 123;`: what the host has to know too, the threads of a block, say.
    pub constants: Vec<(String, u32)>,
    /// Whether it is compiled for each of [`ELEMENTS`].
    pub has_elements: bool,
    /// Whether for those of 16 bits alone: it asserts `sizeof(Element) == 2`.
    pub is_16bit: bool,
}

/// One kernel's declaration.
#[derive(Debug, PartialEq)]
pub struct Kernel {
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// Whether it stands between `#ifdef ELEMENT_f32` and `#endif`.
    pub f32_only: bool,
}

/// One parameter; `kind` is a variant of `Kind` in src/device/kernels.rs.
#[derive(Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub kind: &'static str,
}

impl KernelFile {
    /// Reads and scans `path`.
    ///
    /// # Errors
    /// One line naming the file if it cannot be read or a declaration is not understood.
    pub fn read(path: &Path) -> Result<Self, String> {
        let at = |message: String| format!("{}: {message}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        // A header has macros that look like kernels, and no kernels.
        let is_header = path.extension().is_some_and(|extension| extension == "cuh");
        let kernels = if is_header { Vec::new() } else { scan(&(headers(path, &text)? + &text)).map_err(at)? };
        let has_elements = has_word(&without_comments(&text), "Element");
        let is_16bit = text.contains("static_assert(sizeof(Element) == 2");
        Ok(KernelFile { path: path.to_path_buf(), kernels, constants: scan_constants(&text), has_elements, is_16bit })
    }

    /// What the file is compiled for: each of [`ELEMENTS`], or nothing but f32.
    pub fn variants(&self) -> Vec<Option<(&'static str, &'static str)>> {
        let skipped = usize::from(self.is_16bit);
        if self.has_elements { ELEMENTS.iter().skip(skipped).copied().map(Some).collect() } else { vec![None] }
    }

    /// The names of the kernels that are compiled for one variant.
    pub fn symbols(&self, variant: Option<(&str, &str)>) -> Vec<String> {
        let ending = variant.map_or(String::new(), |(ending, _)| format!("_{ending}"));
        let kernels = self.kernels.iter().filter(|kernel| !kernel.f32_only || ending == "_f32");
        kernels.map(|kernel| format!("{}{ending}", kernel.name)).collect()
    }

    /// The name of what is compiled of it for one variant, without extension.
    pub fn variant_stem(&self, variant: Option<(&str, &str)>) -> String {
        variant.map_or(self.stem().into(), |(ending, _)| format!("{}_{ending}", self.stem()))
    }

    /// The file's name without folder and extension: the op.
    pub fn stem(&self) -> &str {
        self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }
}

/// What the headers of the same folder define that `source` includes, and those that they include.
fn headers(path: &Path, source: &str) -> Result<String, String> {
    let names = source.lines().filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
    let mut definitions = String::new();
    for header in names.map(|name| path.with_file_name(name)).filter(|header| header.exists()) {
        let text = std::fs::read_to_string(&header).map_err(|error| format!("{}: {error}", header.display()))?;
        for (name, value) in macros(&without_comments(&text)) {
            let _ = writeln!(definitions, "#define {name} {value}");
        }
        definitions += &headers(&header, &text)?;
    }
    Ok(definitions)
}

/// Macros without parameters, and what they stand for.
fn macros(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", " ");
    let definition = |line: &str| {
        let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
        name.chars().all(is_identifier).then(|| (name.to_string(), value.trim().to_string()))
    };
    joined.lines().filter_map(definition).collect()
}

/// A list with its macros replaced by what they stand for.
fn expand(list: &str, macros: &[(String, String)]) -> String {
    let item = |item: &str| match macros.iter().find(|(name, _)| name == item.trim()) {
        Some((_, value)) => expand(value, macros),
        None => item.to_string(),
    };
    list.split(',').map(item).collect::<Vec<_>>().join(",")
}

/// All kernels declared in `source`.
pub fn scan(source: &str) -> Result<Vec<Kernel>, String> {
    let text = without_comments(source);
    let (macros, common) = (macros(&text), without_f32(&text));
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find("KERNEL") {
        let before = rest[..start].chars().next_back();
        let after = &rest[start + "KERNEL".len()..];
        let after = after.strip_prefix("_WITH_THREADS").unwrap_or(after);
        rest = after;
        if before.is_some_and(is_identifier) || !after.starts_with('(') {
            continue;
        }
        let (head, tail) = parenthesized(after).ok_or("KERNEL( without )")?;
        let name = head.split(',').next().unwrap_or_default().trim().to_string();
        let (list, tail) = parenthesized(tail.trim_start()).ok_or(format!("KERNEL({name}): no parameter list"))?;
        let list = expand(list, &macros);
        let parameters = list.split(',').map(str::trim).filter(|text| !text.is_empty());
        let parameters: Result<_, _> = parameters.map(parameter).collect();
        let parameters = parameters.map_err(|message| format!("KERNEL({name}): {message}"))?;
        if kernels.iter().any(|kernel| kernel.name == name) {
            return Err(format!("KERNEL({name}) is declared twice"));
        }
        let f32_only = !common.contains(&format!("({name}"));
        kernels.push(Kernel { name, parameters, f32_only });
        rest = tail;
    }
    Ok(kernels)
}

/// The text without what stands between `#ifdef ELEMENT_f32` and `#endif`.
fn without_f32(text: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        inside |= line.starts_with("#ifdef ELEMENT_f32");
        let kept = !inside;
        inside &= !line.starts_with("#endif");
        kept
    };
    text.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

/// All constants of file scope with a plain number as value.
pub fn scan_constants(source: &str) -> Vec<(String, u32)> {
    let constant = |line: &str| {
        let (name, value) = line.strip_prefix("constexpr int ")?.split_once(';')?.0.split_once('=')?;
        Some((name.trim().to_string(), value.trim().parse().ok()?))
    };
    without_comments(source).lines().filter_map(constant).collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|character| !is_identifier(character)).any(|found| found == word)
}

fn is_identifier(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Splits "(inside) after" into "inside" and " after".
fn parenthesized(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 1 => return Some((text.get(1..index)?, &text[index + 1..])),
            ')' => depth = depth.checked_sub(1)?,
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn without_comments(source: &str) -> String {
    let mut text = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        text.push_str(&rest[..start]);
        let (end, skip) = if rest[start..].starts_with("//") { ("\n", 0) } else { ("*/", 2) };
        rest = rest[start..].find(end).map_or("", |length| &rest[start + length + skip..]);
        text.push(' ');
    }
    text + rest
}

/// "const float* __restrict__ a" is an input named a.
fn parameter(text: &str) -> Result<Parameter, String> {
    let split = text.rfind(|character| !is_identifier(character)).map_or(0, |index| index + 1);
    let (type_name, name) = text.split_at(split);
    let words: Vec<&str> =
        type_name.split(|character| !is_identifier(character)).filter(|word| !word.is_empty()).collect();
    let scalar: Vec<&str> = words.iter().copied().filter(|word| *word != "const").collect();
    let kind = match (type_name.contains('*'), scalar.join(" ").as_str()) {
        (true, _) => match (scalar.first(), words.first() == Some(&"const")) {
            (Some(&"Element"), true) => "ElementInput",
            (Some(&"Element"), false) => "ElementOutput",
            (Some(&"Bits"), true) => "BitsInput",
            (Some(&"Bits"), false) => "BitsOutput",
            (_, true) => "Input",
            (_, false) => "Output",
        },
        (false, "int") => "I32",
        (false, "unsigned" | "unsigned int") => "U32",
        (false, "long long") => "I64",
        (false, "unsigned long long") => "U64",
        (false, "float") => "F32",
        _ => return Err(format!("parameter `{text}`: must be a pointer, int, unsigned, long long or float")),
    };
    Ok(Parameter { name: name.to_string(), kind })
}

/// What the kernels were compiled to.
pub struct Images {
    /// The fatbins, in the order of the files and their variants.
    pub paths: Vec<PathBuf>,
    /// Whether there is code for the warp groups of Hopper, which no other GPU and no PTX has.
    pub hopper: bool,
}

/// The text of `kernels.rs`: a constant for each kernel, a module for each file's constants, and the compiled images by
/// file and variant, in the files' order (empty without nvcc).
///
/// # Errors
/// A kernel name that two files declare.
pub fn rust_table(files: &[KernelFile], headers: &[KernelFile], images: Option<&Images>) -> Result<String, String> {
    let mut text = String::from("// Made by build.rs from kernels/*.cu.\n\n");
    let mut names = std::collections::BTreeSet::new();
    for file in files {
        for kernel in &file.kernels {
            if !names.insert(&kernel.name) {
                return Err(format!(
                    "{}: KERNEL({}) is declared in another file too",
                    file.path.display(),
                    kernel.name
                ));
            }
            let _ = write!(
                text,
                "/// `{name}` of `kernels/{file}.cu`.\npub const {constant}: Kernel = Kernel {{ name: \"{name}\", file: \"{file}\", \
                 parameters: &[",
                name = kernel.name,
                file = file.stem(),
                constant = kernel.name.to_uppercase(),
            );
            for Parameter { name, kind } in &kernel.parameters {
                let _ = write!(text, "Parameter {{ name: \"{name}\", kind: Kind::{kind} }}, ");
            }
            text.push_str("] };\n");
        }
    }
    for file in files.iter().chain(headers).filter(|file| !file.constants.is_empty()) {
        let extension = file.path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let _ = writeln!(text, "\n/// Constants of `kernels/{0}.{extension}`.\npub mod {0} {{", file.stem());
        for (name, value) in &file.constants {
            let _ = writeln!(text, "    pub const {name}: usize = {value};");
        }
        text.push_str("}\n");
    }
    let all: Vec<String> = names.iter().map(|name| name.to_uppercase()).collect();
    let _ = writeln!(text, "\n/// All kernels.\npub const KERNELS: &[Kernel] = &[{}];", all.join(", "));
    let _ = writeln!(text, "\n/// Whether the images were compiled; they are empty when the build found no nvcc.");
    let _ = writeln!(text, "pub const HAVE_IMAGES: bool = {};", images.is_some());
    let _ = writeln!(text, "\n/// Whether they have code for the warp groups of Hopper.");
    let _ = writeln!(text, "pub const HAVE_HOPPER: bool = {};", images.is_some_and(|images| images.hopper));
    let _ = writeln!(text, "\n/// What each kernel file was compiled to.\npub static IMAGES: &[Image] = &[");
    let variants = files.iter().flat_map(|file| file.variants().into_iter().map(move |variant| (file, variant)));
    for (index, (file, variant)) in variants.enumerate() {
        let element = variant.map_or("None".into(), |(_, element)| format!("Some(Element::{element})"));
        let bytes = images.map_or("&[]".into(), |images| format!("include_bytes!({:?})", images.paths[index]));
        let (file, symbols) = (file.stem(), file.symbols(variant));
        let _ = writeln!(
            text,
            "    Image {{ file: {file:?}, element: {element}, symbols: &{symbols:?}, bytes: {bytes} }},"
        );
    }
    Ok(text + "];\n")
}
