//! The CPU: the default where there is no GPU, and what the CUDA kernels are compared with.
//!
//! Every op's code is generic over `f32` and `f64`. Work is split into tasks by shape alone, never by the
//! number of threads, and sums are taken in a fixed order, so any number of threads gives the same bits.

pub mod operand;
mod real;
mod rounding;
mod simd;
pub mod tile;
pub mod winograd;

pub use operand::{Call, Input, Output};
pub use real::Real;
pub use tile::InstructionSet;

use super::kernels::Element;
use super::{Device, Precision, StepId, Steps};
use crate::graph::{Graph, Region, ValueId};
use crate::plan::{Location, Memory, Plan, shapes};
use crate::resources;
use crate::tensor::{Shape, Storage};
use crate::{Error, Result};
use operand::{Pointers, SpanMut};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;
use tile::{Product, TileKernels};

/// An op's CPU code.
pub trait OnCpu<T: Real> {
    /// Elements of scratch memory that a run needs in the arena.
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        let _ = (cpu, inputs, outputs);
        0
    }

    /// Computes the outputs.
    fn run(&self, cpu: &Cpu<T>, call: Call<T>);
}

/// How ops compute: the threads and the instruction set.
pub struct Cpu<T: Real> {
    threads: rayon::ThreadPool,
    tiles: &'static TileKernels<T>,
    /// A piece of scratch memory for each thread, grown to what ops ask for.
    scratch: Vec<Mutex<Vec<Line>>>,
    winograd: bool,
    /// What is stored: less than `T` only where a GPU's 16 bits are wanted.
    precision: Precision,
}

impl<T: Real> Cpu<T> {
    /// The matrix product's inner loop for this processor.
    pub fn tiles(&self) -> &'static TileKernels<T> {
        self.tiles
    }

    /// Whether convolutions may go Winograd's way.
    pub fn winograd(&self) -> bool {
        self.winograd
    }

    /// Lends the calling thread `count` elements of arbitrary content. Not to be nested.
    pub fn with_scratch<R>(&self, count: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
        let thread = rayon::current_thread_index().expect("ops run in the device's threads");
        let mut scratch: MutexGuard<Vec<Line>> = self.scratch[thread].try_lock().expect("scratch memory is not nested");
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        if scratch.len() < lines {
            scratch.resize(lines, bytemuck::Zeroable::zeroed());
        }
        work(&mut bytemuck::cast_slice_mut(&mut scratch)[..count])
    }
}

/// The products that [`CpuDevice::peak`] times.
const PEAK_DEPTH: usize = 128;
const PEAK_PRODUCTS: usize = 20_000;
const PEAK_TRIES: usize = 5;

/// The CPU as a device.
pub struct CpuDevice<T: Real> {
    cpu: Cpu<T>,
    steps: Steps,
    arena: Buffer<T>,
    state: [Buffer<T>; 3],
    /// The parameters, rounded, for those who read them in 16 bits.
    copies: Buffer<T>,
    /// Of each node of each step, whether its output 0 saturates.
    saturating: Vec<Vec<bool>>,
}

impl<T: Real> CpuDevice<T> {
    /// All cores, and the best instruction set the processor has.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new() -> Result<Self> {
        Self::with(None, InstructionSet::best())
    }

    /// With a number of threads, and an instruction set that the processor must have.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn with(threads: Option<usize>, set: InstructionSet) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|error| device_error(error.to_string()))?;
        let scratch = (0..threads.current_num_threads()).map(|_| Mutex::new(Vec::new())).collect();
        let state = std::array::from_fn(|_| Buffer::new());
        let cpu = Cpu { threads, tiles: T::tiles(set), scratch, winograd: true, precision: T::PRECISION };
        let (steps, saturating) = (Steps::default(), Vec::new());
        Ok(CpuDevice { cpu, steps, arena: Buffer::new(), state, copies: Buffer::new(), saturating })
    }

    fn pointers(&mut self) -> Pointers<T> {
        let state = self.state.each_mut().map(Buffer::as_mut_ptr);
        let reduced = self.cpu.precision.is_reduced();
        let copies = if reduced { self.copies.as_mut_ptr() } else { state[Region::Parameters as usize] };
        Pointers { arena: self.arena.as_mut_ptr(), state, copies }
    }

    /// With convolutions as plain sums of products, which are exact where those are; slower.
    pub fn direct(mut self) -> Self {
        self.cpu.winograd = false;
        self
    }

    /// Floating-point operations a second of all threads together where nothing but the tile kernel's arithmetic takes
    /// time: its operands are in the first-level cache. The best of a few tries.
    pub fn peak(&self) -> f64 {
        let tiles = self.cpu.tiles;
        let (rows, columns, depth) = (tiles.max_rows(), tiles.max_columns(), PEAK_DEPTH);
        let threads = self.cpu.threads.current_num_threads();
        let operations = 2 * rows * columns * depth * PEAK_PRODUCTS * threads;
        let seconds = (0..PEAK_TRIES).map(|_| {
            let start = Instant::now();
            self.cpu.threads.broadcast(|_| {
                let (a, b) = (vec![T::ONE; rows * depth], vec![T::ONE; depth * columns]);
                let mut out = vec![T::ZERO; rows * columns];
                for _ in 0..PEAK_PRODUCTS {
                    tiles.run(&mut SpanMut::from(&mut *out), &Product::plain(&a, &b, [rows, columns, depth]));
                }
                std::hint::black_box(out)
            });
            start.elapsed().as_secs_f64()
        });
        operations as f64 / seconds.fold(f64::INFINITY, f64::min)
    }

    /// The instruction set, and what is rounded to.
    fn arithmetic(&self) -> String {
        let Cpu { tiles, precision, .. } = self.cpu;
        if precision.is_reduced() { format!("{}, rounding to {precision}", tiles.name) } else { tiles.name.into() }
    }

    /// Runs some nodes of a step, in order.
    fn run_some(&mut self, step: StepId, positions: impl Iterator<Item = usize> + Send) {
        let pointers = self.pointers();
        let plan = self.steps.get(step);
        let (cpu, saturating) = (&self.cpu, &self.saturating[step.0]);
        cpu.threads.install(|| {
            for position in positions {
                let node = &plan.nodes[position];
                let op = &*plan.graph.nodes()[node.index].op;
                T::code(op).run(cpu, Call::new(plan, node, &pointers));
                if cpu.precision.is_reduced() {
                    cpu.round_outputs(Call::new(plan, node, &pointers), saturating[position]);
                }
            }
        });
    }

    /// The memory of a value from its first element to its last.
    fn span(&mut self, location: Location, shape: &Shape) -> &mut [T] {
        let memory = match location.memory {
            Memory::Arena => &mut self.arena,
            Memory::State(region) => &mut self.state[region as usize],
        };
        let len = (shape.positions() - 1) * location.stride + shape.channels.stored();
        &mut memory.as_mut_slice()[location.start..location.start + len]
    }
}

impl<T: Real> Device<T> for CpuDevice<T> {
    fn name(&self) -> String {
        format!("cpu, {} threads, {}", self.cpu.threads.current_num_threads(), self.arithmetic())
    }

    fn kind(&self) -> String {
        format!("cpu, {}", self.arithmetic())
    }

    fn precision(&self) -> Precision {
        self.cpu.precision
    }

    fn element(&self, _: Storage) -> Element {
        Element::F32
    }

    fn allocate_state(&mut self, region: Region, count: usize) -> Result<()> {
        if region == Region::Parameters && self.cpu.precision.is_reduced() {
            self.copies.grow(count)?;
        }
        self.state[region as usize].grow(count)
    }

    fn load(&mut self, graph: Graph, keep: &[ValueId]) -> Result<StepId> {
        let ops: Vec<_> = graph.nodes().iter().map(|node| node.op.clone()).collect();
        let needs: Vec<usize> = (0..ops.len())
            .map(|index| {
                let (inputs, outputs) = shapes(&graph, index);
                T::code(&*ops[index]).workspace(&self.cpu, &inputs, &outputs)
            })
            .collect();
        let plan = Plan::new(graph, keep, false, |_| size_of::<T>(), |index| needs[index]);
        self.arena.grow(plan.arena / size_of::<T>())?;
        self.saturating.push(rounding::saturating(&plan));
        Ok(self.steps.add(plan))
    }

    fn planned_bytes(&self) -> u64 {
        let buffers = self.state.iter().chain([&self.arena, &self.copies]);
        buffers.map(|buffer| (buffer.lines.len() * size_of::<Line>()) as u64).sum()
    }

    fn plan(&self, step: StepId) -> &Plan {
        self.steps.get(step)
    }

    fn write(&mut self, step: StepId, value: ValueId, data: &[T]) -> Result<()> {
        let plan = self.steps.get(step);
        let (location, shape) = (plan.location(value), plan.shape(value).clone());
        shape.scatter(data, self.span(location, &shape), location.stride);
        if (shape.storage, location.memory) == (Storage::Reduced, Memory::Arena) {
            let CpuDevice { cpu, arena, .. } = self;
            cpu.round(&mut arena.as_mut_slice()[location.start..][..shape.elements()], false);
        }
        Ok(())
    }

    fn run(&mut self, step: StepId) -> Result<()> {
        if self.cpu.precision.is_reduced() {
            let parameters = self.state[Region::Parameters as usize].as_mut_slice();
            self.cpu.copy_rounded(parameters, self.copies.as_mut_slice());
        }
        self.run_some(step, 0..self.steps.get(step).nodes.len());
        Ok(())
    }

    fn run_nodes(&mut self, step: StepId, positions: &[usize]) -> Result<()> {
        self.run_some(step, positions.iter().copied());
        Ok(())
    }

    fn read(&mut self, step: StepId, value: ValueId, data: &mut [T]) -> Result<()> {
        let plan = self.steps.get(step);
        let (location, shape) = (plan.location(value), plan.shape(value).clone());
        shape.gather(self.span(location, &shape), location.stride, data);
        Ok(())
    }

    fn write_state(&mut self, region: Region, start: usize, data: &[T]) -> Result<()> {
        self.state[region as usize].as_mut_slice()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read_state(&mut self, region: Region, start: usize, data: &mut [T]) -> Result<()> {
        data.copy_from_slice(&self.state[region as usize].as_mut_slice()[start..start + data.len()]);
        Ok(())
    }

    fn poison(&mut self) -> Result<()> {
        self.arena.as_mut_slice().fill(T::from_f64(f64::NAN));
        Ok(())
    }
}

fn device_error(message: String) -> Error {
    Error::Device { device: "cpu".into(), message }
}

/// A cache line, so that buffers are aligned to one.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Elements that start at a cache line.
struct Buffer<T> {
    lines: Vec<Line>,
    element: std::marker::PhantomData<T>,
}

impl<T: Real> Buffer<T> {
    fn new() -> Self {
        Buffer { lines: Vec::new(), element: std::marker::PhantomData }
    }

    /// Makes room for `count` elements; what is added is zero.
    fn grow(&mut self, count: usize) -> Result<()> {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.lines.len() {
            let more = lines - self.lines.len();
            // Asked first: a system may grant memory that it does not have, and end the process that uses it.
            let free = resources::free_memory();
            let fits = free.is_none_or(|free| (more * size_of::<Line>()) as u64 <= free);
            if !fits || self.lines.try_reserve_exact(more).is_err() {
                let planned = (lines * size_of::<Line>()) >> 20;
                let free = free.map_or("too few".into(), |free| (free >> 20).to_string());
                return Err(device_error(format!(
                    "no room for the {planned} MiB that were planned: {free} MiB are free; lower --batch, --size or --widths"
                )));
            }
            self.lines.resize(lines, bytemuck::Zeroable::zeroed());
        }
        Ok(())
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    fn as_mut_ptr(&mut self) -> *mut T {
        self.as_mut_slice().as_mut_ptr()
    }
}
