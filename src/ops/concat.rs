//! Concatenation of channels. It moves nothing: its parts are produced in their slices of the result.

use super::case::Case;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{CONCAT_COPY, CONCAT_COPY_FROM_FULL, CONCAT_COPY_TO_FULL, Element};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};

/// The tensor whose channels are those of all inputs, in order. Applied by [`Graph::concat`].
#[derive(Debug)]
pub struct Concat;

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if let Some(other) = inputs.iter().find(|s| (s.batch, s.spatial) != (inputs[0].batch, inputs[0].spatial)) {
            return Err(Error::shape("concat", format!("{other} cannot be put beside {}", inputs[0])));
        }
        Ok(vec![inputs[0].with_channels(Channels::concat(inputs.iter().map(|shape| &shape.channels)))])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let mut channel = 0;
        let slices = context.inputs.iter().map(|&input| {
            let shape = graph.shape(input).clone();
            let start = channel;
            channel += shape.channels.stored();
            Some(graph.slice(context.of(0), start, shape))
        });
        Ok(slices.collect())
    }

    fn is_free(&self) -> bool {
        true
    }
}

/// Some channels of a tensor, where they are. Applied by [`Concat`]'s gradient.
#[derive(Debug)]
pub struct Slice;

impl Op for Slice {
    fn name(&self) -> &'static str {
        "concat_slice"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }

    fn is_free(&self) -> bool {
        true
    }
}

/// The same channels stored with other padding, or in another place.
#[derive(Debug)]
pub struct Copy {
    channels: Channels,
}

impl Copy {
    /// A copy whose channels are stored like `channels`, which are as many.
    pub fn to(channels: Channels) -> Self {
        Copy { channels }
    }
}

impl Op for Copy {
    fn name(&self) -> &'static str {
        "concat_copy"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        assert_eq!(inputs[0].channels.count(), self.channels.count(), "a copy keeps the number of channels");
        Ok(vec![inputs[0].with_channels(self.channels.clone())])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let channels = &graph.shape(context.inputs[0]).channels;
        if *channels == self.channels {
            return Ok(vec![Some(context.of(0))]);
        }
        let back = Copy::to(channels.clone());
        Ok(vec![Some(graph.apply_one(back, &[context.of(0)])?)])
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for Concat {
    fn run(&self, _: &Cpu<T>, _: Call<T>) {}
}

impl<T: Real> OnCpu<T> for Slice {
    fn run(&self, _: &Cpu<T>, _: Call<T>) {}
}

impl<T: Real> OnCpu<T> for Copy {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        // The layouts are equal, or both are one segment that starts at channel 0.
        let x = call.input(0);
        let common = x.channels().min(call.stored_channels(0));
        call.output(0).for_each_pixel(|position, out| {
            out[..common].copy_from_slice(&x.pixel(position)[..common]);
            out[common..].fill(T::ZERO);
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Concat {
    fn launch(&self, _: &mut Launcher) -> Result<()> {
        Ok(())
    }
}

impl OnCuda for Slice {
    fn launch(&self, _: &mut Launcher) -> Result<()> {
        Ok(())
    }
}

impl OnCuda for Copy {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let (pixels, channels) = (out.positions(), out.channels());
        let pointers = [out.pointer, x.pointer];
        if out.element() == x.element() {
            let grid = PixelGrid::new(channels, [&out, &x]);
            let launch = launcher.kernel(CONCAT_COPY).pointers(pointers);
            let launch = launch.sizes([pixels, channels, x.channels(), out.stride, x.stride, grid.width]);
            return launch.launch(grid.over(pixels, 1));
        }
        if out.element() == Element::F32 {
            let launch = launcher.kernel(CONCAT_COPY_TO_FULL).pointers(pointers);
            let launch = launch.sizes([pixels, channels, out.stride, x.stride]);
            return launch.launch(PixelGrid::single(channels).over(pixels, 1));
        }
        let grid = PixelGrid::new(channels, [&out]);
        let launch = launcher.kernel(CONCAT_COPY_FROM_FULL).pointers(pointers);
        launch.sizes([pixels, channels, x.channels(), out.stride, x.stride]).launch(grid.over(pixels, 1))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let parts = |counts: [usize; 3]| counts.map(|channels| Shape::image(2, 2, 3, channels));
    let mut cases = Vec::new();
    for counts in [[1, 3, 33], [8, 16, 8]] {
        // The inputs are copied into their slices; the sums are produced in theirs.
        cases.push(Case::new("concat", parts(counts), |graph, inputs| Ok(vec![graph.concat(inputs)?])));
        cases.push(Case::new("concat", parts(counts), |graph, inputs| {
            let sums = inputs.iter().map(|&x| graph.apply_one(super::add::Add::default(), &[x, x]));
            let sums = sums.collect::<Result<Vec<_>>>()?;
            let inner = graph.concat(&sums[..2])?;
            Ok(vec![graph.concat(&[inner, sums[2], sums[0]])?])
        }));
    }
    cases
}
