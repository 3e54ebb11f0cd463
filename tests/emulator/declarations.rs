//! The build's reading of kernel declarations.

use super::kernel_source::{Kernel, KernelFile, Parameter, rust_table, scan, scan_constants};

fn kernel(name: &str, parameters: &[(&str, &'static str)]) -> Kernel {
    let parameters = parameters.iter().map(|(name, kind)| Parameter { name: name.to_string(), kind }).collect();
    Kernel { name: name.into(), parameters, f32_only: false }
}

#[test]
fn declarations_are_found_and_comments_are_not() {
    let source = "
        // KERNEL(in_a_comment)(int n) {}
        /* KERNEL(in_another)(int n) {} */
        #define MY_KERNEL(name) name
        KERNEL(first)(
            float* __restrict__ out,  // [n], out of (a, b)
            const float *a, const __half* __restrict__ b, /* two, of them */
            int n, unsigned int m, long long size, const float scale) { if (n) {} }
        KERNEL_WITH_THREADS(second, TILE * (2 + 2))() {}
        MY_KERNEL(not_one)(int n);";
    let first = [
        ("out", "Output"),
        ("a", "Input"),
        ("b", "Input"),
        ("n", "I32"),
        ("m", "U32"),
        ("size", "I64"),
        ("scale", "F32"),
    ];
    assert_eq!(scan(source), Ok(vec![kernel("first", &first), kernel("second", &[])]));
}

#[test]
fn macros_stand_for_parameters() {
    let source = "
        #define SIZES int n, int m
        #define PARAMETERS \\
          float* out, /* [n, m] */ \\
          SIZES
        KERNEL(first)(PARAMETERS, float scale) {}
        KERNEL(second)(SIZES) {}";
    let source = source.replace("        #", "#");
    let (n, m) = (("n", "I32"), ("m", "I32"));
    let first = kernel("first", &[("out", "Output"), n, m, ("scale", "F32")]);
    assert_eq!(scan(&source), Ok(vec![first, kernel("second", &[n, m])]));
}

#[test]
fn declarations_that_cannot_be_launched_are_refused() {
    for (source, wanted) in [
        ("KERNEL(k)(Shape shape) {}", "KERNEL(k): parameter `Shape shape`: must be a pointer"),
        ("KERNEL(k)(double x) {}", "parameter `double x`"),
        ("KERNEL(k) {}", "KERNEL(k): no parameter list"),
        ("KERNEL(k)(int n", "KERNEL(k): no parameter list"),
        ("KERNEL(k", "KERNEL( without )"),
        ("KERNEL(k)() {} KERNEL(k)() {}", "KERNEL(k) is declared twice"),
    ] {
        let found = scan(source).expect_err(source);
        assert!(found.contains(wanted), "{source}: {found}");
    }
}

#[test]
fn constants_are_plain_numbers_of_file_scope() {
    let source = "
constexpr int THREADS = 256;  // of a block
constexpr int DOUBLED = 2 * THREADS;
// constexpr int REMOVED = 1;
constexpr float SCALE = 3;
  constexpr int INDENTED = 4;
constexpr int STEP=5;";
    assert_eq!(scan_constants(source), [("THREADS".to_string(), 256), ("STEP".to_string(), 5)]);
}

#[test]
fn the_table_names_each_kernel_once() {
    let file = |stem: &str| KernelFile {
        path: format!("kernels/{stem}.cu").into(),
        kernels: vec![kernel("k_f32", &[("n", "I32")])],
        constants: vec![("THREADS".to_string(), 128)],
        has_elements: false,
        is_16bit: false,
    };
    let table = rust_table(&[file("op")], &[], None).unwrap();
    assert!(table.contains("pub const K_F32: Kernel = Kernel { name: \"k_f32\", file: \"op\""), "{table}");
    assert!(table.contains("Parameter { name: \"n\", kind: Kind::I32 }"), "{table}");
    assert!(table.contains("pub mod op {\n    pub const THREADS: usize = 128;\n}"), "{table}");
    assert!(rust_table(&[file("op"), file("other")], &[], None).unwrap_err().contains("declared in another file too"));
}
