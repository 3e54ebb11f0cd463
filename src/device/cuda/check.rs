//! A step run with its kernels watched: each may write its outputs and its workspace, and nothing else.

use super::{CudaDevice, Device, Memory, StepId};
use crate::Result;
use crate::graph::Region;
use crate::plan::{Plan, PlannedNode};
use crate::tensor::Shape;

/// What padded channels of images must hold after each op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Zero, as they do in a network, whose parameters are zero where they meet padding.
    Zero,
    Any,
}

/// What a device holds, by memory: the arena, then the regions of state.
type Contents = Vec<Vec<f32>>;

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
        let mut before = self.contents()?;
        for position in 0..self.plan(step).nodes.len() {
            self.launch(step, position..position + 1)?;
            let after = self.contents()?;
            let plan = self.plan(step);
            let node = &plan.nodes[position];
            let stray = stray_write(plan, node, &before, &after);
            let dirty = if padding == Padding::Zero { dirty_padding(plan, node, &after) } else { None };
            if let Some(complaint) = stray.or(dirty) {
                let name = plan.graph.nodes()[node.index].op.name();
                return Err(self.driver.message(format!("{name}: {complaint}")));
            }
            before = after;
        }
        Ok(())
    }

    fn contents(&mut self) -> Result<Contents> {
        let mut contents = vec![vec![0.0; self.arena.len()]];
        self.arena.read(&self.driver, 0, &mut contents[0])?;
        for region in Region::ALL {
            let mut state = vec![0.0; self.state[region as usize].len()];
            self.read_state(region, 0, &mut state)?;
            contents.push(state);
        }
        Ok(contents)
    }
}

/// Where a node wrote and must not.
fn stray_write(plan: &Plan, planned: &PlannedNode, before: &Contents, after: &Contents) -> Option<String> {
    let mut allowed: Vec<Vec<bool>> = after.iter().map(|memory| vec![false; memory.len()]).collect();
    allowed[0][planned.workspace.clone()].fill(true);
    for &output in &plan.graph.nodes()[planned.index].outputs {
        let (location, shape) = (plan.location(output), plan.shape(output));
        for position in 0..shape.positions() {
            let start = location.start + position * location.stride;
            allowed[index(location.memory)][start..start + shape.channels.stored()].fill(true);
        }
    }
    for ((before, after), allowed) in before.iter().zip(after).zip(&allowed) {
        let changed = before.iter().zip(after).map(|(before, after)| before.to_bits() != after.to_bits());
        if let Some(element) = changed.zip(allowed).position(|(changed, &allowed)| changed && !allowed) {
            return Some(format!("it wrote to element {element} of a memory, which is neither output nor workspace"));
        }
    }
    None
}

/// Which padded channel of a node's outputs is not zero. A vector of channels may hold anything where there is no
/// channel: nobody reads it there.
fn dirty_padding(plan: &Plan, planned: &PlannedNode, after: &Contents) -> Option<String> {
    for &output in &plan.graph.nodes()[planned.index].outputs {
        let (location, shape) = (plan.location(output), plan.shape(output));
        let padding = padding(shape);
        for position in (0..shape.positions()).filter(|_| shape.positions() > 1) {
            let start = location.start + position * location.stride;
            let pixel = after[index(location.memory)][start..].iter().zip(&padding);
            let dirty = pixel.enumerate().find(|(_, (value, padding))| **padding && **value != 0.0);
            if let Some((channel, _)) = dirty {
                return Some(format!("padded channel {channel} of pixel {position} of its output is not zero"));
            }
        }
    }
    None
}
