//! The ONNX file of every network: complete, and, run by a plain interpreter, with the engine's probabilities.

mod interpreter;

use crate::protobuf::Message;
use assert_cmd::Command;
use interpreter::{Tensor, interpret};
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::model::weights::{self, WeightsFile};
use rarunet_cuda::model::{ARCHITECTURES, Mode, Model, Network};
use rarunet_cuda::onnx::onnx;
use rarunet_cuda::preprocessing::{HounsfieldWindow, Preprocessing};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SIZE: [usize; 2] = [16, 32];
const BATCH: usize = 2;

/// A narrow network whose running statistics are not those it starts with, on the CPU.
fn network(name: &str) -> Network<f32> {
    let model = Model::new(name, [8, 9, 10, 11, 12]).unwrap();
    let mut network = Network::new(model, Box::new(CpuDevice::new().unwrap())).unwrap();
    network.initialise(5).unwrap();
    let initial = network.weights().unwrap();
    network
        .set_weights(|parameter| {
            let values = initial[&parameter.name].iter().enumerate();
            Ok(match parameter.name.contains("running_") {
                true => values.map(|(i, value)| value + 0.1 * (i % 5) as f32).collect(),
                false => values.map(|(i, value)| value + 0.01 * (i % 3) as f32).collect(),
            })
        })
        .unwrap();
    network
}

fn saved(network: &mut Network<f32>, folder: &Path) -> PathBuf {
    let path = folder.join("weights.safetensors");
    let preprocessing = Preprocessing { size: 32, window: HounsfieldWindow::default() };
    weights::save(network, &preprocessing, &path).unwrap();
    path
}

/// The model's graph, checked: each name is given once, before it is used, and height, width and batch are open.
fn graph(model: Message) -> Message {
    assert_eq!((model.ints(1), model.message(8).ints(2)), (vec![8], vec![17]));
    let graph = model.message(7);
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, tensor) in graph.messages(5).into_iter().map(|tensor| (tensor.text(8), tensor)) {
        let elements: i64 = tensor.ints(1).iter().product();
        assert_eq!((tensor.ints(2), tensor.message(9).0.len() as i64), (vec![1], 4 * elements), "{name}");
        assert!(known.insert(name));
    }
    for (field, name) in [(11, "image"), (12, "probability")] {
        let info = graph.message(field);
        assert_eq!(info.text(1), name);
        let tensor = info.message(2).message(1);
        let dimensions = tensor.message(2).messages(1);
        let lengths: Vec<_> = dimensions.iter().map(|d| (d.ints(1), d.texts(2))).collect();
        let open = |name: &str| (vec![], vec![name.to_string()]);
        assert_eq!(lengths, [open("batch"), (vec![1], vec![]), open("height"), open("width")]);
    }
    known.insert("image".into());
    let mut used = BTreeSet::new();
    for node in graph.messages(1) {
        for input in node.texts(1) {
            assert!(known.contains(&input), "{input} is used before it is there");
            used.insert(input);
        }
        for output in node.texts(2) {
            assert!(known.insert(output.clone()), "{output} is there twice");
        }
    }
    used.insert("probability".into());
    assert_eq!(known, used, "nothing is there for nothing");
    graph
}

/// What the engine makes of an image in f64, so that a difference is the file's.
fn exact_probabilities(network: &mut Network<f32>, image: &[f32]) -> Vec<f64> {
    let weights = network.weights().unwrap();
    let mut exact = Network::new(network.model().clone(), Box::new(CpuDevice::<f64>::new().unwrap())).unwrap();
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    exact.set_weights(|parameter| Ok(wide(&weights[&parameter.name]))).unwrap();
    let step = exact.load(Mode::Evaluate, BATCH, SIZE).unwrap();
    exact.write_batch(&step, &wide(image), &wide(image), &[0.0; BATCH]).unwrap();
    exact.evaluate(&step).unwrap();
    let mut probabilities = vec![0.0; image.len()];
    exact.prediction(&step, &mut probabilities).unwrap();
    probabilities
}

#[test]
fn every_network_gives_the_engines_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in &ARCHITECTURES {
        let mut network = network(architecture.name);
        let path = saved(&mut network, folder.path());
        let bytes = std::fs::read(&path).unwrap();
        let exported = onnx(&WeightsFile::new(&path, &bytes).unwrap()).unwrap();
        let pixels = BATCH * SIZE[0] * SIZE[1];
        let image: Vec<f32> = (0..pixels).map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.3) * 3.0).collect();
        let expected = exact_probabilities(&mut network, &image);
        let step = network.load(Mode::Evaluate, BATCH, SIZE).unwrap();
        network.write_batch(&step, &image, &image, &[0.0; BATCH]).unwrap();
        network.evaluate(&step).unwrap();
        let mut own = vec![0.0; pixels];
        network.prediction(&step, &mut own).unwrap();

        let graph = graph(Message(&exported));
        assert_eq!(graph.messages(5).len(), network.parameters().len());
        let found = interpret(graph, Tensor { shape: vec![BATCH, 1, SIZE[0], SIZE[1]], values: image });
        assert_eq!(found.shape, [BATCH, 1, SIZE[0], SIZE[1]]);
        let spread = expected.iter().fold((1.0f64, 0.0f64), |(low, high), &p| (low.min(p), high.max(p)));
        assert!(spread.1 - spread.0 > 1e-3, "{}: probabilities that are all alike show nothing", architecture.name);
        // Statistics that are not the images' own, as here, make sums of large terms.
        let rounding = own.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
        assert!(rounding <= 2e-5, "{}: in f32 {rounding}", architecture.name);
        let worst = found.values.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-5, "{}: {worst}", architecture.name);
    }
}

#[test]
fn the_command_writes_a_file_with_its_metadata_and_replaces_none_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let weights = saved(&mut network("unet"), folder.path());
    let out = folder.path().join("unet.onnx");
    let export = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rarunet-cuda"));
        let output = command.arg("export").arg("--weights").arg(&weights).arg("--onnx").arg(&out).args(more).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = export(&[]);
    assert!(code == Some(0) && text.contains("unet, "), "{text}");
    let bytes = std::fs::read(&out).unwrap();
    let model = Message(&bytes);
    graph(model);
    let metadata: Vec<(String, String)> =
        model.messages(14).iter().map(|entry| (entry.text(1), entry.text(2))).collect();
    for (key, value) in [("model", "unet"), ("widths", "8,9,10,11,12"), ("size", "32"), ("window", "-200,1000,0.1,5")] {
        assert!(metadata.contains(&(key.into(), value.into())), "{key}: {metadata:?}");
    }
    let (code, text) = export(&[]);
    assert!(code == Some(1) && text.contains("--overwrite"), "{text}");
    assert_eq!(export(&["--overwrite"]).0, Some(0));
    assert_eq!(std::fs::read(&out).unwrap(), bytes, "the same weights, the same bytes");
    std::fs::write(&weights, "no weights").unwrap();
    let (code, text) = export(&["--overwrite"]);
    assert!(code == Some(1) && text.contains("weights.safetensors: not a weights file"), "{text}");
}
