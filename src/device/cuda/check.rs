//! A step run with its kernels watched: each may write its outputs and its workspace, and nothing else.

use super::{CudaDevice, Device, DeviceMemory, Memory, StepId};
use crate::Result;
use crate::device::Precision;
use crate::graph::Region;
use crate::plan::{Plan, PlannedNode};
use crate::tensor::{Shape, Storage};

/// What padded channels of images must hold after each op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Zero, as they do in a network, whose parameters are zero where they meet padding.
    Zero,
    Any,
}

/// The bytes that a device holds, by memory: the arena, then the regions of state, then the parameters' copies.
type Contents = Vec<Vec<u8>>;

const COPIES: usize = 1 + Region::ALL.len();

fn index(memory: Memory) -> usize {
    match memory {
        Memory::Arena => 0,
        Memory::State(region) => 1 + region as usize,
    }
}

/// Which stored channels are padding.
fn padding(shape: &Shape) -> Vec<bool> {
    let mut padding = vec![true; shape.channels.stored()];
    shape.channels.stored_indices().for_each(|index| padding[index] = false);
    padding
}

impl CudaDevice {
    /// As [`Device::run`], launch by launch; after each, all memory is compared with what it held before. Slow: for
    /// tests of kernels.
    ///
    /// # Errors
    /// If an op wrote anywhere but to its outputs and its workspace, or left other padding than wanted; the message
    /// names the op.
    pub fn run_checked(&mut self, step: StepId, padding: Padding) -> Result<()> {
        self.copy_parameters()?;
        let mut before = self.contents()?;
        for position in 0..self.plan(step).nodes.len() {
            self.launch_nodes(step, [position])?;
            let after = self.contents()?;
            let plan = self.plan(step);
            let node = &plan.nodes[position];
            let stray = stray_write(plan, node, self.precision, &before, &after);
            let clean = padding == Padding::Any;
            let dirty = if clean { None } else { dirty_padding(plan, node, self.precision, &after) };
            if let Some(complaint) = stray.or(dirty) {
                let name = plan.graph.nodes()[node.index].op.name();
                return Err(self.driver.message(format!("{name}: {complaint}")));
            }
            before = after;
        }
        Ok(())
    }

    fn contents(&mut self) -> Result<Contents> {
        let read = |memory: &DeviceMemory| -> Result<Vec<u8>> {
            let mut bytes = vec![0; memory.len()];
            memory.read(&self.driver, 0, &mut bytes)?;
            Ok(bytes)
        };
        [&self.arena].into_iter().chain(&self.state).chain([&self.copies]).map(read).collect()
    }
}

/// Where a node wrote and must not.
fn stray_write(
    plan: &Plan,
    planned: &PlannedNode,
    precision: Precision,
    before: &Contents,
    after: &Contents,
) -> Option<String> {
    let mut allowed: Vec<Vec<bool>> = after.iter().map(|memory| vec![false; memory.len()]).collect();
    let full = precision.element(Storage::Full).bytes();
    allowed[0][planned.workspace.start * full..planned.workspace.end * full].fill(true);
    for &output in &plan.graph.nodes()[planned.index].outputs {
        let (location, shape) = (plan.location(output), plan.shape(output));
        for position in 0..shape.positions() {
            let bytes = precision.element(shape.storage).bytes();
            let start = (location.start + position * location.stride) * bytes;
            allowed[index(location.memory)][start..start + shape.channels.stored() * bytes].fill(true);
            if location.memory == Memory::State(Region::Parameters) && precision.is_reduced() {
                let copied = precision.element(Storage::Reduced).bytes();
                allowed[COPIES][start / bytes * copied..][..shape.channels.stored() * copied].fill(true);
            }
        }
    }
    for ((before, after), allowed) in before.iter().zip(after).zip(&allowed) {
        let changed = before.iter().zip(after).map(|(before, after)| before != after);
        if let Some(byte) = changed.zip(allowed).position(|(changed, &allowed)| changed && !allowed) {
            return Some(format!("it wrote to byte {byte} of a memory, which is neither output nor workspace"));
        }
    }
    None
}

/// Which padded channel of a node's outputs is not zero. A vector of channels may hold anything where there is no
/// channel: nobody reads it there.
fn dirty_padding(plan: &Plan, planned: &PlannedNode, precision: Precision, after: &Contents) -> Option<String> {
    for &output in &plan.graph.nodes()[planned.index].outputs {
        let (location, shape) = (plan.location(output), plan.shape(output));
        let padding = padding(shape);
        for position in (0..shape.positions()).filter(|_| shape.positions() > 1) {
            let element = precision.element(shape.storage);
            let start = (location.start + position * location.stride) * element.bytes();
            let pixel = &after[index(location.memory)][start..start + padding.len() * element.bytes()];
            let pixel = element.decode(pixel).into_iter().zip(&padding);
            let dirty = pixel.enumerate().find(|(_, (value, padding))| **padding && *value != 0.0);
            if let Some((channel, _)) = dirty {
                return Some(format!("padded channel {channel} of pixel {position} of its output is not zero"));
            }
        }
    }
    None
}
