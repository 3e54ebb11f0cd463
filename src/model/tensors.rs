//! Files of named tensors, as safetensors, in which no byte changes unnoticed.
//!
//! The metadata of a file that is written here has `version` (of this program), for each tensor an entry
//! `sha256:<name>` of its bytes, and `sha256`, of the file's beginning up to the first tensor, its own 64 digits
//! taken as zeros. Other programs' files may do without.

use crate::checksum::sha256;
use crate::data::file::write_atomically;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

/// The metadata entry of the header's checksum, and what those of the tensors' begin with.
const HEADER: &str = "sha256";
const TENSOR: &str = "sha256:";

/// A named tensor to be written.
pub struct Tensor<'a> {
    name: String,
    /// As safetensors calls it.
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    pub fn floats(name: String, shape: &[usize], values: &'a [f32]) -> Self {
        Tensor { name, dtype: "F32", shape: shape.to_vec(), bytes: bytemuck::cast_slice(values) }
    }

    pub fn bytes(name: String, bytes: &'a [u8]) -> Self {
        Tensor { name, dtype: "U8", shape: vec![bytes.len()], bytes }
    }
}

/// Writes tensors to a file, in one piece or not at all. The same tensors and metadata are the same bytes.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, metadata: BTreeMap<&str, String>, tensors: &[Tensor]) -> Result<()> {
    // Written here, not by the safetensors crate, whose metadata has another order each time.
    let mut entries: BTreeMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    entries.insert("format".into(), "pt".into());
    entries.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes.len();
        entries.insert(format!("{TENSOR}{}", tensor.name), sha256([tensor.bytes]));
        let description = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), description);
    }
    let blank = "0".repeat(sha256([]).len());
    entries.insert(HEADER.into(), blank.clone());
    header.insert("__metadata__".into(), json!(entries));
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    let checksum = sha256([&length[..], header.as_bytes()]);
    let header = header.replacen(&entry(&blank), &entry(&checksum), 1);
    write_atomically(path, |file| {
        file.write_all(&length)?;
        file.write_all(header.as_bytes())?;
        tensors.iter().try_for_each(|tensor| file.write_all(tensor.bytes))
    })
}

/// The header's checksum as it stands in the header.
fn entry(checksum: &str) -> String {
    format!("\"{HEADER}\":\"{checksum}\"")
}

/// The tensors in a file's bytes.
pub struct TensorFile<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> TensorFile<'a> {
    /// Reads the header of a file's `bytes`, and checks all of them if the file has checksums; `path` is for messages.
    ///
    /// # Errors
    /// If it is no safetensors file, or damaged.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let broken = |error: safetensors::SafeTensorError| {
            Error::file(path, format!("not a weights file (safetensors), or damaged: {error}"))
        };
        let (length, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let file = TensorFile { path, tensors, metadata };
        // A single damaged byte leaves one of the two.
        if file.metadata.contains_key(HEADER) || file.metadata.contains_key("version") {
            file.check(&bytes[..size_of::<u64>() + length])?;
        }
        Ok(file)
    }

    /// Compares all checksums; `start` is the file up to the first tensor.
    fn check(&self, start: &[u8]) -> Result<()> {
        let damaged = |what: &str| {
            Err(Error::file(self.path, format!("is damaged: {what} is not what was written (its SHA-256 differs)")))
        };
        let stated = self.metadata(HEADER).unwrap_or_default();
        let blank = "0".repeat(stated.len());
        let text = String::from_utf8_lossy(&start[size_of::<u64>()..]).replacen(&entry(stated), &entry(&blank), 1);
        if sha256([&start[..size_of::<u64>()], text.as_bytes()]) != stated {
            return damaged("the header");
        }
        for (name, tensor) in self.tensors.iter() {
            if self.metadata(&format!("{TENSOR}{name}")) != Some(&sha256([tensor.data()])) {
                return damaged(name);
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.path
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub fn names(&self) -> Vec<&str> {
        self.tensors.names()
    }

    /// The tensor `name`, which must have this shape and be of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or otherwise; the message has both shapes.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bytes = self.check_floats(name, shape)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The bytes of the tensor `name`, if it has this shape and is of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or otherwise; the message has both shapes.
    pub fn check_floats(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        let error = |message: String| Error::file(self.path, format!("{name}: {message}"));
        let tensor =
            self.tensors.tensor(name).map_err(|_| error("missing; these are weights of another model".into()))?;
        if tensor.shape() != shape {
            return Err(error(format!("has shape {:?}, this model needs {shape:?}", tensor.shape())));
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(error(format!("is of type {:?}, 32-bit floats are needed", tensor.dtype())));
        }
        Ok(tensor.data())
    }

    /// The bytes of the tensor `name`.
    ///
    /// # Errors
    /// If it is missing.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let missing = |_| Error::file(self.path, format!("{name}: missing"));
        Ok(self.tensors.tensor(name).map_err(missing)?.data())
    }
}
