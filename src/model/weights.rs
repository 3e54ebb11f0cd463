//! Weights files: safetensors with PyTorch's names and shapes, and the model's name and widths as metadata.

use super::{Model, Network, Parameter};
use crate::data::Window;
use crate::data::file::write_atomically;
use crate::data::slices::check_size;
use crate::device::cpu::Real;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// The weights in a file's bytes, checked as they are asked for.
pub struct WeightsFile<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> WeightsFile<'a> {
    /// Reads the header of a file's `bytes`; `path` is for messages.
    ///
    /// # Errors
    /// If it is no safetensors file.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let broken = |error: safetensors::SafeTensorError| {
            Error::file(path, format!("not a weights file (safetensors): {error}"))
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        Ok(WeightsFile { path, tensors, metadata })
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The model that the file says it is of.
    ///
    /// # Errors
    /// If it does not say, or names no model.
    pub fn model(&self) -> Result<Model> {
        let entry = |key: &str| {
            self.metadata(key).ok_or_else(|| Error::file(self.path, format!("the metadata has no entry {key:?}")))
        };
        let name = entry("model")?;
        let widths = parse_widths(entry("widths")?).map_err(|message| Error::file(self.path, message))?;
        Model::new(name, widths).map_err(|error| Error::file(self.path, error.to_string()))
    }

    /// What a scan goes through before the network.
    ///
    /// # Errors
    /// If the file does not say.
    pub fn preprocessing(&self) -> Result<Preprocessing> {
        let entry = |key: &str| {
            let text = self.metadata(key);
            text.ok_or_else(|| {
                Error::file(self.path, format!("the metadata has no entry {key:?}; was it made by train?"))
            })
        };
        let bad = |key: &str| Error::file(self.path, format!("the metadata's entry {key:?} cannot be used"));
        let size = entry("size")?.parse().map_err(|_| bad("size"))?;
        check_size(size)?;
        let numbers: Option<Vec<f32>> =
            entry("window")?.split(',').map(|part| part.parse().ok().filter(|v: &f32| v.is_finite())).collect();
        match numbers.as_deref() {
            Some(&[low, high, shift, scale]) if low < high => {
                Ok(Preprocessing { size, window: Window { low, high, shift, scale } })
            }
            _ => Err(bad("window")),
        }
    }

    /// The tensor `name`, which must have this shape and be of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or otherwise; the message has both shapes.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let error = |message: String| Error::file(self.path, format!("{name}: {message}"));
        let tensor =
            self.tensors.tensor(name).map_err(|_| error("missing; these are weights of another model".into()))?;
        if tensor.shape() != shape {
            return Err(error(format!("has shape {:?}, this model needs {shape:?}", tensor.shape())));
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(error(format!("is of type {:?}, 32-bit floats are needed", tensor.dtype())));
        }
        Ok(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Puts the weights into a network.
    ///
    /// # Errors
    /// If a parameter is missing or of another shape, a tensor is not one of the network's, or a value is not finite.
    pub fn load<T: Real>(&self, network: &mut Network<T>) -> Result<()> {
        let known: Vec<&str> = network.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        if let Some(other) = self.tensors.names().into_iter().find(|name| !known.contains(name)) {
            let name = network.model().architecture.name;
            return Err(Error::file(
                self.path,
                format!("{other}: {name} has no such parameter; these are weights of another model"),
            ));
        }
        network.set_weights(|parameter: &Parameter| {
            let values = self.tensor(&parameter.name, &parameter.shape)?;
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::file(self.path, format!("{}: holds the value {value}", parameter.name)));
            }
            Ok(values.into_iter().map(|value| T::from_f64(value.into())).collect())
        })
    }
}

/// A window's four numbers, as the metadata has them.
fn window_text(Window { low, high, shift, scale }: Window) -> String {
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

/// What a scan goes through before the network; it belongs to the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Height and width of the slices, in pixels.
    pub size: usize,
    pub window: Window,
}

/// Writes a network's weights to a file, in one piece or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn save(network: &mut Network<f32>, preprocessing: &Preprocessing, path: &Path) -> Result<()> {
    let weights = network.weights()?;
    let model = network.model();
    let widths: Vec<String> = model.widths.iter().map(usize::to_string).collect();
    // Written here, not by the safetensors crate, whose metadata has another order each time: the same weights
    // are the same bytes.
    let mut header = serde_json::Map::new();
    let metadata = json!({
        "format": "pt",
        "model": model.architecture.name,
        "widths": widths.join(","),
        "size": preprocessing.size.to_string(),
        "window": window_text(preprocessing.window),
        "version": env!("CARGO_PKG_VERSION"),
    });
    header.insert("__metadata__".into(), metadata);
    let shapes: HashMap<&str, &[usize]> =
        network.parameters().iter().map(|parameter| (parameter.name.as_str(), &parameter.shape[..])).collect();
    let mut end = 0;
    for (name, values) in &weights {
        let start = end;
        end += size_of_val(&values[..]);
        header.insert(
            name.clone(),
            json!({ "dtype": "F32", "shape": shapes[name.as_str()], "data_offsets": [start, end] }),
        );
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        weights.values().try_for_each(|values| file.write_all(bytemuck::cast_slice(values)))
    })
}
