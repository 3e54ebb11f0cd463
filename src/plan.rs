//! From a graph to a plan: which nodes run, in which order, and where in one arena each value lies.

use crate::graph::{Graph, Placement, Region, ValueId};
use crate::tensor::{Shape, Storage};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Buffers start at multiples of this many bytes, two cache lines.
const ALIGNMENT: usize = 256;

/// Which memory a value lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    Arena,
    State(Region),
}

/// Where a value lies: element `start` of its memory on, `stride` elements from one pixel to the next. Elements are
/// counted in those of the value's own storage, in state in those of [`Storage::Full`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    pub memory: Memory,
    pub start: usize,
    pub stride: usize,
}

/// A node that runs, and its workspace in the arena, in elements of [`Storage::Full`].
#[derive(Debug)]
pub struct PlannedNode {
    pub index: usize,
    pub workspace: Range<usize>,
}

/// The nodes of a graph that must run, in order, and where everything lies.
#[derive(Debug)]
pub struct Plan {
    pub graph: Graph,
    pub nodes: Vec<PlannedNode>,
    locations: Vec<Option<Location>>,
    /// Bytes of the arena.
    pub arena: usize,
    /// Floating-point operations of one step.
    pub operations: u64,
}

/// When a buffer is in use: from one node to another, both included. Node 0 is the time before the first.
#[derive(Debug, Clone)]
struct Buffer {
    bytes: usize,
    first: usize,
    last: usize,
}

/// A value's buffer and its place in it.
#[derive(Clone, Copy)]
struct View {
    root: ValueId,
    channel: usize,
}

impl Plan {
    /// Plans `graph` so that the values `keep` are there after a step, on a device whose elements have so many
    /// `bytes`. `workspace` says how many elements of scratch memory (of [`Storage::Full`]) a node (by index) needs.
    pub fn new(
        graph: Graph,
        keep: &[ValueId],
        bytes: impl Fn(Storage) -> usize,
        workspace: impl Fn(usize) -> usize,
    ) -> Plan {
        let running = reached(&graph, keep);
        let mut planner = Planner::new(&graph, keep, &running);
        planner.share_in_place();
        let full = bytes(Storage::Full);
        let buffers = planner.buffers(&bytes);
        let roots: Vec<ValueId> = buffers.keys().copied().collect();
        let mut items: Vec<Buffer> = roots.iter().map(|root| buffers[root].clone()).collect();
        let run: Vec<usize> = running.iter().copied().filter(|&index| !graph.nodes()[index].op.is_free()).collect();
        for &index in &run {
            items.push(Buffer { bytes: workspace(index) * full, first: index + 1, last: index + 1 });
        }
        let (starts, arena) = pack(&items);
        let root_start: HashMap<ValueId, usize> =
            roots.iter().zip(&starts).map(|(&root, start)| (root, start / bytes(graph.shape(root).storage))).collect();
        let nodes = run
            .iter()
            .zip(roots.len()..)
            .map(|(&index, item)| {
                let start = starts[item] / full;
                PlannedNode { index, workspace: start..start + items[item].bytes / full }
            })
            .collect();
        let locations = (0..graph.values().len()).map(|id| planner.location(ValueId(id), &root_start)).collect();
        let operations = run.iter().map(|&index| operations(&graph, index)).sum();
        Plan { nodes, locations, arena, operations, graph }
    }

    /// Where a value lies.
    ///
    /// # Panics
    /// If the value is not part of this plan, which is a bug.
    pub fn location(&self, value: ValueId) -> Location {
        self.locations[value.0].expect("the value is part of the plan")
    }

    pub fn shape(&self, value: ValueId) -> &Shape {
        self.graph.shape(value)
    }
}

/// The shapes of a node's inputs and outputs.
pub fn shapes(graph: &Graph, index: usize) -> (Vec<&Shape>, Vec<&Shape>) {
    let node = &graph.nodes()[index];
    let of = |ids: &[ValueId]| ids.iter().map(|&id| graph.shape(id)).collect();
    (of(&node.inputs), of(&node.outputs))
}

fn operations(graph: &Graph, index: usize) -> u64 {
    let (inputs, outputs) = shapes(graph, index);
    graph.nodes()[index].op.operations(&inputs, &outputs)
}

/// The nodes that the kept values or a state depend on, in order.
fn reached(graph: &Graph, keep: &[ValueId]) -> Vec<usize> {
    let mut needed: Vec<bool> =
        graph.values().iter().map(|value| matches!(value.placement, Placement::State { .. })).collect();
    keep.iter().for_each(|value| needed[value.0] = true);
    let mut running = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate().rev() {
        if node.outputs.iter().any(|output| needed[output.0]) {
            node.inputs.iter().for_each(|input| needed[input.0] = true);
            running.push(index);
        }
    }
    running.reverse();
    running
}

struct Planner<'a> {
    graph: &'a Graph,
    running: &'a [usize],
    /// Values that another value's storage was given to.
    shared: HashMap<ValueId, ValueId>,
    /// When each value is written and last read; time 0 is before the first node, node i runs at i + 1.
    written: Vec<Option<usize>>,
    read: Vec<usize>,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, keep: &[ValueId], running: &'a [usize]) -> Self {
        let count = graph.values().len();
        let end = graph.nodes().len() + 1;
        let (mut written, mut read) = (vec![None; count], vec![0; count]);
        for (id, value) in graph.values().iter().enumerate() {
            if value.placement == Placement::Input {
                (written[id], read[id]) = (Some(0), end);
            }
        }
        for &index in running {
            let node = &graph.nodes()[index];
            node.inputs.iter().for_each(|input| read[input.0] = read[input.0].max(index + 1));
            node.outputs.iter().for_each(|output| written[output.0] = Some(index + 1));
        }
        keep.iter().for_each(|value| read[value.0] = end);
        Planner { graph, running, shared: HashMap::new(), written, read }
    }

    /// The buffer in which a value lies.
    fn view(&self, value: ValueId) -> View {
        let (mut root, mut channel) = (value, 0);
        loop {
            match (self.shared.get(&root), self.graph.placement(root)) {
                (Some(&of), _) => root = of,
                (None, Placement::Slice { of, channel: from }) => (root, channel) = (of, channel + from),
                (None, Placement::Part { of, .. }) => root = of,
                _ => return View { root, channel },
            }
        }
    }

    /// Lets outputs take the storage of inputs that nobody reads any more.
    fn share_in_place(&mut self) {
        let mut family: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
        for id in (0..self.graph.values().len()).map(ValueId) {
            family.entry(self.view(id).root).or_default().push(id);
        }
        for &index in self.running {
            let node = &self.graph.nodes()[index];
            for &(output, input) in node.op.in_place() {
                let (output, input) = (node.outputs[output], node.inputs[input]);
                let view = self.view(input);
                let same = self.graph.shape(output) == self.graph.shape(input);
                let movable = self.graph.placement(output) == Placement::Arena && self.view(output).root == output;
                if same && movable && self.is_last_read(&family[&view.root], input, index + 1) {
                    self.shared.insert(output, input);
                    let members = family.remove(&output).unwrap_or_default();
                    family.entry(view.root).or_default().extend(members);
                    break;
                }
            }
        }
    }

    /// Whether nothing that overlaps `input` is read after `time`, and its buffer may be overwritten.
    fn is_last_read(&self, family: &[ValueId], input: ValueId, time: usize) -> bool {
        let range = |value: ValueId| {
            let start = self.view(value).channel;
            start..start + self.graph.shape(value).channels.stored()
        };
        let own = range(input);
        let flat = |value: ValueId| matches!(self.graph.placement(value), Placement::Part { .. });
        self.graph.placement(self.view(input).root) == Placement::Arena
            && family.iter().all(|&other| {
                let its = range(other);
                let apart = its.end <= own.start || own.end <= its.start;
                !flat(other) && (apart || self.read[other.0] <= time)
            })
    }

    /// Every buffer of the arena, with the time in which any of its views is in use.
    fn buffers(&self, bytes: impl Fn(Storage) -> usize) -> BTreeMap<ValueId, Buffer> {
        let mut buffers = BTreeMap::<ValueId, Buffer>::new();
        for id in (0..self.graph.values().len()).map(ValueId) {
            let root = self.view(id).root;
            let Some(written) = self.written[id.0] else { continue };
            if matches!(self.graph.placement(root), Placement::State { .. }) {
                continue;
            }
            let last = self.read[id.0].max(written);
            let shape = self.graph.shape(root);
            let bytes = shape.elements() * bytes(shape.storage);
            let buffer = buffers.entry(root).or_insert(Buffer { bytes, first: written, last });
            (buffer.first, buffer.last) = (buffer.first.min(written), buffer.last.max(last));
        }
        buffers
    }

    fn location(&self, value: ValueId, starts: &HashMap<ValueId, usize>) -> Option<Location> {
        let View { root, channel } = self.view(value);
        let stored = |value: ValueId| self.graph.shape(value).channels.stored();
        if let Placement::State { region, start } = self.graph.placement(root) {
            return Some(Location { memory: Memory::State(region), start, stride: stored(value) });
        }
        let start = *starts.get(&root)?;
        Some(match self.part_start(value) {
            Some(part) => Location { memory: Memory::Arena, start: start + part, stride: stored(value) },
            None => Location { memory: Memory::Arena, start: start + channel, stride: stored(root) },
        })
    }

    /// The start of a value within the flat value it is a part of.
    fn part_start(&self, value: ValueId) -> Option<usize> {
        match self.graph.placement(value) {
            Placement::Part { start, .. } => Some(start),
            _ => None,
        }
    }
}

/// Packs buffers into as little memory as a greedy choice finds: the largest first, each at the lowest place
/// that is free while it is in use. Returns where each starts and the size of all.
fn pack(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(buffers[index].bytes), index));
    let mut starts = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for index in order {
        let buffer = &buffers[index];
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&other| buffers[other].first <= buffer.last && buffer.first <= buffers[other].last)
            .map(|&other| starts[other]..starts[other] + buffers[other].bytes)
            .collect();
        taken.sort_by_key(|range| range.start);
        let mut start = 0;
        for range in taken {
            if start + buffer.bytes <= range.start {
                break;
            }
            start = start.max(range.end.next_multiple_of(ALIGNMENT));
        }
        starts[index] = start;
        total = total.max(start + buffer.bytes);
        placed.push(index);
    }
    (starts, total.next_multiple_of(ALIGNMENT))
}
