//! A step run with its kernels watched: each may write its outputs and its workspace, and nothing else.

use super::{CudaDevice, Device, Memory, StepId};
use crate::Result;
use crate::graph::Region;
use crate::plan::{Plan, PlannedNode};
use crate::tensor::Shape;

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
    /// If an op wrote anywhere but to its outputs and its workspace, or left padded channels of an image that are not
    /// zero; the message names the op.
    pub fn run_checked(&mut self, step: StepId) -> Result<()> {
        let mut before = self.contents()?;
        for position in 0..self.plan(step).nodes.len() {
            self.launch(step, position..position + 1)?;
            let after = self.contents()?;
            let plan = self.plan(step);
            let node = &plan.nodes[position];
            if let Some(complaint) = complaint(plan, node, &before, &after) {
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

/// What a node did that it must not do.
fn complaint(plan: &Plan, planned: &PlannedNode, before: &Contents, after: &Contents) -> Option<String> {
    let mut allowed: Vec<Vec<bool>> = after.iter().map(|memory| vec![false; memory.len()]).collect();
    allowed[0][planned.workspace.clone()].fill(true);
    for &output in &plan.graph.nodes()[planned.index].outputs {
        let (location, shape) = (plan.location(output), plan.shape(output));
        let (padding, memory) = (padding(shape), index(location.memory));
        for position in 0..shape.positions() {
            let start = location.start + position * location.stride;
            let pixel = start..start + padding.len();
            allowed[memory][pixel.clone()].fill(true);
            // A value per channel may hold anything where there is no channel: nobody reads it there.
            let dirty =
                after[memory][pixel].iter().zip(&padding).position(|(&value, &padding)| padding && value != 0.0);
            if let Some(channel) = dirty.filter(|_| shape.positions() > 1) {
                return Some(format!("padded channel {channel} of pixel {position} of its output is not zero"));
            }
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
