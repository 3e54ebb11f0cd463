//! The launches of a step on a GPU that need not be there: what each reads, writes and computes.

use super::launch::{Addresses, Launcher, PlannedLaunch, Sink};
use super::{Description, plan_for};
use crate::Result;
use crate::device::Precision;
use crate::graph::{Graph, Region, ValueId};
use crate::plan::{Plan, shapes};
use crate::tensor::{CHANNEL_ALIGNMENT, Storage};

/// A step as it would be launched.
#[derive(Debug, Clone)]
pub struct Planned {
    pub launches: Vec<PlannedLaunch>,
    /// Bytes of the arena and of the parameters' copies.
    pub arena: u64,
}

/// Plans a step of `graph`, whose values `keep` are kept and that has so many `parameters`, for GPUs of a compute
/// capability.
///
/// # Errors
/// If the GPU does not compute in this precision, or a tensor is too large.
pub fn planned(
    graph: Graph,
    keep: &[ValueId],
    parameters: usize,
    precision: Precision,
    capability: (i32, i32),
) -> Result<Planned> {
    let description = Description {
        device: "cuda".into(),
        name: "any".into(),
        capability,
        multiprocessors: 1,
        memory: 0,
        driver: (12, 0),
    };
    let precision = description.precision(Some(precision))?;
    let plan = plan_for(graph, keep, precision)?;
    // Memories far apart, at addresses as aligned as a driver's.
    let far = |index: u64| index << 40;
    let state = Region::ALL.map(|region| far(1 + region as u64));
    let addresses = Addresses { arena: far(5), state, copies: far(6), precision };
    let copied = if precision.is_reduced() { parameters.next_multiple_of(CHANNEL_ALIGNMENT) } else { 0 };
    let launches = list(&plan, &description, addresses)?;
    let copies = copied * precision.element(Storage::Reduced).bytes();
    Ok(Planned { launches, arena: (plan.arena + copies) as u64 })
}

/// The launches of a plan on such a device.
pub(super) fn list(plan: &Plan, description: &Description, addresses: Addresses) -> Result<Vec<PlannedLaunch>> {
    let mut launches = Vec::new();
    for node in &plan.nodes {
        let op = &*plan.graph.nodes()[node.index].op;
        let first = launches.len();
        op.launch(&mut Launcher::new(Sink::List(description, &mut launches), plan, node, addresses))?;
        let (inputs, outputs) = shapes(&plan.graph, node.index);
        if let Some(launch) = launches.get_mut(first) {
            launch.operations = op.operations(&inputs, &outputs);
        }
    }
    Ok(launches)
}
