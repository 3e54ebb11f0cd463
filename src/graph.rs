//! A static graph of ops, and its derivative as more of the same graph.
//!
//! A model applies ops once, in order; shapes are inferred as it does. [`Graph::differentiate`] then adds the
//! gradient nodes. The graph knows no op by name: everything about an op is behind [`Op`].

use crate::ops::add::Add;
use crate::ops::concat::{Concat, Copy, Slice};
use crate::ops::relu::ReluGradient;
use crate::ops::{Gradient, Op, Rewritten};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// A tensor in a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

/// Memory that outlives a step and is shared by all graphs of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// Trained parameters.
    Parameters,
    /// Batch norm's running means and variances.
    Statistics,
    /// Adam's two moments of every parameter.
    Moments,
}

impl Region {
    pub const ALL: [Region; 3] = [Region::Parameters, Region::Statistics, Region::Moments];
}

/// Where a value is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the plan finds room.
    Arena,
    /// In the arena for the whole step: written from outside.
    Input,
    /// In the stored channels of another value, from `channel` on.
    Slice { of: ValueId, channel: usize },
    /// In a run of the elements of a flat value, from `start` on.
    Part { of: ValueId, start: usize },
    /// In memory that outlives the step.
    State { region: Region, start: usize },
}

#[derive(Debug)]
pub struct Value {
    pub shape: Shape,
    pub placement: Placement,
}

/// An op applied to values.
#[derive(Debug)]
pub struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

#[derive(Debug, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
}

impl Graph {
    pub fn new() -> Self {
        Graph::default()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn values(&self) -> &[Value] {
        &self.values
    }

    pub fn shape(&self, value: ValueId) -> &Shape {
        &self.values[value.0].shape
    }

    pub fn placement(&self, value: ValueId) -> Placement {
        self.values[value.0].placement
    }

    fn value(&mut self, shape: Shape, placement: Placement) -> ValueId {
        self.values.push(Value { shape, placement });
        ValueId(self.values.len() - 1)
    }

    /// A value written from outside before a step.
    pub fn input(&mut self, shape: Shape) -> ValueId {
        self.value(shape, Placement::Input)
    }

    /// A value that lives in `region` from element `start` on.
    pub fn state(&mut self, shape: Shape, region: Region, start: usize) -> ValueId {
        self.value(shape, Placement::State { region, start })
    }

    /// A flat value made of parts that are produced one by one; see [`Graph::differentiate_into`].
    pub fn flat(&mut self, count: usize) -> ValueId {
        self.value(Shape::flat(count), Placement::Arena)
    }

    /// Applies an op; an output that updates an input in place is stored where that input is.
    ///
    /// # Errors
    /// If the op cannot work on the inputs' shapes.
    pub fn apply(&mut self, op: impl Op + 'static, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let shapes: Vec<&Shape> = inputs.iter().map(|&input| self.shape(input)).collect();
        let outputs = op.outputs(&shapes)?;
        let outputs: Vec<ValueId> = outputs
            .into_iter()
            .enumerate()
            .map(|(index, shape)| {
                let updated = op.in_place().iter().find(|&&(output, _)| output == index);
                let placement = match updated.map(|&(_, input)| self.placement(inputs[input])) {
                    Some(state @ Placement::State { .. }) => state,
                    _ => Placement::Arena,
                };
                self.value(shape, placement)
            })
            .collect();
        self.nodes.push(Node { op: Arc::new(op), inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Applies an op that has one output.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn apply_one(&mut self, op: impl Op + 'static, inputs: &[ValueId]) -> Result<ValueId> {
        let outputs = self.apply(op, inputs)?;
        assert_eq!(outputs.len(), 1, "the op has one output");
        Ok(outputs[0])
    }

    /// Concatenates channels without moving anything: from now on each part is produced in its slice of the
    /// result. Only a part that already lives elsewhere (in another concatenation, in an input) is copied.
    ///
    /// # Errors
    /// If the parts' batch or spatial sizes differ.
    pub fn concat(&mut self, parts: &[ValueId]) -> Result<ValueId> {
        let mut placed = Vec::with_capacity(parts.len());
        for &part in parts {
            let free = self.placement(part) == Placement::Arena && !self.shape(part).channels.is_compact();
            let padded = Channels::concat([&self.shape(part).channels]);
            placed.push(if free && !placed.contains(&part) {
                part
            } else {
                self.apply_one(Copy::to(padded), &[part])?
            });
        }
        let whole = self.apply_one(Concat, &placed)?;
        let mut channel = 0;
        for part in placed {
            self.values[part.0].placement = Placement::Slice { of: whole, channel };
            channel += self.shape(part).channels.stored();
        }
        Ok(whole)
    }

    /// A view of some channels of a value: nothing is computed.
    pub(crate) fn slice(&mut self, of: ValueId, channel: usize, shape: Shape) -> ValueId {
        let view = self.value(shape, Placement::Slice { of, channel });
        self.nodes.push(Node { op: Arc::new(Slice), inputs: vec![of], outputs: vec![view] });
        view
    }

    /// Adds the nodes that compute the gradient of some outputs with respect to `wrt`, given the gradients
    /// `seeds` of those outputs (output, gradient). A value without influence has no gradient.
    ///
    /// # Errors
    /// If an op's gradient cannot be built, which is a bug in that op.
    pub fn differentiate(&mut self, seeds: &[(ValueId, ValueId)], wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
        let mut wanted = vec![false; self.values.len()];
        wrt.iter().for_each(|value| wanted[value.0] = true);
        for node in &self.nodes {
            if node.inputs.iter().any(|input| wanted[input.0]) {
                node.outputs.iter().for_each(|output| wanted[output.0] = true);
            }
        }
        let mut gradients: HashMap<ValueId, ValueId> = seeds.iter().copied().collect();
        for index in (0..self.nodes.len()).rev() {
            let node = &self.nodes[index];
            let (op, inputs, outputs) = (node.op.clone(), node.inputs.clone(), node.outputs.clone());
            let mut output_gradients: Vec<_> = outputs.iter().map(|output| gradients.get(output).copied()).collect();
            let input_wanted: Vec<bool> = inputs.iter().map(|input| wanted[input.0]).collect();
            if output_gradients.iter().all(Option::is_none) || !input_wanted.contains(&true) {
                continue;
            }
            // Whose gradient it is, too, must not find it changed.
            let holders =
                |gradients: &HashMap<_, _>, gradient| gradients.values().filter(|&&it| it == gradient).count();
            if let Some(dout) = output_gradients[0].filter(|_| op.ends_in_relu()) {
                let alone = |gradient, value| holders(&gradients, gradient) == 1 && !wrt.contains(&value);
                output_gradients[0] = Some(self.masked(dout, outputs[0], alone)?);
            }
            let context =
                Gradient { inputs: &inputs, outputs: &outputs, gradients: &output_gradients, wanted: &input_wanted };
            let contributions = op.gradient(self, &context)?;
            assert_eq!(contributions.len(), inputs.len(), "{}: one gradient for each input", op.name());
            for (index, input) in inputs.into_iter().enumerate() {
                let Some(contribution) = contributions[index] else { continue };
                let sum = match gradients.get(&input) {
                    Some(&earlier) => {
                        let again = contributions[index + 1..].contains(&Some(contribution));
                        self.plus(contribution, earlier, holders(&gradients, contribution) == 0 && !again)?
                    }
                    None => contribution,
                };
                gradients.insert(input, sum);
            }
        }
        Ok(wrt.iter().map(|value| gradients.get(value).copied()).collect())
    }

    /// The gradient `dout` of what ends in a ReLU, zero where `out` is: by the op that computes `dout`, or what `dout` is a
    /// slice of, if that can and it is the gradient of nothing else: `alone`.
    fn masked(&mut self, dout: ValueId, out: ValueId, alone: impl Fn(ValueId, ValueId) -> bool) -> Result<ValueId> {
        if alone(dout, out) {
            if self.rewrite(dout, |op, inputs| op.masked(inputs, out)) {
                return Ok(dout);
            }
            let places = (self.placement(dout), self.placement(out));
            if let (Placement::Slice { of: gradient, channel }, Placement::Slice { of, channel: same }) = places
                && channel == same
                && alone(gradient, of)
                && self.is_unread(dout)
                && self.is_read_in_slices(gradient)
            {
                let channels = channel..channel + self.shape(out).channels.stored();
                if self.replace(gradient, |op, inputs| op.masked_channels(inputs, of, channels.clone())) {
                    return Ok(dout);
                }
            }
        }
        self.apply_one(ReluGradient, &[dout, out])
    }

    /// The sum of two gradients of a value: by the op that computes the later one, if that can and it is nobody else's.
    /// Of the earlier one it takes the value, or, if nothing reads that, the inputs.
    fn plus(&mut self, later: ValueId, earlier: ValueId, alone: bool) -> Result<ValueId> {
        let source = self.nodes.iter().rfind(|node| node.outputs.first() == Some(&earlier));
        let source = source.filter(|_| self.is_unread(earlier)).map(|node| (node.op.clone(), node.inputs.clone()));
        let joined = |op: &dyn Op, inputs: &[ValueId]| {
            let (other, others) = source.as_ref()?;
            op.joined(inputs, &**other, others)
        };
        if alone && (self.rewrite(later, joined) || self.rewrite(later, |op, inputs| op.plus(inputs, earlier))) {
            return Ok(later);
        }
        self.apply_one(Add::default(), &[earlier, later])
    }

    /// Applies to each node's input that is `wanted` in another form, behind what computes it, the op that makes it so.
    ///
    /// # Errors
    /// If such an op cannot work on the input.
    pub(crate) fn prepare(
        &mut self,
        wanted: impl Fn(&dyn Op, &[&Shape], &[&Shape]) -> Option<(usize, Arc<dyn Op>)>,
    ) -> Result<()> {
        let mut found = Vec::new();
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let [inputs, outputs] =
                [&node.inputs, &node.outputs].map(|ids| ids.iter().map(|&id| self.shape(id)).collect::<Vec<_>>());
            let Some((input, op)) = wanted(&*node.op, &inputs, &outputs) else { continue };
            let value = self.nodes[index].inputs[input];
            let shape = op.outputs(&[self.shape(value)])?.remove(0);
            let prepared = self.value(shape, Placement::Arena);
            let source = self.nodes[..index].iter().rposition(|node| node.outputs.contains(&value));
            self.nodes[index].inputs[input] = prepared;
            found.push((
                source.map_or(0, |source| source + 1),
                Node { op, inputs: vec![value], outputs: vec![prepared] },
            ));
        }
        found.sort_by_key(|&(place, _)| place);
        // From the last on, so that places stay what they are.
        found.into_iter().rev().for_each(|(place, node)| self.nodes.insert(place, node));
        Ok(())
    }

    fn is_unread(&self, value: ValueId) -> bool {
        self.nodes.iter().all(|node| !node.inputs.contains(&value))
    }

    /// Whether `value` is only read as what its slices are views of. A concatenation's gradient has no two that overlap.
    fn is_read_in_slices(&self, value: ValueId) -> bool {
        let is_view = |view: ValueId| matches!(self.placement(view), Placement::Slice { of, .. } if of == value);
        self.nodes.iter().filter(|node| node.inputs.contains(&value)).all(|node| is_view(node.outputs[0]))
    }

    /// Puts another op in the place of the one that computes `gradient`, as [`Graph::replace`] does, if nothing reads
    /// `gradient` yet.
    fn rewrite(&mut self, gradient: ValueId, other: impl Fn(&dyn Op, &[ValueId]) -> Option<Rewritten>) -> bool {
        self.is_unread(gradient) && self.replace(gradient, other)
    }

    /// Puts another op in the place of the one that computes `gradient` as its first output, if there is one and the
    /// other op's inputs are there by then. Returns whether it did.
    fn replace(&mut self, gradient: ValueId, other: impl Fn(&dyn Op, &[ValueId]) -> Option<Rewritten>) -> bool {
        let node = self.nodes.iter().rposition(|node| node.outputs.first() == Some(&gradient));
        let found = node.and_then(|node| Some((node, other(&*self.nodes[node].op, &self.nodes[node].inputs)?)));
        let Some((node, (op, inputs))) = found else { return false };
        let is_late = self.nodes[node..].iter().flat_map(|node| &node.outputs).any(|late| inputs.contains(late));
        if !is_late {
            (self.nodes[node].op, self.nodes[node].inputs) = (op, inputs);
        }
        !is_late
    }

    /// As [`Graph::differentiate`], with the gradients of `wrt` stored one after the other in a flat value,
    /// each at its start in `starts`. Returns the flat value.
    ///
    /// # Errors
    /// Also if a value has no influence on the outputs.
    pub fn differentiate_into(
        &mut self,
        seeds: &[(ValueId, ValueId)],
        wrt: &[ValueId],
        starts: &[usize],
        count: usize,
    ) -> Result<ValueId> {
        let gradients = self.differentiate(seeds, wrt)?;
        let flat = self.flat(count);
        let mut parts = Vec::with_capacity(wrt.len());
        for ((gradient, &start), &value) in gradients.into_iter().zip(starts).zip(wrt) {
            let gradient = gradient.ok_or_else(|| {
                Error::shape("differentiate", format!("value {} does not influence the loss", value.0))
            })?;
            let free = self.placement(gradient) == Placement::Arena;
            let channels = self.shape(gradient).channels.clone();
            let part = if free { gradient } else { self.apply_one(Copy::to(channels), &[gradient])? };
            self.values[part.0].placement = Placement::Part { of: flat, start };
            parts.push(part);
        }
        self.nodes.push(Node { op: Arc::new(Concat), inputs: parts, outputs: vec![flat] });
        Ok(flat)
    }
}
