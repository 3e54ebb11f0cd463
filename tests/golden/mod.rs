//! PyTorch's values: one training step and inference of each network, computed there in float64.
//!
//! Every `*.safetensors` of `$RARUNET_GOLDEN_DIR` (else of this folder) is compared. The f32 tolerances are
//! what PyTorch itself differs by between f64 and f32, where a ReLU or maximum near a tie may fall the other way.

use rarunet_cuda::device::Device;
use rarunet_cuda::device::cpu::{CpuDevice, InstructionSet, Real};
use rarunet_cuda::model::weights::{WeightsFile, parse_widths};
use rarunet_cuda::model::{Mode, Model, Network, Parameter};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How near the values must be.
struct Tolerances {
    /// Of predictions and losses.
    absolute: f64,
    inference: f64,
    statistics: f64,
    gradients: Gradients,
    adam: Adam,
}

enum Gradients {
    /// The largest difference, over the tensor's largest magnitude.
    Element(f64),
    /// The norm of the difference over the norm: of a tensor, and of all together.
    Norm(f64, f64),
}

enum Adam {
    Absolute(f64),
    /// No element differs by more than the first, and at most a share (the last) by more than the second.
    Mostly(f64, f64, f64),
}

const F64: Tolerances = Tolerances {
    absolute: 1e-6,
    inference: 2e-6,
    statistics: 1e-6,
    gradients: Gradients::Element(1e-6),
    adam: Adam::Absolute(1e-6),
};

const F32: Tolerances = Tolerances {
    absolute: 5e-5,
    inference: 5e-5,
    statistics: 1e-5,
    gradients: Gradients::Norm(5e-3, 1e-3),
    adam: Adam::Mostly(2.1e-3, 1e-5, 5e-3),
};

/// Everything that did not agree.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn check(&mut self, what: &str, error: f64, tolerance: f64) {
        if error.is_nan() || error > tolerance {
            self.0.push(format!("{what}: {error:.3e} is over {tolerance:.0e}"));
        }
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { f64::max(a, b.abs()) })
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn difference<'a, T: Real>(actual: &'a [T], expected: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    assert_eq!(actual.len(), expected.len(), "tensors of one shape are compared");
    actual.iter().zip(expected).map(|(&a, &e)| a.to_f64() - f64::from(e))
}

struct Golden<'a> {
    file: WeightsFile<'a>,
    model: Model,
    parameters: Vec<Parameter>,
}

impl<'a> Golden<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        let file = WeightsFile::new(path, bytes).unwrap();
        let model =
            Model::new(file.metadata("model").unwrap(), parse_widths(file.metadata("widths").unwrap()).unwrap());
        let model = model.unwrap();
        let parameters = model.parameters();
        Golden { file, model, parameters }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        self.file.tensor(name, shape).unwrap()
    }

    fn network<T: Real>(&self, device: Box<dyn Device<T>>, trained: &str, statistics: Option<&str>) -> Network<T> {
        let mut network = Network::new(self.model.clone(), device).unwrap();
        network.initialise(0).unwrap();
        let initial = network.weights().unwrap();
        network
            .set_weights(|parameter| {
                let prefix = if parameter.name.contains("running") { statistics } else { Some(trained) };
                Ok(match prefix {
                    Some(prefix) => convert(&self.get(&format!("{prefix}.{}", parameter.name), &parameter.shape)),
                    None => initial[&parameter.name].clone(),
                })
            })
            .unwrap();
        network
    }

    /// The names and shapes of the trained parameters, or of the running statistics.
    fn named(&self, running: bool) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(move |parameter| parameter.name.contains("running") == running)
    }
}

fn convert<T: Real>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value.into())).collect()
}

const BATCH: usize = 3;
const SIZE: usize = 32;
const IMAGES: [usize; 4] = [BATCH, 1, SIZE, SIZE];

/// Compares everything in a golden file; `device` makes a device.
fn compare<T: Real>(path: &Path, device: &dyn Fn() -> Box<dyn Device<T>>, tolerances: &Tolerances) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap();
    let golden = Golden::new(path, &bytes);
    let mut report = Report::default();
    let mut network = golden.network(device(), "param", None);
    let step = network.load(Mode::Train, BATCH, [SIZE; 2]).unwrap();
    network.poison().unwrap();
    let (input, target) = (golden.get("input", &IMAGES), golden.get("target", &IMAGES));
    let (input, target, weight) = (convert(&input), convert(&target), convert(&golden.get("weight", &[BATCH])));
    network.write_batch(&step, &input, &target, &weight).unwrap();
    let losses = network.train(&step, 1e-3, 1).unwrap();
    let mut prediction = vec![T::ZERO; input.len()];
    network.prediction(&step, &mut prediction).unwrap();

    let expected = golden.get("train.prediction", &IMAGES);
    report.check("prediction", largest(difference(&prediction, &expected)), tolerances.absolute);
    let expected = golden.get("train.loss", &[1]);
    report.check("loss", largest(difference(&[losses.batch], &expected)), tolerances.absolute);
    let expected = golden.get("train.loss_per_sample", &[BATCH]);
    report.check("losses per sample", largest(difference(&losses.samples, &expected)), tolerances.absolute);
    check_gradients(&golden, &network.gradients(&step).unwrap(), &tolerances.gradients, &mut report);
    let weights = network.weights().unwrap();
    for parameter in golden.named(true) {
        let expected = golden.get(&format!("buffer.{}", parameter.name), &parameter.shape);
        let scale = largest(expected.iter().map(|&value| value.into()));
        let error = largest(difference(&weights[&parameter.name], &expected)) / scale;
        report.check(&parameter.name, error, tolerances.statistics);
    }
    check_adam(&golden, &weights, &tolerances.adam, &mut report);

    let mut network = golden.network(device(), "adam", Some("buffer"));
    let step = network.load(Mode::Evaluate, BATCH, [SIZE; 2]).unwrap();
    network.poison().unwrap();
    network.write_batch(&step, &input, &target, &weight).unwrap();
    network.evaluate(&step).unwrap();
    network.prediction(&step, &mut prediction).unwrap();
    let expected = golden.get("eval.prediction", &IMAGES);
    report.check("inference", largest(difference(&prediction, &expected)), tolerances.inference);
    report.0
}

fn check_gradients<T: Real>(
    golden: &Golden,
    gradients: &BTreeMap<String, Vec<T>>,
    tolerances: &Gradients,
    report: &mut Report,
) {
    let (mut all_differences, mut all_values) = (0.0, 0.0);
    for parameter in golden.named(false) {
        let expected = golden.get(&format!("grad.{}", parameter.name), &parameter.shape);
        let actual = &gradients[&parameter.name];
        let name = format!("gradient of {}", parameter.name);
        match *tolerances {
            Gradients::Element(tolerance) => {
                let scale = largest(expected.iter().map(|&value| value.into()));
                report.check(&name, largest(difference(actual, &expected)) / scale, tolerance);
            }
            Gradients::Norm(tolerance, _) => {
                let (error, size) =
                    (norm(difference(actual, &expected)), norm(expected.iter().map(|&value| value.into())));
                report.check(&name, error / size, tolerance);
                all_differences += error * error;
                all_values += size * size;
            }
        }
    }
    if let Gradients::Norm(_, tolerance) = *tolerances {
        report.check("all gradients", (all_differences / all_values).sqrt(), tolerance);
    }
}

fn check_adam<T: Real>(golden: &Golden, weights: &BTreeMap<String, Vec<T>>, tolerances: &Adam, report: &mut Report) {
    let (mut far, mut count) = (0, 0);
    for parameter in golden.named(false) {
        let expected = golden.get(&format!("adam.{}", parameter.name), &parameter.shape);
        let error = largest(difference(&weights[&parameter.name], &expected));
        let name = format!("{} after Adam", parameter.name);
        match *tolerances {
            Adam::Absolute(tolerance) => report.check(&name, error, tolerance),
            Adam::Mostly(most, near, _) => {
                report.check(&name, error, most);
                far += difference(&weights[&parameter.name], &expected).filter(|error| error.abs() > near).count();
                count += expected.len();
            }
        }
    }
    if let Adam::Mostly(_, _, share) = *tolerances {
        report.check("share of parameters that differ after Adam", far as f64 / count as f64, share);
    }
}

/// Where the golden files are: `RARUNET_GOLDEN_DIR`, or this folder.
fn folder() -> PathBuf {
    let moved = std::env::var_os("RARUNET_GOLDEN_DIR").map(PathBuf::from);
    moved.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"))
}

fn files() -> Vec<PathBuf> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no golden files", folder.display());
    files
}

fn cpu<T: Real>() -> Box<dyn Device<T>> {
    Box::new(CpuDevice::new().unwrap())
}

fn compare_all<T: Real>(device: &dyn Fn() -> Box<dyn Device<T>>, tolerances: &Tolerances) {
    for path in files() {
        let wrong = compare(&path, device, tolerances);
        assert!(wrong.is_empty(), "{}:\n{}", path.display(), wrong.join("\n"));
    }
}

#[test]
fn golden_cpu_f64() {
    compare_all::<f64>(&cpu, &F64);
}

#[test]
fn golden_cpu_f32() {
    compare_all::<f32>(&cpu, &F32);
}

/// Every instruction set that this processor has, whichever is the best.
#[test]
fn golden_cpu_with_lesser_instruction_sets() {
    for set in [InstructionSet::Portable, InstructionSet::Avx2] {
        if set < InstructionSet::best() {
            compare_all::<f32>(&|| Box::new(CpuDevice::with(None, set).unwrap()), &F32);
            compare_all::<f64>(&|| Box::new(CpuDevice::with(None, set).unwrap()), &F64);
        }
    }
}

#[test]
fn golden_cuda_f32() {
    if crate::cuda::open().is_some() {
        compare_all::<f32>(&|| Box::new(crate::cuda::open().expect("it opened before")), &F32);
    }
}

/// A change of 1e-2 of any kind of value is noticed.
#[test]
fn golden_notices_a_changed_value() {
    let path = folder().join("rar-unet.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header_size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_size]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for key in [
        "train.prediction",
        "train.loss_per_sample",
        "grad.up.1.weight",
        "buffer.encoder.0.bn.running_var",
        "adam.head.weight",
        "eval.prediction",
        "input",
        "param.decoder.2.attention.spatial.weight",
    ] {
        let offset = 8 + header_size + header[key]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut changed = bytes.clone();
        let value = f32::from_le_bytes(changed[offset..offset + 4].try_into().unwrap()) + 1e-2;
        changed[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let copy = folder.path().join("changed.safetensors");
        std::fs::write(&copy, changed).unwrap();
        assert!(!compare::<f64>(&copy, &cpu, &F64).is_empty(), "a change of {key} was not noticed");
    }
}
