//! A network as an ONNX file, for every runtime that reads one.
//!
//! The file is made from the graph that inference runs, op by op ([`translate`]): a model needs no line here, a new
//! op one. Batch, height and width are left open; height and width must be multiples of 16. Input `image`
//! (batch, 1, height, width) is what [`crate::preprocessing`] makes of Hounsfield units, its window is among the
//! metadata; output `probability` is the foreground's.

mod translate;

use crate::graph::{Graph, Placement, Region, ValueId};
use crate::model::weights::WeightsFile;
use crate::model::{Mode, StepGraph};
use crate::preprocessing::SIZE_MULTIPLE;
use crate::protobuf::Message;
use crate::{Error, Result};
use std::collections::HashMap;
use translate::Translation;

/// The version of the file format, and of the set of operators.
const FORMAT_VERSION: i64 = 8;
const OPERATORS_VERSION: i64 = 17;

/// The most bytes that a Protocol Buffers message can have.
const MOST_BYTES: usize = i32::MAX as usize;

/// `TensorProto.FLOAT`.
const FLOAT: i64 = 1;

/// What the input and the output are called.
pub const INPUT: &str = "image";
pub const OUTPUT: &str = "probability";

/// Metadata that goes along, as the weights file has it.
const METADATA: [&str; 5] = ["model", "widths", "size", "window", "version"];

/// The bytes of an ONNX file of the network whose weights a file holds.
///
/// # Errors
/// If a weight is missing or otherwise wrong, an op has no counterpart, or the file would be too large.
pub fn onnx(weights: &WeightsFile) -> Result<Vec<u8>> {
    let model = weights.model()?;
    let step = model.graph(Mode::Evaluate, 1, [SIZE_MULTIPLE; 2])?;
    let (names, tensors) = initializers(weights, &step)?;
    let mut translation = Translation::new(names, step.image, step.prediction);
    for node in needed(&step.graph, step.prediction) {
        translation.node(&step.graph.nodes()[node])?;
    }
    let open = ["batch", "1", "height", "width"];
    let graph = Message::new()
        .messages(1, translation.into_nodes())
        .text(2, model.architecture.name)
        .messages(5, tensors)
        .message(11, value_info(INPUT, open))
        .message(12, value_info(OUTPUT, open));
    let entries = METADATA.into_iter().filter_map(|key| Some((key, weights.metadata(key)?)));
    let bytes = Message::new()
        .int(1, FORMAT_VERSION)
        .text(2, env!("CARGO_PKG_NAME"))
        .text(3, env!("CARGO_PKG_VERSION"))
        .message(7, graph)
        .message(8, Message::new().text(1, "").int(2, OPERATORS_VERSION))
        .messages(14, entries.map(|(key, value)| Message::new().text(1, key).text(2, value)))
        .into_bytes();
    match bytes.len() <= MOST_BYTES {
        true => Ok(bytes),
        false => {
            Err(Error::Invalid(format!("an ONNX file of {} bytes: at most {MOST_BYTES} are possible", bytes.len())))
        }
    }
}

/// The names of the values that live in state, and their tensors.
fn initializers(weights: &WeightsFile, step: &StepGraph) -> Result<(HashMap<ValueId, String>, Vec<Message>)> {
    let places: HashMap<(Region, usize), usize> =
        step.parameters.iter().enumerate().map(|(i, parameter)| ((parameter.region, parameter.start), i)).collect();
    let (mut names, mut tensors) = (HashMap::new(), Vec::new());
    for (value, description) in step.graph.values().iter().enumerate() {
        let Placement::State { region, start } = description.placement else { continue };
        let Some(&parameter) = places.get(&(region, start)) else { continue };
        let parameter = &step.parameters[parameter];
        let values = weights.tensor(&parameter.name, &parameter.shape)?;
        // A linear layer is a convolution of one pixel.
        let missing = if parameter.shape.len() == 2 { 2 } else { 0 };
        let shape = parameter.shape.iter().copied().chain(std::iter::repeat_n(1, missing));
        let tensor = shape.fold(Message::new(), |tensor, length| tensor.int(1, length as i64));
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push(tensor.int(2, FLOAT).text(8, &parameter.name).bytes(9, &bytes));
        names.insert(ValueId(value), parameter.name.clone());
    }
    Ok((names, tensors))
}

/// The nodes, in order, that `value` needs.
fn needed(graph: &Graph, value: ValueId) -> Vec<usize> {
    let mut wanted = vec![false; graph.values().len()];
    wanted[value.0] = true;
    let mut nodes = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate().rev() {
        if node.outputs.iter().any(|output| wanted[output.0]) {
            node.inputs.iter().for_each(|input| wanted[input.0] = true);
            nodes.push(index);
        }
    }
    nodes.reverse();
    nodes
}

/// A name, and the shape of 32-bit floats that it stands for; a length that is no number is left open.
fn value_info(name: &str, shape: [&str; 4]) -> Message {
    let dimension = |length: &str| match length.parse() {
        Ok(length) => Message::new().int(1, length),
        Err(_) => Message::new().text(2, length),
    };
    let shape = Message::new().messages(1, shape.into_iter().map(dimension));
    let tensor = Message::new().int(1, FLOAT).message(2, shape);
    Message::new().text(1, name).message(2, Message::new().message(1, tensor))
}
