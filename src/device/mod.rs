//! The seam between plans and machines: a device holds memory and runs the steps that were planned for it.

pub mod cpu;
pub mod cuda;
pub mod emulator;
pub mod kernels;
mod precision;

pub use cuda::LaunchTime;
pub use precision::Precision;

use crate::Result;
use crate::graph::{Graph, Region, ValueId};
use crate::plan::Plan;
use crate::tensor::Storage;
use kernels::Element;
use std::time::Instant;

/// A step that was loaded into a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepId(usize);

/// A machine that runs steps on tensors whose elements are exchanged as `T`.
///
/// All steps of a device share one arena, so what one step left there is gone once another ran: write a
/// step's inputs, run it, read its results. State (parameters, statistics, moments) stays.
pub trait Device<T>: Send {
    /// The device in words: what it is and how it computes.
    fn name(&self) -> String;

    /// What of the device decides the bits of a result: not the number of threads, nor which of two equal GPUs it is.
    fn kind(&self) -> String {
        self.name()
    }

    /// What numbers it computes with.
    fn precision(&self) -> Precision;

    /// What it keeps a tensor in.
    fn element(&self, storage: Storage) -> Element {
        self.precision().element(storage)
    }

    /// Makes room for `count` elements in a region of state, all zero.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn allocate_state(&mut self, region: Region, count: usize) -> Result<()>;

    /// Plans `graph` so that the values `keep` can be read after a run.
    ///
    /// # Errors
    /// If there is not enough memory; the message says how much was planned.
    fn load(&mut self, graph: Graph, keep: &[ValueId]) -> Result<StepId>;

    /// Memory of state and arena, in bytes.
    fn planned_bytes(&self) -> u64;

    /// The plan of a step.
    fn plan(&self, step: StepId) -> &Plan;

    /// Writes an input: its channels side by side, without padding.
    ///
    /// # Errors
    /// If the device fails.
    fn write(&mut self, step: StepId, value: ValueId, data: &[T]) -> Result<()>;

    /// Runs a step.
    ///
    /// # Errors
    /// If the device fails.
    fn run(&mut self, step: StepId) -> Result<()>;

    /// Runs those nodes of a step's plan, and waits until they are done: to time them at a network's own shapes. They
    /// read whatever lies there.
    ///
    /// # Errors
    /// If the device fails.
    fn run_nodes(&mut self, step: StepId, positions: &[usize]) -> Result<()>;

    /// The seconds that the device itself takes to run those nodes `times` times, one run after the other.
    ///
    /// # Errors
    /// If the device fails.
    fn time_nodes(&mut self, step: StepId, positions: &[usize], times: usize) -> Result<f64> {
        let start = Instant::now();
        (0..times).try_for_each(|_| self.run_nodes(step, positions))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs a step again and again, and times each of its launches on the device: the median of `repeats` times. None
    /// of a device that launches nothing.
    ///
    /// # Errors
    /// If the device fails.
    fn time_launches(&mut self, step: StepId, repeats: usize) -> Result<Option<Vec<LaunchTime>>> {
        let _ = (step, repeats);
        Ok(None)
    }

    /// Reads a kept value: its channels side by side, without padding.
    ///
    /// # Errors
    /// If the device fails.
    fn read(&mut self, step: StepId, value: ValueId, data: &mut [T]) -> Result<()>;

    /// Writes elements of a region, from `start` on.
    ///
    /// # Errors
    /// If the device fails.
    fn write_state(&mut self, region: Region, start: usize, data: &[T]) -> Result<()>;

    /// Reads elements of a region, from `start` on.
    ///
    /// # Errors
    /// If the device fails.
    fn read_state(&mut self, region: Region, start: usize, data: &mut [T]) -> Result<()>;

    /// Fills the arena with a pattern that is not a number, so that a step that reads what nobody wrote shows it.
    ///
    /// # Errors
    /// If the device fails.
    fn poison(&mut self) -> Result<()>;
}

/// The steps of a device, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    plans: Vec<Plan>,
}

impl Steps {
    pub(crate) fn add(&mut self, plan: Plan) -> StepId {
        self.plans.push(plan);
        StepId(self.plans.len() - 1)
    }

    pub(crate) fn get(&self, step: StepId) -> &Plan {
        &self.plans[step.0]
    }
}
