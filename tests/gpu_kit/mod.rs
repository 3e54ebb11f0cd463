//! The GPU kit's `run.sh`, with programs in place of the kit's own that do as they are told.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What the tests print when all is well; the kit's benches and program stand beside it.
const PASSED: &str = "echo 'test result: ok. 3 passed; 0 failed'";

fn script(path: &Path, lines: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Runs a kit whose tests do this, and whose `gradcheck` ends with this code: the exit code, and the report.
fn run(tests: &str, gradcheck: i32) -> (i32, Value) {
    let kit = tempfile::tempdir().unwrap();
    let path = |name: &str| kit.path().join(name);
    std::fs::create_dir(path("benches")).unwrap();
    std::fs::write(path("VERSION"), "a \"kit\"\\ of\ntwo lines\n").unwrap();
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-kit-run.sh"), path("run.sh")).unwrap();
    script(&path("tests"), tests);
    script(&path("benches/kernels"), "echo a second");
    script(&path("benches/cudnn"), "echo '| **all** | 2 of 2 | 1.50 |'; echo [] >\"$3\"");
    let program = format!(
        "case $1 in devices) echo 'emulator  yes  fast';; bench) echo '{{\"images_per_s\": 7.5}}';;
         gradcheck) echo '{{\"checks\": []}}'; exit {gradcheck};; esac"
    );
    script(&path("rarunet-cuda"), &program);
    let status =
        Command::new("bash").arg(path("run.sh")).env("DEVICE", "emulator").env("LIMIT", "4").output().unwrap().status;
    let report = std::fs::read_to_string(path("report/report.json")).unwrap();
    let text = std::fs::read_to_string(path("report/report.txt")).unwrap();
    assert_eq!(std::fs::read_to_string(path("report/cudnn.json")).unwrap(), "[]\n");
    assert!(text.ends_with(if status.success() { "all passed\n" } else { "something FAILED\n" }), "{text}");
    (status.code().unwrap(), serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}")))
}

fn results(report: &Value, result: &str) -> Vec<String> {
    let steps = report["steps"].as_array().unwrap().iter().filter(|step| step["result"] == result);
    steps.map(|step| step["name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn a_kit_reports_what_passed() {
    let (code, report) = run(PASSED, 0);
    assert_eq!((code, &report["passed"]), (0, &Value::Bool(true)), "{report:#}");
    let tests = ["devices", "cuda-tests", "golden-values", "gradcheck"];
    let benches = ["bench-train-f32", "bench-infer-f32", "bench-ops-f32", "bench-cudnn", "bench-kernels"];
    assert_eq!(results(&report, "passed"), [&tests[..], &benches].concat());
    assert_eq!(
        results(&report, "skipped"),
        ["memcheck", "racecheck", "synccheck", "initcheck", "precisions", "profile", "peer"]
    );
    let bench = report["steps"].as_array().unwrap().iter().find(|step| step["name"] == "bench-train-f32").unwrap();
    assert_eq!(bench["output"]["images_per_s"], 7.5);
    let cudnn = report["steps"].as_array().unwrap().iter().find(|step| step["name"] == "bench-cudnn").unwrap();
    assert_eq!(cudnn["note"], "| **all** | 2 of 2 | 1.50 |");
    assert_eq!(report["version"], "a \"kit\"\\ of two lines");
}

/// Tests that fail, that skip, that are none, that crash or hang; and a check that fails.
#[test]
fn a_kit_that_fails_says_so() {
    let tests = ["cuda-tests", "golden-values"];
    for lines in [
        "echo 'test result: FAILED. 2 passed; 1 failed'; exit 101",
        "echo 'skipped: no CUDA emulator'; echo 'test result: ok. 3 passed; 0 failed'",
        "echo 'test result: ok. 0 passed; 0 failed'",
        "kill -s SEGV $$",
        "exec sleep 60",
    ] {
        let (code, report) = run(lines, 0);
        assert_eq!((code, results(&report, "FAILED")), (1, tests.map(String::from).to_vec()), "{lines}: {report:#}");
        assert_eq!(report["passed"], false);
    }
    let (code, report) = run(PASSED, 1);
    assert_eq!((code, results(&report, "FAILED")), (1, vec!["gradcheck".to_string()]), "{report:#}");
}
