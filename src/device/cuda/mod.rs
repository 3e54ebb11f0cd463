//! GPUs, through cudarc: one arena, one stream, and each step a CUDA graph, of two branches where that helps.
//!
//! The kernels (`kernels/*.cu`) come compiled into the program. cudarc looks for the driver when a device is opened,
//! so the program itself needs no CUDA to start. On a machine without a GPU, [`CudaDevice::emulator`] runs the same
//! kernels, launches and graphs on the CPU; see [`super::emulator`].

mod branches;
mod check;
mod driver;
mod grid;
mod launch;
mod memory;
mod planned;
mod staging;
mod timing;

pub use check::Padding;
pub use driver::Description;
pub use grid::{Chunks, Elements, Grid, LaneGrid, PixelGrid};
pub use launch::{Launch, Launcher, OnCuda, Operand, PlannedLaunch, Pointer, scratch_elements};
pub use planned::{Planned, planned};
pub use timing::LaunchTime;

use super::kernels::{Element, ROUND_PARAMETERS};
use super::{Device, Precision, StepId, Steps};
use crate::graph::{Graph, Region, ValueId};
use crate::plan::{Location, Memory, Plan, shapes};
use crate::tensor::{CHANNEL_ALIGNMENT, Shape, Storage};
use crate::{Error, Result};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use driver::Driver;
use launch::{Addresses, Sink};
use memory::DeviceMemory;
use staging::Staging;

/// Elements that one tensor may have, from its first to its last: kernels count them in 32 bits.
const MAX_ELEMENTS: usize = i32::MAX as usize;
/// Bytes of an element that is stored in full.
const FULL: usize = size_of::<f32>();

/// How a step is run next.
enum Progress {
    /// Launch by launch: that loads the kernels, which a capture forbids.
    Launch,
    /// Launch by launch into a graph.
    Capture,
    Replay(StepGraph),
}

/// A captured step.
struct StepGraph {
    graph: CudaGraph,
    /// What a replay takes, once somebody timed it.
    seconds: Option<f64>,
}

// SAFETY: a graph must not be used by two threads at once; a device is used by one at a time, through `&mut`, and
// cudarc makes the device's context the calling thread's before each call.
unsafe impl Send for StepGraph {}

/// A GPU, or the emulator, as a device.
pub struct CudaDevice {
    // Before the driver, so that what they hold is freed while its context is there.
    progress: Vec<Progress>,
    arena: DeviceMemory,
    state: [DeviceMemory; 3],
    /// Of the parameters, in what activations are stored in. Adam, the one op that writes parameters, keeps them.
    copies: DeviceMemory,
    /// Whether parameters were written by others since.
    outdated: bool,
    staging: Staging,
    precision: Precision,
    steps: Steps,
    driver: Driver,
}

impl CudaDevice {
    /// How many GPUs there are.
    ///
    /// # Errors
    /// If there is no driver, or it is too old.
    pub fn count() -> Result<usize> {
        driver::count()
    }

    /// What GPU `ordinal` is.
    ///
    /// # Errors
    /// If there is no driver, it is too old, or there is no such GPU.
    pub fn describe(ordinal: usize) -> Result<Description> {
        driver::describe(ordinal)
    }

    /// Opens GPU `ordinal`. Without a precision it computes in the best that tensor cores of its kind have.
    ///
    /// # Errors
    /// If there is no driver, it is too old, there is no such GPU, it does not compute in this precision, or the build
    /// has no kernels for it.
    pub fn open(ordinal: usize, precision: Option<Precision>) -> Result<Self> {
        let choose = |description: &Description| description.precision(precision);
        Self::with(Driver::open(ordinal, |found| Ok(choose(found)?.element(Storage::Reduced)))?, choose)
    }

    /// Opens the CUDA emulator. A process uses either GPUs or the emulator, whichever it opened first.
    ///
    /// # Errors
    /// If the build has no emulator, or the process uses GPUs.
    pub fn emulator(precision: Option<Precision>) -> Result<Self> {
        let choose = |description: &Description| description.precision(precision);
        Self::with(Driver::emulator(|found| Ok(choose(found)?.element(Storage::Reduced)))?, choose)
    }

    fn with(driver: Driver, choose: impl Fn(&Description) -> Result<Precision>) -> Result<Self> {
        Ok(CudaDevice {
            progress: Vec::new(),
            arena: DeviceMemory::new(),
            state: std::array::from_fn(|_| DeviceMemory::new()),
            copies: DeviceMemory::new(),
            outdated: true,
            staging: Staging::new(),
            precision: choose(&driver.description)?,
            steps: Steps::default(),
            driver,
        })
    }

    /// Graphs hold addresses: where memory moved, they are captured again.
    fn forget_graphs(&mut self) {
        for progress in &mut self.progress {
            if matches!(progress, Progress::Replay(_)) {
                *progress = Progress::Capture;
            }
        }
    }

    fn addresses(&self) -> Addresses {
        Addresses {
            arena: self.arena.address(),
            state: self.state.each_ref().map(|s| s.address()),
            copies: self.copies.address(),
            precision: self.precision,
        }
    }

    /// Launches a step.
    fn launch(&mut self, step: StepId) -> Result<()> {
        self.launch_nodes(step, 0..self.steps.get(step).nodes.len())
    }

    /// Launches what comes before a step: parameters are copied if their copies are outdated.
    fn copy_parameters(&mut self) -> Result<()> {
        if self.outdated && self.copies.len() > 0 {
            let groups = self.copies.len() / self.precision.element(Storage::Reduced).bytes() / CHANNEL_ALIGNMENT;
            let pointers = self.addresses().parameters(groups * CHANNEL_ALIGNMENT);
            Launch::new(Sink::Driver(&mut self.driver), "parameters", ROUND_PARAMETERS)
                .pointers(pointers)
                .sizes([groups])
                .launch(PixelGrid::single(1).over(groups, 1))?;
        }
        self.outdated = false;
        Ok(())
    }

    /// Launches some nodes of a step, in order.
    fn launch_nodes(&mut self, step: StepId, positions: impl IntoIterator<Item = usize>) -> Result<()> {
        let addresses = self.addresses();
        let plan = self.steps.get(step);
        for position in positions {
            let node = &plan.nodes[position];
            let op = &*plan.graph.nodes()[node.index].op;
            op.launch(&mut Launcher::new(Sink::Driver(&mut self.driver), plan, node, addresses))?;
        }
        Ok(())
    }

    /// Captures a step: nothing runs.
    fn capture(&mut self, step: StepId) -> Result<StepGraph> {
        let stream = self.driver.stream.clone();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(|error| self.driver.error("graph capture", error))?;
        let launched = self.launch_branches(step);
        // The capture must end even where a launch failed.
        let captured = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY);
        launched?;
        let graph = captured.map_err(|error| self.driver.error("graph capture", error))?;
        Ok(StepGraph { graph: graph.expect("a capture that ended makes a graph"), seconds: None })
    }

    /// Where a value lies and how it is stored.
    fn place(&self, step: StepId, value: ValueId) -> (Location, Shape) {
        let plan = self.steps.get(step);
        (plan.location(value), plan.shape(value).clone())
    }

    /// The memory that a value is read from and written to; the copies of parameters are the device's own.
    fn memory(&mut self, memory: Memory) -> (&mut DeviceMemory, &Driver) {
        (part(&mut self.arena, &mut self.state, memory), &self.driver)
    }
}

fn part<'a>(arena: &'a mut DeviceMemory, state: &'a mut [DeviceMemory; 3], memory: Memory) -> &'a mut DeviceMemory {
    match memory {
        Memory::Arena => arena,
        Memory::State(region) => &mut state[region as usize],
    }
}

/// Whether a tensor is stored as it is exchanged: its channels side by side, without padding.
fn is_plain(shape: &Shape, stride: usize) -> bool {
    stride == shape.channels.count()
}

/// Elements from the first to the last of a tensor.
fn span(shape: &Shape, stride: usize) -> usize {
    (shape.positions() - 1) * stride + shape.channels.stored()
}

/// The plan of a graph for kernels in this precision.
fn plan_for(mut graph: Graph, keep: &[ValueId], precision: Precision) -> Result<Plan> {
    graph.prepare(|op, inputs, outputs| op.prepared(precision, inputs, outputs))?;
    let needs: Vec<usize> = (0..graph.nodes().len())
        .map(|index| {
            let (inputs, outputs) = shapes(&graph, index);
            OnCuda::workspace(&*graph.nodes()[index].op, precision, &inputs, &outputs)
        })
        .collect();
    let plan = Plan::new(graph, keep, true, |storage| precision.element(storage).bytes(), |index| needs[index]);
    check_sizes(&plan)?;
    Ok(plan)
}

/// Refuses tensors that kernels could not count in 32 bits.
fn check_sizes(plan: &Plan) -> Result<()> {
    for planned in &plan.nodes {
        let node = &plan.graph.nodes()[planned.index];
        let values = node.inputs.iter().chain(&node.outputs);
        let largest = values.map(|&value| span(plan.shape(value), plan.location(value).stride)).max().unwrap_or(0);
        let largest = largest.max(planned.workspace.len());
        if largest > MAX_ELEMENTS {
            return Err(Error::shape(
                node.op.name(),
                format!(
                    "{largest} elements in one tensor, CUDA kernels count to {MAX_ELEMENTS}: lower --batch or --size"
                ),
            ));
        }
    }
    Ok(())
}

impl Device<f32> for CudaDevice {
    fn name(&self) -> String {
        self.driver.description.to_string()
    }

    fn kind(&self) -> String {
        self.driver.description.name.clone()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate_state(&mut self, region: Region, count: usize) -> Result<()> {
        // Whole groups, which parameters are rounded in.
        let count = count.next_multiple_of(CHANNEL_ALIGNMENT);
        let mut moved = self.state[region as usize].grow(&self.driver, count * FULL, memory::Content::Kept)?;
        if region == Region::Parameters && self.precision.is_reduced() {
            let bytes = count * self.precision.element(Storage::Reduced).bytes();
            moved |= self.copies.grow(&self.driver, bytes, memory::Content::Kept)?;
            self.outdated = true;
        }
        if moved {
            self.forget_graphs();
        }
        Ok(())
    }

    fn load(&mut self, graph: Graph, keep: &[ValueId]) -> Result<StepId> {
        let plan = plan_for(graph, keep, self.precision)?;
        if self.arena.grow(&self.driver, plan.arena, memory::Content::Lost)? {
            self.forget_graphs();
        }
        self.progress.push(Progress::Launch);
        Ok(self.steps.add(plan))
    }

    fn planned_bytes(&self) -> u64 {
        self.state.iter().chain([&self.arena, &self.copies]).map(|memory| memory.len() as u64).sum()
    }

    fn plan(&self, step: StepId) -> &Plan {
        self.steps.get(step)
    }

    fn write(&mut self, step: StepId, value: ValueId, data: &[f32]) -> Result<()> {
        let (location, shape) = self.place(step, value);
        assert_eq!(location.stride, shape.channels.stored(), "an input has a place of its own");
        let element = self.precision.element(shape.storage);
        let staged = if is_plain(&shape, location.stride) && element == Element::F32 {
            self.staging.stage(&self.driver, bytemuck::cast_slice(data))?
        } else {
            let mut stored = vec![0.0; span(&shape, location.stride)];
            shape.scatter(data, &mut stored, location.stride);
            self.staging.stage(&self.driver, &element.encode(&stored))?
        };
        self.outdated |= location.memory == Memory::State(Region::Parameters);
        let memory = part(&mut self.arena, &mut self.state, location.memory);
        memory.write(&self.driver, location.start * element.bytes(), staged)
    }

    fn run(&mut self, step: StepId) -> Result<()> {
        self.copy_parameters()?;
        if let Progress::Launch = self.progress[step.0] {
            self.launch(step)?;
            self.progress[step.0] = Progress::Capture;
            return Ok(());
        }
        if let Progress::Capture = self.progress[step.0] {
            self.progress[step.0] = Progress::Replay(self.capture(step)?);
        }
        match &self.progress[step.0] {
            Progress::Replay(step) => step.graph.launch().map_err(|error| self.driver.error("graph launch", error)),
            _ => unreachable!("the step was captured above"),
        }
    }

    fn run_nodes(&mut self, step: StepId, positions: &[usize]) -> Result<()> {
        self.copy_parameters()?;
        self.launch_nodes(step, positions.iter().copied())?;
        self.driver.synchronize()
    }

    fn time_nodes(&mut self, step: StepId, positions: &[usize], times: usize) -> Result<f64> {
        self.timed_nodes(step, positions, times)
    }

    fn time_launches(&mut self, step: StepId, repeats: usize) -> Result<Option<Vec<LaunchTime>>> {
        self.timed_launches(step, repeats).map(Some)
    }

    fn read(&mut self, step: StepId, value: ValueId, data: &mut [f32]) -> Result<()> {
        let (location, shape) = self.place(step, value);
        let element = self.precision.element(shape.storage);
        let (memory, driver) = self.memory(location.memory);
        let start = location.start * element.bytes();
        if is_plain(&shape, location.stride) && element == Element::F32 {
            memory.read(driver, start, bytemuck::cast_slice_mut(data))?;
        } else {
            let mut stored = vec![0; span(&shape, location.stride) * element.bytes()];
            memory.read(driver, start, &mut stored)?;
            shape.gather(&element.decode(&stored), location.stride, data);
        }
        self.staging.clear(); // a read waits for all that was begun before
        Ok(())
    }

    fn write_state(&mut self, region: Region, start: usize, data: &[f32]) -> Result<()> {
        self.outdated |= region == Region::Parameters;
        self.state[region as usize].write(&self.driver, start * FULL, bytemuck::cast_slice(data))
    }

    fn read_state(&mut self, region: Region, start: usize, data: &mut [f32]) -> Result<()> {
        self.state[region as usize].read(&self.driver, start * FULL, bytemuck::cast_slice_mut(data))
    }

    fn poison(&mut self) -> Result<()> {
        self.arena.poison(&self.driver)
    }
}
