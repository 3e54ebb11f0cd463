//! What an op's CPU code sees: its inputs to read, its outputs to write, its workspace.
//!
//! Operands are pixels with a stride, so that a slice of a concatenation is used like any other tensor.
//! A plan never lets an output overlap an input unless the op allowed it, in which case the op must go
//! through [`Call::map`] or [`Call::zip`]; [`Call`] checks this, and so everything here is safe to use.

use super::Real;
use crate::graph::{Region, ValueId};
use crate::plan::{Location, Memory, Plan, PlannedNode};
use crate::tensor::{Shape, Storage};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements a parallel task should have at least, for work that memory decides.
const TASK_ELEMENTS: usize = 1 << 14;

/// A run of elements for the tile kernel; reads of it are checked there.
#[derive(Clone, Copy)]
pub struct Span<'a, T> {
    pub(super) pointer: *const T,
    pub(super) len: usize,
    life: PhantomData<&'a T>,
}

/// A run of elements that the tile kernel writes.
pub struct SpanMut<'a, T> {
    pub(super) pointer: *mut T,
    pub(super) len: usize,
    life: PhantomData<&'a mut T>,
}

// SAFETY: a span stands for elements that may be read (or, mutably, written) by whoever holds it.
unsafe impl<T: Sync> Send for Span<'_, T> {}
unsafe impl<T: Sync> Sync for Span<'_, T> {}
unsafe impl<T: Send> Send for SpanMut<'_, T> {}

impl<'a, T> From<&'a [T]> for Span<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        Span { pointer: slice.as_ptr(), len: slice.len(), life: PhantomData }
    }
}

impl<'a, T> From<&'a mut [T]> for SpanMut<'a, T> {
    fn from(slice: &'a mut [T]) -> Self {
        SpanMut { pointer: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }
}

/// An input: `shape().positions()` pixels of `channels()` stored channels each.
#[derive(Clone, Copy)]
pub struct Input<'a, T> {
    pointer: *const T,
    shape: &'a Shape,
    stride: usize,
}

// SAFETY: the elements are not written while an input is there; see the module's documentation.
unsafe impl<T: Sync> Send for Input<'_, T> {}
unsafe impl<T: Sync> Sync for Input<'_, T> {}

impl<'a, T: Real> Input<'a, T> {
    /// A tensor in the first elements of a workspace, whose pixels lie side by side.
    pub fn dense_in(workspace: &'a [T], shape: &'a Shape) -> Self {
        let pointer = workspace[..shape.elements()].as_ptr();
        Input { pointer, shape, stride: shape.channels.stored() }
    }

    pub fn shape(&self) -> &'a Shape {
        self.shape
    }

    /// Stored channels of a pixel.
    pub fn channels(&self) -> usize {
        self.shape.channels.stored()
    }

    /// Elements from one pixel to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The channels of a pixel.
    pub fn pixel(&self, position: usize) -> &'a [T] {
        assert!(position < self.shape.positions());
        // SAFETY: the position is inside the tensor, whose elements nobody writes now.
        unsafe { std::slice::from_raw_parts(self.pointer.add(position * self.stride), self.channels()) }
    }

    /// The first element: the value of a scalar.
    pub fn scalar(&self) -> T {
        self.pixel(0)[0]
    }

    /// All pixels as one slice, where they lie side by side.
    pub fn dense(&self) -> &'a [T] {
        assert_eq!(self.stride, self.channels(), "the operand is stored densely");
        // SAFETY: the elements lie side by side and nobody writes them now.
        unsafe { std::slice::from_raw_parts(self.pointer, self.shape.elements()) }
    }

    /// Everything from the first element to the last.
    pub fn span(&self) -> Span<'a, T> {
        let len = (self.shape.positions() - 1) * self.stride + self.channels();
        Span { pointer: self.pointer, len, life: PhantomData }
    }
}

/// An output, or the part of one with the pixels `positions()`.
pub struct Output<'a, T> {
    /// Pixel 0 of the whole tensor.
    pointer: *mut T,
    shape: &'a Shape,
    stride: usize,
    positions: Range<usize>,
}

// SAFETY: whoever holds an output alone may touch its pixels.
unsafe impl<T: Send> Send for Output<'_, T> {}

impl<'a, T: Real> Output<'a, T> {
    /// A tensor in the first elements of a workspace, whose pixels lie side by side.
    pub fn dense_in(workspace: &'a mut [T], shape: &'a Shape) -> Self {
        let pointer = workspace[..shape.elements()].as_mut_ptr();
        Output { pointer, shape, stride: shape.channels.stored(), positions: 0..shape.positions() }
    }

    pub fn shape(&self) -> &'a Shape {
        self.shape
    }

    /// Stored channels of a pixel.
    pub fn channels(&self) -> usize {
        self.shape.channels.stored()
    }

    /// Elements from one pixel to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The pixels that may be written, counted in the whole tensor.
    pub fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    /// The channels of a pixel, counted in the whole tensor.
    pub fn pixel(&mut self, position: usize) -> &mut [T] {
        assert!(self.positions.contains(&position));
        // SAFETY: the pixel is one of those that this output alone may touch.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(position * self.stride), self.channels()) }
    }

    /// All pixels as one slice, where they lie side by side.
    pub fn dense(&mut self) -> &mut [T] {
        assert_eq!(self.stride, self.channels(), "the operand is stored densely");
        let (start, count) = (self.positions.start * self.stride, self.positions.len() * self.stride);
        // SAFETY: the elements lie side by side and this output alone may touch them.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), count) }
    }

    /// The same output, to be written by another meanwhile.
    pub fn lend(&mut self) -> Output<'_, T> {
        Output { pointer: self.pointer, shape: self.shape, stride: self.stride, positions: self.positions() }
    }

    /// As [`Output::dense`], for as long as the output's memory is its own.
    pub fn into_dense(mut self) -> &'a mut [T] {
        let pixels = self.dense();
        // SAFETY: the slice is this output's, which is given up for it.
        unsafe { std::slice::from_raw_parts_mut(pixels.as_mut_ptr(), pixels.len()) }
    }

    /// Everything from this part's first element to its last.
    pub fn span(&mut self) -> SpanMut<'_, T> {
        let len = (self.positions.len() - 1) * self.stride + self.channels();
        // SAFETY: the first position is inside the tensor.
        let pointer = unsafe { self.pointer.add(self.positions.start * self.stride) };
        SpanMut { pointer, len, life: PhantomData }
    }

    /// Parts of `count` pixels each (the last may be shorter), in order, to be written in parallel.
    pub fn blocks(self, count: usize) -> impl IndexedParallelIterator<Item = Output<'a, T>> {
        let Output { pointer, shape, stride, positions } = self;
        let address = pointer as usize;
        let blocks = positions.len().div_ceil(count);
        (0..blocks).into_par_iter().map(move |block| {
            let start = positions.start + block * count;
            let part = start..(start + count).min(positions.end);
            Output { pointer: address as *mut T, shape, stride, positions: part }
        })
    }

    /// Calls `write` for every pixel, in parallel.
    pub fn for_each_pixel(self, write: impl Fn(usize, &mut [T]) + Sync) {
        let count = task_positions(self.channels());
        self.blocks(count).for_each(|mut block| {
            for position in block.positions() {
                write(position, block.pixel(position));
            }
        });
    }
}

/// Pixels of `channels` channels that make a parallel task.
pub fn task_positions(channels: usize) -> usize {
    TASK_ELEMENTS.div_ceil(channels)
}

/// Where the memories of a device start.
pub(super) struct Pointers<T> {
    pub arena: *mut T,
    pub state: [*mut T; 3],
    /// The parameters as those read them that read in [`Storage::Reduced`].
    pub copies: *mut T,
}

// SAFETY: a place alone; whoever makes operands from it answers for how they are used.
unsafe impl<T: Send> Sync for Pointers<T> {}

impl<T> Pointers<T> {
    fn at(&self, location: Location, storage: Storage) -> *mut T {
        let base = match location.memory {
            Memory::Arena => self.arena,
            Memory::State(Region::Parameters) if storage == Storage::Reduced => self.copies,
            Memory::State(region) => self.state[region as usize],
        };
        // SAFETY: the plan's locations lie inside the memories that were allocated for it.
        unsafe { base.add(location.start) }
    }
}

/// One run of an op: its operands.
pub struct Call<'a, T> {
    plan: &'a Plan,
    node: &'a PlannedNode,
    pointers: &'a Pointers<T>,
    /// Which outputs were handed out already (bit by bit), and whether the workspace was.
    taken: u32,
    workspace_taken: bool,
}

impl<'a, T: Real> Call<'a, T> {
    pub(super) fn new(plan: &'a Plan, node: &'a PlannedNode, pointers: &'a Pointers<T>) -> Self {
        Call { plan, node, pointers, taken: 0, workspace_taken: false }
    }

    fn ids(&self) -> (&'a [ValueId], &'a [ValueId]) {
        let node = &self.plan.graph.nodes()[self.node.index];
        (&node.inputs, &node.outputs)
    }

    fn raw_input(&self, index: usize) -> Input<'a, T> {
        let id = self.ids().0[index];
        let (location, shape) = (self.plan.location(id), self.plan.shape(id));
        Input { pointer: self.pointers.at(location, shape.storage), shape, stride: location.stride }
    }

    /// How many inputs there are.
    pub fn inputs(&self) -> usize {
        self.ids().0.len()
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.ids().1.len()
    }

    /// Input `index`, which no output overlaps.
    pub fn input(&self, index: usize) -> Input<'a, T> {
        let (inputs, outputs) = self.ids();
        let place = |id: ValueId| self.plan.location(id);
        let own = place(inputs[index]);
        let overlapped =
            outputs.iter().any(|&output| (place(output).memory, place(output).start) == (own.memory, own.start));
        assert!(!overlapped, "an input that is overwritten is read through its output");
        self.raw_input(index)
    }

    /// Pixels of output `index`: the rows of a matrix.
    pub fn rows(&self, index: usize) -> usize {
        self.plan.shape(self.ids().1[index]).positions()
    }

    /// Stored channels of output `index`.
    pub fn stored_channels(&self, index: usize) -> usize {
        self.plan.shape(self.ids().1[index]).channels.stored()
    }

    /// Output `index`; each can be had once.
    pub fn output(&mut self, index: usize) -> Output<'a, T> {
        assert_eq!(self.taken & (1 << index), 0, "an output is taken once");
        self.taken |= 1 << index;
        let id = self.ids().1[index];
        let (location, shape) = (self.plan.location(id), self.plan.shape(id));
        let pointer = self.pointers.at(location, shape.storage);
        Output { pointer, shape, stride: location.stride, positions: 0..shape.positions() }
    }

    /// The scratch memory that the op asked for; it can be had once. What stands in it is arbitrary.
    pub fn workspace(&mut self) -> &'a mut [T] {
        assert!(!self.workspace_taken, "the workspace is taken once");
        self.workspace_taken = true;
        let range = &self.node.workspace;
        // SAFETY: the plan gives the workspace to this node alone while it runs.
        unsafe { std::slice::from_raw_parts_mut(self.pointers.arena.add(range.start), range.len()) }
    }

    /// Output 0 from the first `N` inputs, element by element; it may share its storage with any of them.
    pub fn combine<const N: usize>(&mut self, function: impl Fn([T; N]) -> T + Sync) {
        let (inputs, output) = (std::array::from_fn(|index| self.raw_input(index)), self.output(0));
        rows(output, inputs, |out, inputs: [*const T; N], count| {
            // Through local memory, where the compiler sees that nothing is shared.
            let (mut values, mut results) = ([[T::ZERO; BLOCK]; N], [T::ZERO; BLOCK]);
            for start in (0..count).step_by(BLOCK) {
                let count = BLOCK.min(count - start);
                for (values, input) in values.iter_mut().zip(inputs) {
                    // SAFETY: `start + count` elements are there at each input; local memory is apart from them.
                    unsafe { input.add(start).copy_to_nonoverlapping(values.as_mut_ptr(), count) };
                }
                for (index, result) in results[..count].iter_mut().enumerate() {
                    *result = function(std::array::from_fn(|input| values[input][index]));
                }
                // SAFETY: so many elements are there at the output, written by this task alone.
                unsafe { out.add(start).copy_from_nonoverlapping(results.as_ptr(), count) };
            }
        });
    }
}

/// Elements that [`Call::combine`] takes at once: few enough to stay in the first-level cache.
const BLOCK: usize = 128;

/// Calls `row` for runs of elements of `output` and of the inputs, which have its shape: whole blocks where
/// all lie densely, pixels otherwise.
fn rows<T: Real, const N: usize>(
    output: Output<T>,
    inputs: [Input<T>; N],
    row: impl Fn(*mut T, [*const T; N], usize) + Sync,
) {
    let channels = output.channels();
    assert!(inputs.iter().all(|input| input.shape == output.shape), "element-wise operands have one shape");
    let dense = output.stride == channels && inputs.iter().all(|input| input.stride == channels);
    output.blocks(task_positions(channels)).for_each(|block| {
        let (step, count) =
            if dense { (block.positions.len(), block.positions.len() * channels) } else { (1, channels) };
        for position in block.positions().step_by(step) {
            // SAFETY: the position is inside all operands.
            unsafe {
                let out = block.pointer.add(position * block.stride);
                row(out, inputs.map(|input| input.pointer.add(position * input.stride)), count);
            }
        }
    });
}
