//! From a graph to a plan: which nodes run, in which order, and where in one arena each value lies.

use crate::graph::{Graph, Node, Placement, Region, ValueId};
use crate::tensor::{Shape, Storage};
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// Where a node runs on a device that overlaps two branches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    Main,
    /// Beside main, in order: nodes whose outputs are gradients of parameters, which nothing reads but the optimizer, and those
    /// that only prepare an input of a later one.
    Aside,
}

/// A node that runs, and its workspace in the arena, in elements of [`Storage::Full`].
#[derive(Debug)]
pub struct PlannedNode {
    pub index: usize,
    pub workspace: Range<usize>,
    pub branch: Branch,
}

/// What a node aside reads stays in memory until the so-many-th node aside after it: so far main may go ahead of aside,
const LINGER: usize = 8;
/// as long as the arena grows by no more than one part in so many.
const LINGER_GROWTH: usize = 64;

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
    /// The workspace of a node aside. It may stand where another one's does: they run one after the other.
    aside: bool,
}

impl Buffer {
    fn meets(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last && !(self.aside && other.aside)
    }
}

/// Buffers that a node aside needs, by their indices, and until when they are better left alone.
struct Lingering {
    buffers: Vec<usize>,
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
    /// Where the device overlaps `branches`, memory that one reads is not given to the other at once.
    pub fn new(
        graph: Graph,
        keep: &[ValueId],
        branches: bool,
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
        let aside = if branches { aside(&graph, &run) } else { HashSet::new() };
        for &index in &run {
            let bytes = workspace(index) * full;
            items.push(Buffer { bytes, first: index + 1, last: index + 1, aside: aside.contains(&index) });
        }
        let lingering = planner.lingering(&run, &aside, &roots);
        let limit = pack(&items).1;
        linger(&mut items, &lingering, limit + limit / LINGER_GROWTH);
        let (starts, arena) = pack(&items);
        let root_start: HashMap<ValueId, usize> =
            roots.iter().zip(&starts).map(|(&root, start)| (root, start / bytes(graph.shape(root).storage))).collect();
        let nodes = run
            .iter()
            .zip(roots.len()..)
            .map(|(&index, item)| {
                let start = starts[item] / full;
                let branch = if aside.contains(&index) { Branch::Aside } else { Branch::Main };
                PlannedNode { index, workspace: start..start + items[item].bytes / full, branch }
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

/// Which of the nodes that `run` compute gradients of parameters that no other node reads before the optimizer does, or only
/// prepare what a later one needs.
fn aside(graph: &Graph, run: &[usize]) -> HashSet<usize> {
    let read: HashSet<ValueId> = run.iter().flat_map(|&index| graph.nodes()[index].inputs.iter().copied()).collect();
    let last = |&output: &ValueId| matches!(graph.placement(output), Placement::Part { .. }) && !read.contains(&output);
    let is_aside = |node: &Node| node.op.only_prepares() || node.outputs.iter().all(last);
    run.iter().copied().filter(|&index| is_aside(&graph.nodes()[index])).collect()
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
            let buffer = buffers.entry(root).or_insert(Buffer { bytes, first: written, last, aside: false });
            (buffer.first, buffer.last) = (buffer.first.min(written), buffer.last.max(last));
        }
        buffers
    }

    /// What each node aside needs, of buffers that begin with those of `roots` and go on with the workspaces of what runs.
    fn lingering(&self, run: &[usize], aside: &HashSet<usize>, roots: &[ValueId]) -> Vec<Lingering> {
        let places: Vec<usize> = (0..run.len()).filter(|&place| aside.contains(&run[place])).collect();
        let needed = |(order, &place): (usize, &usize)| {
            let inputs = self.graph.nodes()[run[place]].inputs.iter();
            let buffers = inputs.filter_map(|&input| roots.binary_search(&self.view(input).root).ok());
            // The node of index i runs at i + 1: until just before that one.
            let last = places.get(order + LINGER).map_or(self.graph.nodes().len(), |&later| run[later]);
            Lingering { buffers: buffers.chain([roots.len() + place]).collect(), last }
        };
        places.iter().enumerate().map(needed).collect()
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

/// Lets buffers linger, but not those for which memory would grow beyond `limit`.
fn linger(buffers: &mut Vec<Buffer>, lingering: &[Lingering], limit: usize) {
    let mut tried = buffers.clone();
    for Lingering { buffers, last } in lingering {
        buffers.iter().for_each(|&index| tried[index].last = tried[index].last.max(*last));
    }
    if pack(&tried).1 <= limit {
        *buffers = tried;
    } else if lingering.len() > 1 {
        let (first, second) = lingering.split_at(lingering.len() / 2);
        linger(buffers, first, limit);
        linger(buffers, second, limit);
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
            .filter(|&&other| buffer.meets(&buffers[other]))
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
