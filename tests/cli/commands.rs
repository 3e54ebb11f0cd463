//! `models`, `gradcheck`, `bench`, `devices`, `phantom` and `inspect`.

use super::{error, json, run};
use rarunet_cuda::data::{Dataset, read_image, read_labels};
use serde_json::Value;

#[test]
fn models_have_the_papers_parameters_to_the_digit() {
    let counts: Vec<(String, u64)> = json(["models", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["name"].as_str().unwrap().to_owned(), model["parameters"].as_u64().unwrap()))
        .collect();
    // Table 4, and Table 1 for the last.
    let expected = [
        ("unet", 7_762_465),
        ("residual-unet", 9_899_625),
        ("path-unet", 8_912_673),
        ("attention-unet", 7_785_157),
        ("residual-attention-unet", 9_922_317),
        ("residual-path-unet", 11_049_833),
        ("rar-unet", 11_794_125),
        ("dense-unet", 15_484_683),
    ];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
    let text = String::from_utf8(run(["models"]).stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("rar-unet ") && line.contains(" 11794125 ")), "{text}");
}

#[test]
fn models_of_other_widths_have_other_parameters() {
    let models = json(["models", "--json", "--widths", "8,8,8,8,8"]);
    assert_eq!(models[0]["widths"], serde_json::json!([8, 8, 8, 8, 8]));
    assert!(models[0]["parameters"].as_u64().unwrap() < 20_000);
    assert!(!models[0]["source"].as_str().unwrap().contains("Table"));
}

#[test]
fn gradcheck_passes_in_each_precision() {
    for (precision, tolerance) in [("f64", 1e-6), ("f32", 1e-4), ("bf16", 1e-2), ("fp16", 2e-3)] {
        let report = json(["gradcheck", "--json", "--precision", precision, "--device", "cpu", "--op", "sigmoid"]);
        assert_eq!((report["device"].as_str(), report["precision"].as_str()), (Some("cpu"), Some(precision)));
        assert!(report["device_name"].as_str().unwrap().starts_with("cpu, "));
        let checks = report["checks"].as_array().unwrap();
        assert_eq!((checks.len(), &checks[0]["op"], &checks[0]["passed"]), (1, &"sigmoid".into(), &true.into()));
        assert_eq!(checks[0]["tolerance"].as_f64(), Some(tolerance));
        let error = checks[0]["max_relative_error"].as_f64().unwrap();
        assert!((0.0..tolerance).contains(&error), "{error}");
    }
}

const TINY: [&str; 8] = ["bench", "--widths", "8,8,8,8,8", "--size", "16", "--batch", "2", "--json"];

fn number(report: &Value, key: &str) -> f64 {
    let number = report[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {report}"));
    assert!(number > 0.0, "{key} is {number}");
    number
}

#[test]
fn bench_tells_speed_memory_and_work() {
    let step = json(TINY.iter().chain(&["--steps", "3", "--threads", "1"]));
    let inference = json(TINY.iter().chain(&["--infer", "--model", "unet"]));
    assert_eq!((step["device"].as_str(), step["model"].as_str()), (Some("cpu"), Some("rar-unet")));
    assert!(step["device_name"].as_str().unwrap().starts_with("cpu, 1 thread"), "{step}");
    assert_eq!((step["size"].as_u64(), step["batch"].as_u64(), step["steps"].as_u64()), (Some(16), Some(2), Some(3)));
    assert_eq!((step["infer"].as_bool(), inference["infer"].as_bool()), (Some(false), Some(true)));
    assert_eq!(inference["model"].as_str(), Some("unet"));
    for report in [&step, &inference] {
        let (seconds, gflop) = (number(report, "median_s"), number(report, "gflop_per_step"));
        assert!((number(report, "images_per_s") * seconds / 2.0 - 1.0).abs() < 1e-9);
        assert!((number(report, "gflop_per_s") * seconds / gflop - 1.0).abs() < 1e-9);
    }
    // Parameters, gradients and both moments are 32-bit numbers.
    let least = 4.0 * 4.0 * number(&step, "parameters") / f64::from(1 << 30);
    assert!(number(&step, "peak_mem_GiB") > least);
    assert!(number(&inference, "peak_mem_GiB") < number(&step, "peak_mem_GiB"));
}

#[test]
fn devices_names_the_cpu_and_says_why_not_the_others() {
    let devices = json(["devices", "--json"]);
    assert_eq!((&devices[0]["device"], &devices[0]["available"]), (&"cpu".into(), &true.into()));
    let others = &devices.as_array().unwrap()[1..];
    assert!(others.iter().all(|device| !device["description"].as_str().unwrap().is_empty()));
    assert!(String::from_utf8(run(["devices"]).stdout).unwrap().contains("\ncpu "));
}

#[test]
fn phantom_writes_a_data_set_and_never_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let arguments = ["phantom", "--patients", "2", "--slices", "4", "--size", "32", "--seed", seed, "--out"];
        let output = run(arguments.into_iter().chain([out.to_str().unwrap()]));
        assert_eq!((output.status.code(), output.stdout), (Some(0), vec![]));
        out
    };
    let out = make("a", "3");
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(), ["patient1", "patient2"]);
    for case in &dataset.cases {
        let (image, _) = read_image(&case.image).unwrap();
        let (mask, _) = read_labels(&case.mask).unwrap();
        assert_eq!((image.geometry.shape, image.geometry.orientation().as_str()), ([32, 32, 4], "RAS"));
        assert_eq!(mask.geometry, image.geometry);
        assert!(image.voxels.iter().any(|&hounsfield| hounsfield < -900.0), "there is air");
        assert!(mask.voxels.contains(&1) && mask.voxels.iter().all(|label| [0, 1].contains(label)));
    }

    let (again, other) = (make("b", "3"), make("c", "4"));
    let bytes = |out: &std::path::Path| std::fs::read(out.join("imagesTr/patient2_0000.nii.gz")).unwrap();
    assert_eq!(bytes(&again), bytes(&out));
    assert_ne!(bytes(&other), bytes(&out));

    let (line, code) = error(["phantom", "--out", out.to_str().unwrap()]);
    assert!(code == Some(1) && line.contains("is not empty"), "{line}");

    let found = json(["inspect", "--json", out.to_str().unwrap()]);
    assert_eq!(found["cases"][1]["shape"], serde_json::json!([32, 32, 4]));
    assert_eq!(found["problems"], serde_json::json!([]));
    let folder = out.to_str().unwrap();
    let labelled = json(["inspect", "--json", "--labels", "7", folder]);
    assert_eq!(labelled["cases"][0]["foreground_slices"], 0);
    let problem = "no mask has a label of 7 (they have 0-1): there is nothing to learn";
    assert_eq!(labelled["problems"], serde_json::json!([problem]));
    let image = json(["inspect", "--json", dataset.cases[0].image.to_str().unwrap()]);
    assert_eq!((&image["orientation"], &image["dtype"]), (&"RAS".into(), &"int16".into()));
    assert!(error(["inspect", "--labels", "7", dataset.cases[0].mask.to_str().unwrap()]).0.contains("leave it out"));
    let text = run(["inspect", dataset.cases[0].mask.to_str().unwrap()]).stdout;
    assert!(String::from_utf8(text).unwrap().contains("\nlabels       0: "));
}

#[test]
fn phantom_writes_the_same_patients_as_metaimage() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for format in ["nifti", "metaimage"] {
        let arguments = ["phantom", "--patients", "2", "--slices", "4", "--size", "32", "--format", format];
        assert_eq!(run(arguments.into_iter().chain(["--out", &path(format)])).status.code(), Some(0));
    }
    let [nifti, metaimage] = ["nifti", "metaimage"].map(|format| Dataset::open(&folder.path().join(format)).unwrap());
    assert_eq!(metaimage.cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(), ["case1", "case2"]);
    for (nifti, metaimage) in nifti.cases.iter().zip(&metaimage.cases) {
        let (expected, written) = (read_image(&nifti.image).unwrap().0, read_image(&metaimage.image).unwrap().0);
        assert_eq!(expected.voxels, written.voxels);
        assert_eq!(expected.geometry.difference(&written.geometry, ["NIfTI", "MetaImage"]), None);
        let (expected, written) = (read_labels(&nifti.mask).unwrap().0, read_labels(&metaimage.mask).unwrap().0);
        assert_eq!(expected.voxels, written.voxels);
    }
    // A data set is a reference as it is, whatever its files are named.
    let masks = folder.path().join("masks");
    std::fs::create_dir(&masks).unwrap();
    for number in 1..=2 {
        let from = folder.path().join(format!("nifti/labelsTr/patient{number}.nii.gz"));
        std::fs::copy(from, masks.join(format!("case{number}.nii.gz"))).unwrap();
    }
    let report = json(["evaluate", "--json", "--prediction", &path("masks"), "--reference", &path("metaimage")]);
    assert_eq!(report["cases"][1]["volume"]["dice"], 1.0);
}

#[test]
fn completions_and_manual_pages_know_every_command_and_flag() {
    for (shell, sign) in
        [("bash", "complete -F"), ("zsh", "#compdef rarunet-cuda"), ("fish", "complete -c rarunet-cuda")]
    {
        let output = run(["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains(sign), "{shell}");
        assert!(script.contains("noise-overlap") && script.contains("gradcheck"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("pages");
    assert!(run(["man", "--out", pages.to_str().unwrap()]).status.success());
    let help = String::from_utf8(run(["--help"]).stdout).unwrap();
    let listed = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    // Two spaces, then the command; what it does may go on in lines that are further in.
    let commands: Vec<&str> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 12, "{commands:?}");
    for command in &commands {
        let page = std::fs::read_to_string(pages.join(format!("rarunet-cuda-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"), "{command}");
        assert_eq!(String::from_utf8(run(["man", command]).stdout).unwrap(), page);
    }
    assert_eq!(std::fs::read_dir(&pages).unwrap().count(), commands.len() + 1);
    let (line, code) = error(["man", "trian"]);
    assert!(code == Some(1) && line.contains("did you mean train?"), "{line}");
}

#[test]
fn quiet_is_quiet_but_for_errors() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("spine");
    let output =
        run(["--quiet", "phantom", "--out", out.to_str().unwrap(), "--patients", "1", "--slices", "2", "--size", "32"]);
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
    let noisy = folder.path().join("noisy");
    let corrupt = ["corrupt", out.to_str().unwrap(), "--noise-proportion", "0.5", "--noise-overlap", "0.7", "--out"];
    let output = run(corrupt.iter().copied().chain([noisy.to_str().unwrap(), "-q"]));
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
    assert!(!output.stdout.is_empty(), "results are no noise");
    let (line, _) = error(["inspect", "absent.nii.gz", "--quiet"]);
    assert!(line.contains("absent.nii.gz"));
    assert_eq!(run(["models", "--quiet", "--verbose"]).status.code(), Some(2));
}
