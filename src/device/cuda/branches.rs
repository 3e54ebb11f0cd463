//! The two branches of a captured step. Gradients of parameters are computed beside what goes on: nothing waits for them but
//! the optimizer, and what needs arithmetic overlaps what needs memory. So is what only prepares a later node's input. The
//! launches are the same as in one branch, and so are the bits.
//!
//! Values share memory, so that a node may have to wait not only for what it reads, but also for those who still use what it
//! writes. Which waits there are is therefore found from addresses.

use super::launch::Addresses;
use super::{CudaDevice, StepId, span};
use crate::Result;
use crate::graph::Region;
use crate::plan::{Branch, Location, Memory, Plan, PlannedNode};
use crate::tensor::Storage;
use cudarc::driver::{CudaEvent, DriverError};
use std::collections::HashMap;
use std::ops::Range;

/// What a node reads or writes: `width` bytes of each `stride`, from the start to the end of `span`.
struct Access {
    span: Range<u64>,
    stride: u64,
    width: u64,
    writes: bool,
}

impl Access {
    /// Whether the order of two accesses matters.
    fn meets(&self, other: &Access) -> bool {
        let apart = self.span.end <= other.span.start || other.span.end <= self.span.start;
        !apart && (self.writes || other.writes) && !self.is_beside(other)
    }

    /// Whether the two are of different channels of the same pixels.
    fn is_beside(&self, other: &Access) -> bool {
        let stride = self.stride;
        let between = (other.span.start + stride - self.span.start % stride) % stride;
        stride == other.stride && self.width <= between && between + other.width <= stride
    }
}

fn accesses(plan: &Plan, planned: &PlannedNode, addresses: Addresses) -> Vec<Access> {
    let at = |location: Location, storage: Storage, count: usize, width: usize, writes: bool| {
        let pointer = addresses.at(location, storage, count, writes);
        let element = addresses.precision.element(storage).bytes();
        Access {
            span: pointer.address()..pointer.address() + pointer.bytes() as u64,
            stride: (location.stride * element) as u64,
            width: (width * element) as u64,
            writes,
        }
    };
    let node = &plan.graph.nodes()[planned.index];
    let values = node.inputs.iter().map(|value| (value, false)).chain(node.outputs.iter().map(|value| (value, true)));
    let values = values.flat_map(|(&value, writes)| {
        let (location, shape) = (plan.location(value), plan.shape(value));
        let copied = writes && location.memory == Memory::State(Region::Parameters) && addresses.precision.is_reduced();
        [Some(shape.storage), copied.then_some(Storage::Reduced)]
            .into_iter()
            .flatten()
            .map(move |storage| at(location, storage, span(shape, location.stride), shape.channels.stored(), writes))
    });
    let count = planned.workspace.len();
    let workspace = Location { memory: Memory::Arena, start: planned.workspace.start, stride: count.max(1) };
    values.chain((count > 0).then(|| at(workspace, Storage::Full, count, count, true))).collect()
}

/// What the nodes of a step wait for.
#[derive(Debug)]
pub(super) struct Branches {
    /// For each node, by its position, the latest node of the other branch that must be done before it, unless it is
    /// known to be.
    pub waits: Vec<Option<usize>>,
    /// The last node aside.
    pub last: Option<usize>,
}

impl Branches {
    pub fn new(plan: &Plan, addresses: Addresses) -> Self {
        let accesses: Vec<Vec<Access>> = plan.nodes.iter().map(|node| accesses(plan, node, addresses)).collect();
        let meet = |a: usize, b: usize| accesses[a].iter().any(|one| accesses[b].iter().any(|other| one.meets(other)));
        // How many nodes of the step, from the first, a branch need not wait for any more.
        let mut known = [0; 2];
        let mut waits = Vec::with_capacity(plan.nodes.len());
        for (position, node) in plan.nodes.iter().enumerate() {
            let known = &mut known[node.branch as usize];
            let mut others = (*known..position).rev().filter(|&other| plan.nodes[other].branch != node.branch);
            let wait = others.find(|&other| meet(position, other));
            *known = wait.map_or(*known, |other| other + 1);
            waits.push(wait);
        }
        Branches { waits, last: plan.nodes.iter().rposition(|node| node.branch == Branch::Aside) }
    }
}

impl CudaDevice {
    /// Launches a step in two branches, while it is captured; they are one again at the end.
    pub(super) fn launch_branches(&mut self, step: StepId) -> Result<()> {
        let launched = self.launch_in_branches(step);
        self.driver.branch = Branch::Main;
        launched
    }

    fn launch_in_branches(&mut self, step: StepId) -> Result<()> {
        let plan = self.steps.get(step);
        let branches: Vec<Branch> = plan.nodes.iter().map(|node| node.branch).collect();
        let Branches { waits, last } = Branches::new(plan, self.addresses());
        if last.is_some() {
            self.driver.aside.join(&self.driver.stream).map_err(|error| self.branch_error(error))?;
        }
        let awaited: Vec<usize> = waits.iter().copied().chain([last]).flatten().collect();
        let mut ends = HashMap::<usize, CudaEvent>::new();
        for (position, (&branch, wait)) in branches.iter().zip(&waits).enumerate() {
            if let Some(earlier) = wait {
                let waited = self.driver.stream_of(branch).wait(&ends[earlier]);
                waited.map_err(|error| self.branch_error(error))?;
            }
            self.driver.branch = branch;
            self.launch_nodes(step, [position])?;
            if awaited.contains(&position) {
                let end = self.driver.stream_of(branch).record_event(None);
                ends.insert(position, end.map_err(|error| self.branch_error(error))?);
            }
        }
        let joined = last.map_or(Ok(()), |last| self.driver.stream.wait(&ends[&last]));
        joined.map_err(|error| self.branch_error(error))
    }

    fn branch_error(&self, error: DriverError) -> crate::Error {
        self.driver.error("branches of a graph", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::device::cuda::plan_for;
    use crate::graph::Region;
    use crate::model::{Mode, Model};
    use std::collections::HashSet;

    /// What numbers stand in two bytes, of each memory.
    #[derive(Clone, Default)]
    struct Cell {
        writer: Option<usize>,
        readers: Vec<usize>,
    }

    fn training_plan(name: &str, precision: Precision) -> Plan {
        let model = Model::new(name, [8, 9, 10, 16, 24]).unwrap();
        let mut step = model.graph(Mode::Train, 2, [16, 32]).unwrap();
        let keep = step.kept();
        plan_for(std::mem::take(&mut step.graph), &keep, precision).unwrap()
    }

    /// Memories far from one another.
    fn addresses(precision: Precision) -> Addresses {
        let far = |index: u64| index << 40;
        Addresses { arena: far(5), state: [far(1), far(2), far(3)], copies: far(6), precision }
    }

    /// Pairs of nodes of which one writes what the other touches, found byte by byte: all that follow from others in
    /// between left out.
    fn conflicts(plan: &Plan, precision: Precision) -> HashSet<(usize, usize)> {
        let mut cells = HashMap::<(usize, usize), Cell>::new();
        let mut pairs = HashSet::new();
        for (position, planned) in plan.nodes.iter().enumerate() {
            let node = &plan.graph.nodes()[planned.index];
            let mut touched: Vec<((usize, usize), bool)> = Vec::new();
            let values = node.inputs.iter().map(|value| (value, false));
            for (&value, writes) in values.chain(node.outputs.iter().map(|value| (value, true))) {
                let (location, shape) = (plan.location(value), plan.shape(value));
                let is_parameters = location.memory == Memory::State(Region::Parameters);
                let own = precision.element(shape.storage).bytes();
                // Whoever writes parameters writes their copies as well.
                let copied = writes && is_parameters && own > 2 && precision.is_reduced();
                for bytes in [Some(own), copied.then_some(2)].into_iter().flatten() {
                    let memory = match location.memory {
                        Memory::Arena => 0,
                        Memory::State(_) if is_parameters && bytes == 2 => 9,
                        Memory::State(region) => 1 + region as usize,
                    };
                    for pixel in 0..shape.positions() {
                        let start = (location.start + pixel * location.stride) * bytes / 2;
                        let cells = start..start + shape.channels.stored() * bytes / 2;
                        touched.extend(cells.map(|cell| ((memory, cell), writes)));
                    }
                }
            }
            let workspace = 2 * planned.workspace.start..2 * planned.workspace.end;
            touched.extend(workspace.map(|cell| ((0, cell), true)));
            for (place, writes) in touched {
                let cell = cells.entry(place).or_default();
                pairs.extend(cell.writer.map(|writer| (writer, position)));
                if writes {
                    pairs.extend(cell.readers.drain(..).map(|reader| (reader, position)));
                    cell.writer = Some(position);
                } else if cell.readers.last() != Some(&position) {
                    cell.readers.push(position);
                }
            }
        }
        pairs.retain(|(first, second)| first != second);
        pairs
    }

    /// Whether these waits and the order in each branch keep the pairs' order.
    fn are_ordered(plan: &Plan, waits: &[Option<usize>], pairs: &HashSet<(usize, usize)>) -> bool {
        // Of each branch, so many nodes from the step's first are done when a node begins.
        let mut done: Vec<[usize; 2]> = Vec::new();
        let mut latest = [None::<usize>; 2];
        for (position, node) in plan.nodes.iter().enumerate() {
            let mut before = [0; 2];
            for earlier in [latest[node.branch as usize], waits[position]].into_iter().flatten() {
                before = std::array::from_fn(|branch| before[branch].max(done[earlier][branch]));
                let own = &mut before[plan.nodes[earlier].branch as usize];
                *own = (*own).max(earlier + 1);
            }
            done.push(before);
            latest[node.branch as usize] = Some(position);
        }
        pairs.iter().all(|&(first, second)| first < done[second][plan.nodes[first].branch as usize])
    }

    #[test]
    fn cuda_branches_keep_the_order_of_what_touches_the_same_bytes() {
        for name in ["rar-unet", "unet", "dense-unet"] {
            for precision in [Precision::F32, Precision::Bf16] {
                let plan = training_plan(name, precision);
                let Branches { waits, last } = Branches::new(&plan, addresses(precision));
                let pairs = conflicts(&plan, precision);
                let aside = plan.nodes.iter().filter(|node| node.branch == Branch::Aside).count();
                let waiting = |branch| {
                    let nodes = plan.nodes.iter().zip(&waits);
                    nodes.filter(|(node, wait)| node.branch == branch && wait.is_some()).count()
                };
                println!(
                    "{name}, {precision}: {aside} of {} nodes aside, of which {} wait, and {} on main; {} pairs",
                    plan.nodes.len(),
                    waiting(Branch::Aside),
                    waiting(Branch::Main),
                    pairs.len()
                );
                assert!(aside > 10 && last.is_some(), "there is something to overlap");
                assert!(are_ordered(&plan, &waits, &pairs), "{name}, {precision}");
                for position in (0..waits.len()).filter(|&position| waits[position].is_some()) {
                    let mut fewer = waits.clone();
                    fewer[position] = None;
                    assert!(!are_ordered(&plan, &fewer, &pairs), "{name}: node {position} need not wait");
                }
            }
        }
    }

    /// Of different channels of the same pixels two nodes may write at once.
    #[test]
    fn cuda_accesses_meet_where_they_share_bytes() {
        let access =
            |start: u64, width: u64, writes: bool| Access { span: start..start + 300, stride: 32, width, writes };
        for (other, meets) in
            [((100, 16), true), ((116, 16), false), ((115, 16), true), ((212, 8), false), ((84, 16), false)]
        {
            let (one, other) = (access(100, 16, true), access(other.0, other.1, false));
            assert_eq!((one.meets(&other), other.meets(&one)), (meets, meets), "{:?}", other.span);
        }
        assert!(!access(100, 16, false).meets(&access(100, 16, false)), "both read");
        assert!(!access(100, 16, true).meets(&access(400, 16, true)), "one ends where the other starts");
    }
}
