//! Each op in the words of ONNX.

use super::{INPUT, OUTPUT};
use crate::graph::{Node, ValueId};
use crate::ops::add::Add;
use crate::ops::batch_norm::{BatchNormInference, BatchNormScaleInference, EPSILON};
use crate::ops::channel_gate::ChannelGate;
use crate::ops::channel_pool::ChannelPool;
use crate::ops::concat::{Concat, Copy};
use crate::ops::convolution::Convolution;
use crate::ops::fold::Fold;
use crate::ops::pixel_pool::PixelPool;
use crate::ops::relu::Relu;
use crate::ops::residual::Residual;
use crate::ops::sigmoid::Sigmoid;
use crate::ops::transposed_convolution::TransposedConvolution;
use crate::ops::window::Window;
use crate::protobuf::Message;
use crate::{Error, Result};
use std::any::Any;
use std::collections::{HashMap, HashSet};

/// `AttributeProto.AttributeType`.
const FLOAT: i64 = 1;
const INT: i64 = 2;
const INTS: i64 = 7;

/// The channels' axis, and those of height and width.
const CHANNELS: i64 = 1;
const PIXELS: [i64; 2] = [2, 3];

/// A graph's nodes as they are translated, one after the other.
pub(super) struct Translation {
    /// What a value is called, once it is computed.
    names: HashMap<ValueId, String>,
    output: ValueId,
    nodes: Vec<Message>,
    /// The parameters and statistics of the batch norms that are folded into a layer, by their scale, and by the layer's
    /// weight. In ONNX they are applied.
    norms: HashMap<ValueId, Vec<ValueId>>,
    /// The products of a tensor and its map of pixels that are there.
    refined: HashSet<String>,
}

impl Translation {
    /// `names` are those of the values that live in state.
    pub fn new(mut names: HashMap<ValueId, String>, input: ValueId, output: ValueId) -> Self {
        names.insert(input, INPUT.to_owned());
        Translation { names, output, nodes: Vec::new(), norms: HashMap::new(), refined: HashSet::new() }
    }

    pub fn into_nodes(self) -> Vec<Message> {
        self.nodes
    }

    /// Translates a node whose inputs are translated.
    ///
    /// # Errors
    /// If its op has no counterpart here.
    pub fn node(&mut self, node: &Node) -> Result<()> {
        let op: &dyn Any = &*node.op;
        let output = node.outputs[0];
        if op.is::<BatchNormScaleInference>() {
            self.norms.insert(output, node.inputs.clone());
            return Ok(());
        }
        if op.is::<Fold>() {
            for (layer, &folded) in node.inputs.iter().zip(&node.outputs) {
                self.names.insert(folded, self.names[layer].clone());
            }
            self.norms.insert(output, self.norms[&node.inputs[2]].clone());
            return Ok(());
        }
        let mut inputs: Vec<String> = node.inputs.iter().map(|input| self.names[input].clone()).collect();
        if let Some(norm) = node.inputs.get(1).and_then(|weight| self.norms.remove(weight)) {
            let normalised = format!("{}.normalised", inputs[0]);
            let norm: Vec<String> = norm.iter().map(|value| self.names[value].clone()).collect();
            let operands: Vec<&str> = inputs[..1].iter().chain(&norm).map(String::as_str).collect();
            self.normalise(&operands, &normalised);
            inputs[0] = normalised;
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        // Of most ops only the first output is used: others are for gradients.
        let name = if output == self.output { OUTPUT.to_owned() } else { format!("value.{}", output.0) };
        if let Some(op) = op.downcast_ref::<Convolution>() {
            let attributes = convolution(op);
            match inputs.split_last().filter(|_| op.add) {
                Some((added, inputs)) => {
                    let product = format!("{name}.product");
                    self.add("Conv", inputs, &[&product], attributes);
                    self.activated("Add", &[&product, added], &name, op.relu, []);
                }
                None => self.activated("Conv", &inputs, &name, op.relu, attributes),
            }
        } else if let Some(op) = op.downcast_ref::<Residual>().filter(|op| !op.border) {
            let [main, shortcut] = ["main", "shortcut"].map(|part| format!("{name}.{part}"));
            let operands = |first: usize| [inputs[0], inputs[first], inputs[first + 1]];
            self.activated("Conv", &operands(1), &main, true, convolution(&op.main));
            self.add("Conv", &operands(3), &[&shortcut], convolution(&op.shortcut));
            let sum = if op.normalised { format!("{name}.sum") } else { name.clone() };
            self.activated("Add", &[&main, &shortcut], &sum, true, []);
            if op.normalised {
                let operands = [&[sum.as_str()], &inputs[5..]].concat();
                self.normalise(&operands, &name);
            }
        } else if let Some(op) = op.downcast_ref::<TransposedConvolution>() {
            let [_, kernel @ ..] = op.kernel.map(|length| length as i64);
            self.add("ConvTranspose", &inputs, &[&name], [ints("kernel_shape", &kernel), ints("strides", &kernel)]);
        } else if let Some(op) = op.downcast_ref::<BatchNormInference>() {
            self.normalise(&inputs, &name);
            if op.pooled {
                let maxima = format!("{name}.maxima");
                self.add("MaxPool", &[&name], &[&maxima], window(&Window::square(2, 2, 0)));
                self.names.insert(node.outputs[1], maxima);
            }
        } else if let Some(op) = op.downcast_ref::<Add>() {
            self.activated("Add", &inputs, &name, op.relu, []);
        } else if op.is::<Relu>() {
            self.add("Relu", &inputs, &[&name], []);
        } else if op.is::<Sigmoid>() {
            self.add("Sigmoid", &inputs, &[&name], []);
        } else if op.is::<Concat>() {
            self.add("Concat", &inputs, &[&name], [int("axis", CHANNELS)]);
        } else if op.is::<Copy>() {
            self.add("Identity", &inputs, &[&name], []);
        } else if op.is::<ChannelPool>() {
            self.pooled(inputs[0], &name, &[CHANNELS], CHANNELS);
        } else if op.is::<PixelPool>() {
            let refined = self.refined(inputs[0], inputs[1]);
            self.pooled(&refined, &name, &PIXELS, 0);
        } else if op.is::<ChannelGate>() {
            let parts = ["means", "maxima", "sum", "gate"].map(|part| format!("{name}.{part}"));
            let [means, maxima, sum, gate] = parts.each_ref().map(String::as_str);
            let refined = self.refined(inputs[0], inputs[1]);
            self.add("Split", &inputs[2..], &[means, maxima], [int("axis", 0)]);
            self.add("Add", &[means, maxima], &[sum], []);
            self.add("Sigmoid", &[sum], &[gate], []);
            self.add("Mul", &[&refined, gate], &[&name], []);
        } else {
            return Err(Error::Invalid(format!("ONNX: there is no translation of the op {}", node.op.name())));
        }
        self.names.insert(output, name);
        Ok(())
    }

    fn add(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: impl IntoIterator<Item = Message>) {
        let node = inputs.iter().fold(Message::new(), |node, input| node.text(1, input));
        let node = outputs.iter().fold(node, |node, output| node.text(2, output));
        self.nodes.push(node.text(3, &format!("{op}.{}", self.nodes.len())).text(4, op).messages(5, attributes));
    }

    /// A batch norm by running statistics; operands: the tensor, gamma, beta, mean, variance.
    fn normalise(&mut self, operands: &[&str], name: &str) {
        self.add("BatchNormalization", operands, &[name], [float("epsilon", EPSILON as f32)]);
    }

    /// An op, and ReLU after it if there is one.
    fn activated(
        &mut self,
        op: &str,
        inputs: &[&str],
        name: &str,
        relu: bool,
        attributes: impl IntoIterator<Item = Message>,
    ) {
        if !relu {
            return self.add(op, inputs, &[name], attributes);
        }
        let linear = format!("{name}.linear");
        self.add(op, inputs, &[&linear], attributes);
        self.add("Relu", &[&linear], &[name], []);
    }

    /// What a tensor times its map of pixels is called; it is computed once, however many ops begin with it.
    fn refined(&mut self, x: &str, map: &str) -> String {
        let name = format!("{map}.refined");
        if self.refined.insert(name.clone()) {
            self.add("Mul", &[x, map], &[&name], []);
        }
        name
    }

    /// Mean and maximum over `axes`, one after the other along `along`.
    fn pooled(&mut self, input: &str, name: &str, axes: &[i64], along: i64) {
        let parts = ["mean", "maximum"].map(|part| format!("{name}.{part}"));
        let [mean, maximum] = parts.each_ref().map(String::as_str);
        self.add("ReduceMean", &[input], &[mean], [ints("axes", axes), int("keepdims", 1)]);
        self.add("ReduceMax", &[input], &[maximum], [ints("axes", axes), int("keepdims", 1)]);
        self.add("Concat", &[mean, maximum], &[name], [int("axis", along)]);
    }
}

/// A convolution's attributes.
fn convolution(op: &Convolution) -> impl Iterator<Item = Message> + use<> {
    window(&op.window).chain([int("group", op.groups as i64)])
}

/// A 2D window's attributes.
fn window(window: &Window) -> impl Iterator<Item = Message> + use<> {
    let plane = |lengths: [usize; 3]| [lengths[1] as i64, lengths[2] as i64];
    let [height, width] = plane(window.padding);
    [
        ints("kernel_shape", &plane(window.kernel)),
        ints("strides", &plane(window.stride)),
        ints("pads", &[height, width, height, width]),
    ]
    .into_iter()
}

fn int(name: &str, value: i64) -> Message {
    Message::new().text(1, name).int(3, value).int(20, INT)
}

fn float(name: &str, value: f32) -> Message {
    Message::new().text(1, name).float(2, value).int(20, FLOAT)
}

fn ints(name: &str, values: &[i64]) -> Message {
    values.iter().fold(Message::new().text(1, name), |message, &value| message.int(8, value)).int(20, INTS)
}
