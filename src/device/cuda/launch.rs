//! What an op's CUDA code sees: its operands on the device, and how to launch a kernel on them.

use super::driver::{Description, Driver};
use super::grid::Grid;
use super::{MAX_ELEMENTS, span};
use crate::device::Precision;
use crate::device::kernels::{Element, Kernel, Kind, compiled_for};
use crate::graph::{Node, Region, ValueId};
use crate::ops::Op;
use crate::plan::{Location, Memory, Plan, PlannedNode};
use crate::tensor::{Shape, Storage};
use crate::{Error, Result};
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{LaunchConfig, PushKernelArg};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Dynamic shared memory that a block may have without asking, in bytes.
const SHARED_BYTES: usize = 48 << 10;

/// An op's CUDA code.
///
/// A launch is captured into a graph and replayed: it may depend on shapes, never on what the tensors hold. Sums
/// are taken in an order that depends on shapes alone, so that a step gives the same bits each time.
pub trait OnCuda {
    /// Elements of scratch memory that a run needs in the arena.
    fn workspace(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        let _ = (precision, inputs, outputs);
        0
    }

    /// An input that kernels read in another form, and what makes it so. It is applied as soon as the input is there; the op
    /// then gets its output for that input.
    fn prepared(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> Option<(usize, Arc<dyn Op>)> {
        let _ = (precision, inputs, outputs);
        None
    }

    /// Launches the kernels that compute the outputs.
    ///
    /// # Errors
    /// If the driver refuses a launch.
    fn launch(&self, launcher: &mut Launcher) -> Result<()>;
}

/// Where the memories of a device start.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub arena: u64,
    pub state: [u64; 3],
    /// The parameters' copies in what is stored in [`Storage::Reduced`].
    pub copies: u64,
    pub precision: Precision,
}

impl Addresses {
    /// The pointer to `count` elements.
    pub fn at(&self, location: Location, storage: Storage, count: usize, writable: bool) -> Pointer {
        let element = self.precision.element(storage);
        let base = match location.memory {
            Memory::Arena => self.arena,
            Memory::State(Region::Parameters) if element != Element::F32 => self.copies,
            Memory::State(region) => self.state[region as usize],
        };
        let address = base + (location.start * element.bytes()) as u64;
        Pointer { address, element, writable, bytes: count * element.bytes() }
    }

    /// The rounded copies of so many parameters, and the parameters.
    pub fn parameters(&self, count: usize) -> [Pointer; 2] {
        [Storage::Reduced, Storage::Full].map(|storage| {
            let location = Location { memory: Memory::State(Region::Parameters), start: 0, stride: 0 };
            self.at(location, storage, count, storage == Storage::Reduced)
        })
    }
}

/// A number on the device, and whether the op may write there.
#[derive(Debug, Clone, Copy)]
pub struct Pointer {
    address: u64,
    element: Element,
    writable: bool,
    /// Of all that it leads to.
    bytes: usize,
}

impl Pointer {
    /// The pointer to what lies from element `range.start` to `range.end`.
    pub fn part(self, range: Range<usize>) -> Self {
        let bytes = self.element.bytes();
        Pointer { address: self.address + (range.start * bytes) as u64, bytes: range.len() * bytes, ..self }
    }

    /// The same place, for elements of this kind that are no larger.
    pub fn holding(self, element: Element) -> Self {
        assert!(element.bytes() <= self.element.bytes(), "smaller elements have room");
        Pointer { element, ..self }
    }

    /// The same for a kernel that reads what lies there, and writes it.
    pub fn updated(self) -> Self {
        Pointer { bytes: 2 * self.bytes, ..self }
    }

    /// A pointer for a parameter that the kernel does not touch, which is of this element.
    pub fn unused(self, element: Element) -> Self {
        Pointer { element, bytes: 0, ..self }
    }

    /// The same for a kernel that touches no more than so many bytes of it.
    pub fn touching(self, bytes: usize) -> Self {
        Pointer { bytes: self.bytes.min(bytes), ..self }
    }

    /// Bytes of all that it leads to.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    pub(super) fn address(self) -> u64 {
        self.address
    }

    /// Whether 16 bytes can be read or written at once.
    pub fn is_aligned(self) -> bool {
        self.address.is_multiple_of(16)
    }
}

/// An input or output: element (p, c) lies at `pointer + p * stride + c`.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    pub pointer: Pointer,
    pub shape: &'a Shape,
    /// Elements from one pixel to the next.
    pub stride: usize,
}

impl Operand<'_> {
    /// Pixels of all samples.
    pub fn positions(&self) -> usize {
        self.shape.positions()
    }

    /// Stored channels of a pixel.
    pub fn channels(&self) -> usize {
        self.shape.channels.stored()
    }

    /// Whether the pixels lie side by side.
    pub fn is_dense(&self) -> bool {
        self.stride == self.channels()
    }

    /// What it is stored in.
    pub fn element(&self) -> Element {
        self.pointer.element
    }

    /// Elements of 16 bytes.
    pub fn wide(&self) -> usize {
        16 / self.element().bytes()
    }

    /// Whether each pixel starts at a multiple of 16 bytes and is a number of them long.
    pub fn is_aligned(&self) -> bool {
        let wide = self.wide();
        self.pointer.is_aligned() && self.stride.is_multiple_of(wide) && self.channels().is_multiple_of(wide)
    }
}

/// One run of an op: its operands, and the device.
pub struct Launcher<'a> {
    sink: Sink<'a>,
    plan: &'a Plan,
    node: &'a Node,
    planned: &'a PlannedNode,
    addresses: Addresses,
}

impl<'a> Launcher<'a> {
    pub(super) fn new(sink: Sink<'a>, plan: &'a Plan, planned: &'a PlannedNode, addresses: Addresses) -> Launcher<'a> {
        Launcher { sink, plan, node: &plan.graph.nodes()[planned.index], planned, addresses }
    }

    fn operand(&self, value: ValueId, writable: bool) -> Operand<'a> {
        let (location, shape) = (self.plan.location(value), self.plan.shape(value));
        debug_assert!(span(shape, location.stride) <= MAX_ELEMENTS, "sizes were checked when the step was loaded");
        Operand {
            pointer: self.addresses.at(location, shape.storage, shape.elements(), writable),
            shape,
            stride: location.stride,
        }
    }

    /// How many inputs there are.
    pub fn inputs(&self) -> usize {
        self.node.inputs.len()
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.node.outputs.len()
    }

    /// Input `index`. An output that updates it in place has the same address.
    pub fn input(&self, index: usize) -> Operand<'a> {
        self.operand(self.node.inputs[index], false)
    }

    /// Output `index`.
    pub fn output(&self, index: usize) -> Operand<'a> {
        self.operand(self.node.outputs[index], true)
    }

    /// The rounded copies of so many parameters, from the first on, where the device keeps such.
    pub fn parameter_copies(&self, count: usize) -> Option<Pointer> {
        self.precision().is_reduced().then(|| self.addresses.parameters(count)[0])
    }

    /// The scratch memory that the op asked for, at a multiple of 256 bytes. What stands in it is arbitrary.
    pub fn workspace(&self) -> Pointer {
        let start = self.planned.workspace.start;
        let location = Location { memory: Memory::Arena, start, stride: 0 };
        self.addresses.at(location, Storage::Full, self.planned.workspace.len(), true)
    }

    /// A tensor in the workspace, from this element on, whose pixels lie side by side; of another's shape. It takes
    /// [`scratch_elements`].
    pub fn scratch<'o>(&self, start: usize, like: Operand<'o>) -> Operand<'o> {
        let place = start..start + scratch_elements(self.precision(), like.shape);
        let pointer = self.workspace().part(place).holding(like.element());
        Operand { pointer, stride: like.channels(), ..like }
    }

    /// What numbers the device computes with.
    pub fn precision(&self) -> Precision {
        self.addresses.precision
    }

    /// Major and minor compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.sink.description().capability
    }

    /// Whether the device's warp groups multiply, and the build has code for it.
    pub fn has_warp_groups(&self) -> bool {
        self.sink.description().has_warp_groups()
    }

    /// Bytes of shared memory that a block may have.
    pub fn shared_memory(&self) -> usize {
        self.sink.description().shared_memory()
    }

    /// How many multiprocessors the device has. The order of a sum must not depend on it.
    pub fn multiprocessors(&self) -> usize {
        self.sink.description().multiprocessors
    }

    /// Begins a launch; the arguments follow in the order of the kernel's parameters.
    pub fn kernel(&mut self, kernel: Kernel) -> Launch<'_> {
        Launch::new(self.sink.reborrow(), self.node.op.name(), kernel)
    }
}

/// Elements of workspace that a tensor takes there: whole 16 bytes, so that what lies behind it is aligned.
pub fn scratch_elements(precision: Precision, shape: &Shape) -> usize {
    let bytes = shape.elements() * precision.element(shape.storage).bytes();
    bytes.next_multiple_of(16) / size_of::<f32>()
}

fn size_error(op: &'static str, size: usize) -> Error {
    Error::shape(op, format!("{size} is more than CUDA kernels count to: lower --batch or --size"))
}

/// A launch that was planned and not done.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedLaunch {
    pub op: &'static str,
    /// The kernel's name, with its element.
    pub kernel: String,
    pub grid: Grid,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
    /// Of all tensors that it reads or writes; of those that it updates, both.
    pub bytes: u64,
    /// Floating-point operations; those of an op of several launches are its first one's.
    pub operations: u64,
}

/// Where launches go: to a device, or for one of this description into a list.
pub(super) enum Sink<'a> {
    Driver(&'a mut Driver),
    List(&'a Description, &'a mut Vec<PlannedLaunch>),
}

impl Sink<'_> {
    fn description(&self) -> &Description {
        match self {
            Sink::Driver(driver) => &driver.description,
            Sink::List(description, _) => description,
        }
    }

    fn reborrow(&mut self) -> Sink<'_> {
        match self {
            Sink::Driver(driver) => Sink::Driver(driver),
            Sink::List(description, launches) => Sink::List(description, launches),
        }
    }
}

enum Argument {
    Pointer(Pointer),
    Size(usize),
    I32(i32),
    F32(f32),
}

impl Argument {
    /// Of a pointer: its address, whether it is written, and the bytes it leads to.
    fn tensor(&self) -> Option<(u64, bool, usize)> {
        match self {
            Argument::Pointer(pointer) => Some((pointer.address, pointer.writable, pointer.bytes)),
            _ => None,
        }
    }
}

/// A launch of a kernel, argument by argument.
pub struct Launch<'a> {
    sink: Sink<'a>,
    op: &'static str,
    kernel: Kernel,
    arguments: Vec<Argument>,
    shared: usize,
}

impl<'a> Launch<'a> {
    pub(super) fn new(sink: Sink<'a>, op: &'static str, kernel: Kernel) -> Self {
        Launch { sink, op, kernel, arguments: Vec::new(), shared: 0 }
    }

    /// Pointers, outputs first.
    pub fn pointers(mut self, pointers: impl IntoIterator<Item = Pointer>) -> Self {
        self.arguments.extend(pointers.into_iter().map(Argument::Pointer));
        self
    }

    /// Sizes, strides, counts: `int` parameters.
    pub fn sizes(mut self, sizes: impl IntoIterator<Item = usize>) -> Self {
        self.arguments.extend(sizes.into_iter().map(Argument::Size));
        self
    }

    /// A choice: an `int` parameter that is 0 or 1.
    pub fn flag(self, flag: bool) -> Self {
        self.sizes([usize::from(flag)])
    }

    /// `float` parameters.
    pub fn floats(mut self, values: impl IntoIterator<Item = f32>) -> Self {
        self.arguments.extend(values.into_iter().map(Argument::F32));
        self
    }

    /// The bytes of dynamic shared memory that a block has.
    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared: bytes, ..self }
    }

    /// Launches.
    ///
    /// # Errors
    /// If a size is over 2^31 - 1, or the driver refuses the launch.
    ///
    /// # Panics
    /// If the arguments are not the kernel's, which is a bug in the op.
    pub fn launch(mut self, grid: Grid) -> Result<()> {
        self.convert_sizes()?;
        let element = self.check_arguments();
        let blocks = self.dimensions(grid.blocks)?;
        let threads = self.dimensions(grid.threads)?;
        let driver: &mut Driver = match &mut self.sink {
            Sink::Driver(driver) => driver,
            Sink::List(_, launches) => {
                let kernel = self.kernel.symbol(compiled_for(self.kernel.file, element));
                // What is written over an input counts twice, and an input that is given twice, once.
                let tensors: BTreeSet<_> = self.arguments.iter().filter_map(Argument::tensor).collect();
                let bytes = tensors.iter().map(|&(_, _, bytes)| bytes as u64).sum();
                let (op, shared) = (self.op, self.shared);
                launches.push(PlannedLaunch { op, kernel, grid, shared, bytes, operations: 0 });
                return Ok(());
            }
        };
        let function = driver.function(self.kernel, element)?;
        let error = |driver: &Driver, error| driver.error(&format!("{}: {}", self.op, self.kernel.name), error);
        let shared = i32::try_from(self.shared).map_err(|_| size_error(self.op, self.shared))?;
        if self.shared > SHARED_BYTES {
            function
                .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
                .map_err(|e| error(driver, e))?;
        }
        let config = LaunchConfig { grid_dim: blocks, block_dim: threads, shared_mem_bytes: shared.unsigned_abs() };
        let mut builder = driver.stream_of(driver.branch).launch_builder(&function);
        for argument in &self.arguments {
            match argument {
                Argument::Pointer(pointer) => builder.arg(&pointer.address),
                Argument::I32(value) => builder.arg(value),
                Argument::F32(value) => builder.arg(value),
                Argument::Size(_) => unreachable!("sizes were converted above"),
            };
        }
        // SAFETY: the arguments are as many as the kernel's parameters and of their kinds. The pointers lead to the
        // operands of a planned node, which have room for what their shapes say, and which the op may write where the
        // kernel does; that the kernel keeps to them is what the op's author answers for and the tests look for.
        unsafe { builder.launch(config) }.map_err(|e| error(driver, e))?;
        driver.mark()
    }

    fn convert_sizes(&mut self) -> Result<()> {
        for index in 0..self.arguments.len() {
            if let Argument::Size(size) = self.arguments[index] {
                self.arguments[index] = Argument::I32(i32::try_from(size).map_err(|_| size_error(self.op, size))?);
            }
        }
        Ok(())
    }

    fn dimensions(&self, sizes: [usize; 3]) -> Result<(u32, u32, u32)> {
        // What every GPU allows: blocks along y and z are counted in 16 bits.
        let limits = [i32::MAX as usize, 65535, 65535];
        match sizes.into_iter().zip(limits).find(|&(size, limit)| size > limit) {
            Some((size, _)) => Err(size_error(self.op, size)),
            None => Ok((sizes[0] as u32, sizes[1] as u32, sizes[2] as u32)),
        }
    }

    /// Checks the arguments, and returns the element of those that are `Element` in the kernel.
    fn check_arguments(&self) -> Element {
        let Kernel { name, parameters, .. } = self.kernel;
        assert_eq!(self.arguments.len(), parameters.len(), "{}: arguments of {name}", self.op);
        let mut found = None;
        for (argument, parameter) in self.arguments.iter().zip(parameters) {
            let fits = match argument {
                Argument::Pointer(pointer) => match parameter.kind {
                    Kind::Input => pointer.element == Element::F32,
                    Kind::Output => pointer.element == Element::F32 && pointer.writable,
                    Kind::BitsInput => pointer.element == Element::Bits,
                    Kind::BitsOutput => pointer.element == Element::Bits && pointer.writable,
                    Kind::ElementInput | Kind::ElementOutput => {
                        let same = *found.get_or_insert(pointer.element) == pointer.element;
                        let number = pointer.element != Element::Bits;
                        same && number && (parameter.kind == Kind::ElementInput || pointer.writable)
                    }
                    _ => false,
                },
                Argument::I32(_) => parameter.kind == Kind::I32,
                Argument::F32(_) => parameter.kind == Kind::F32,
                Argument::Size(_) => false,
            };
            assert!(fits, "{}: argument {} of {name} is {:?}", self.op, parameter.name, parameter.kind);
        }
        found.unwrap_or(Element::F32)
    }
}
