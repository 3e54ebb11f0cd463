//! Weights files: safetensors with PyTorch's names and shapes, and the model's name and widths as metadata.

use super::tensors::{self, Tensor, TensorFile};
use super::{Model, Network, Parameter};
use crate::device::cpu::Real;
use crate::preprocessing::{HounsfieldWindow, Preprocessing, check_size};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The widest level and the largest slices that are believed; the paper has 512 and 256.
const LARGEST_WIDTH: usize = 4096;
const LARGEST_SIZE: usize = 4096;

/// The weights in a file's bytes.
pub struct WeightsFile<'a>(TensorFile<'a>);

impl<'a> WeightsFile<'a> {
    /// Reads the header of a file's `bytes`, and checks them if the file has checksums; `path` is for messages.
    ///
    /// # Errors
    /// If it is no safetensors file, or damaged.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        TensorFile::new(path, bytes).map(WeightsFile)
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.0.metadata(key)
    }

    /// An error about the file.
    fn error(&self, message: impl Into<String>) -> Error {
        Error::file(self.0.path(), message)
    }

    /// The model that the file says it is of.
    ///
    /// # Errors
    /// If it does not say, names no model, or lacks one of the model's parameters.
    pub fn model(&self) -> Result<Model> {
        let entry =
            |key: &str| self.metadata(key).ok_or_else(|| self.error(format!("the metadata has no entry {key:?}")));
        let name = entry("model")?;
        let widths = parse_widths(entry("widths")?).map_err(|message| self.error(message))?;
        if let Some(width) = widths.iter().find(|&&width| width > LARGEST_WIDTH) {
            return Err(self.error(format!("a width of {width}: at most {LARGEST_WIDTH}")));
        }
        let model = Model::new(name, widths).map_err(|error| self.error(error.to_string()))?;
        // Before anything is set aside for them.
        for Parameter { name, shape, .. } in model.parameters() {
            self.0.check_floats(&name, &shape)?;
        }
        Ok(model)
    }

    /// What a scan goes through before the network.
    ///
    /// # Errors
    /// If the file does not say.
    pub fn preprocessing(&self) -> Result<Preprocessing> {
        let entry = |key: &str| {
            let text = self.metadata(key);
            text.ok_or_else(|| self.error(format!("the metadata has no entry {key:?}; was it made by train?")))
        };
        let bad = |key: &str| self.error(format!("the metadata's entry {key:?} cannot be used"));
        let size = entry("size")?.parse().map_err(|_| bad("size"))?;
        check_size(size).ok().filter(|()| size <= LARGEST_SIZE).ok_or_else(|| bad("size"))?;
        let numbers: Option<Vec<f32>> =
            entry("window")?.split(',').map(|part| part.parse().ok().filter(|v: &f32| v.is_finite())).collect();
        match numbers.as_deref() {
            Some(&[low, high, shift, scale]) if low < high => {
                Ok(Preprocessing { size, window: HounsfieldWindow { low, high, shift, scale } })
            }
            _ => Err(bad("window")),
        }
    }

    /// The tensor `name`, which must have this shape and be of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or otherwise; the message has both shapes.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.0.floats(name, shape)
    }

    /// Puts the weights into a network.
    ///
    /// # Errors
    /// If a parameter is missing or of another shape, a tensor is not one of the network's, or a value is not finite.
    pub fn load<T: Real>(&self, network: &mut Network<T>) -> Result<()> {
        let known: Vec<&str> = network.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        if let Some(other) = self.0.names().into_iter().find(|name| !known.contains(name)) {
            let name = network.model().architecture.name;
            return Err(
                self.error(format!("{other}: {name} has no such parameter; these are weights of another model"))
            );
        }
        network.set_weights(|parameter: &Parameter| {
            let values = self.tensor(&parameter.name, &parameter.shape)?;
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(self.error(format!("{}: holds the value {value}", parameter.name)));
            }
            Ok(values.into_iter().map(|value| T::from_f64(value.into())).collect())
        })
    }
}

/// A window's four numbers, as the metadata has them.
fn window_text(HounsfieldWindow { low, high, shift, scale }: HounsfieldWindow) -> String {
    format!("{low},{high},{shift},{scale}")
}

/// Five widths, separated by commas.
///
/// # Errors
/// What is wrong, if it is anything else.
pub fn parse_widths(text: &str) -> std::result::Result<[usize; 5], String> {
    let widths: Option<Vec<usize>> = text.split(',').map(|part| part.trim().parse().ok().filter(|&w| w > 0)).collect();
    widths
        .and_then(|widths| widths.try_into().ok())
        .ok_or_else(|| format!("{text:?} is not five widths like 32,64,128,256,512"))
}

/// A network's weights by name, each in its file's order.
pub type Weights = BTreeMap<String, Vec<f32>>;

/// Writes a network's weights to a file, in one piece or not at all.
///
/// # Errors
/// If the device fails, a weight is not finite, or the file cannot be written.
pub fn save(network: &mut Network<f32>, preprocessing: &Preprocessing, path: &Path) -> Result<()> {
    let weights = network.weights()?;
    write(network, &weights, preprocessing, path)
}

/// Writes weights of a network to a file, in one piece or not at all.
///
/// # Errors
/// If a weight is not finite, or the file cannot be written.
pub fn write(network: &Network<f32>, weights: &Weights, preprocessing: &Preprocessing, path: &Path) -> Result<()> {
    let model = network.model();
    let metadata = BTreeMap::from([
        ("model", model.architecture.name.to_owned()),
        ("widths", model.widths.map(|width| width.to_string()).join(",")),
        ("size", preprocessing.size.to_string()),
        ("window", window_text(preprocessing.window)),
    ]);
    let tensors: Vec<Tensor> = named_tensors(network, weights, "").collect();
    check_finite(weights).map_err(|message| Error::file(path, message))?;
    tensors::write(path, metadata, &tensors)
}

/// Values of a network's parameters as tensors of a file, named with a prefix.
pub fn named_tensors<'a>(
    network: &'a Network<f32>,
    values: &'a Weights,
    prefix: &'a str,
) -> impl Iterator<Item = Tensor<'a>> {
    let shapes: BTreeMap<&str, &[usize]> =
        network.parameters().iter().map(|parameter| (parameter.name.as_str(), &parameter.shape[..])).collect();
    values.iter().map(move |(name, values)| Tensor::floats(format!("{prefix}{name}"), shapes[name.as_str()], values))
}

/// Says which parameter has a value that is not finite, if any has.
///
/// # Errors
/// The first such parameter.
pub fn check_finite(values: &Weights) -> std::result::Result<(), String> {
    match values.iter().find(|(_, values)| values.iter().any(|value| !value.is_finite())) {
        None => Ok(()),
        Some((name, _)) => Err(format!("{name} holds a value that is not a number")),
    }
}
