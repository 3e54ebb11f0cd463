//! The gradients of CBAM's tensor `x` and of its map of pixels. Pools and gate each add a term, and all terms take one
//! pass: `refined = x * map`, which pool and gate begin with, is never stored, and neither is its gradient
//! `dout * gate + dmean / pixels`, and `+ dmaximum` at its place.

use super::case::Case;
use super::channel_gate::ChannelGate;
use super::channel_pool::ChannelPool;
use super::convolution::Convolution;
use super::pixel_pool::PixelPool;
use super::relu::Relu;
use super::sigmoid::Sigmoid;
use super::window::Window;
use super::{Op, Rewritten};
use crate::device::cpu::operand::task_positions;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::device::cuda::{LaneGrid, Launcher, OnCuda, Operand, PixelGrid, Pointer};
use crate::device::kernels::{ATTENTION_BACKWARD, ATTENTION_BACKWARD_MAP, Element};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;
use std::any::Any;
use std::array;
use std::ops::Range;
use std::sync::Arc;

/// Whether `map` has a factor for each pixel of `x`.
pub(super) fn check_map(op: &'static str, x: &Shape, map: &Shape) -> Result<()> {
    if !x.channels.is_single() {
        return Err(Error::shape(op, "a concatenation has padding between its channels"));
    }
    if *map != x.with_channels(Channels::new(1)) {
        return Err(Error::shape(op, format!("{map} has no factor per pixel of {x}")));
    }
    Ok(())
}

/// Which of its inputs an op has. Input 0 is what several terms may need; each of the others is of one term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Present<const N: usize>([bool; N]);

impl<const N: usize> Present<N> {
    fn only(indices: &[usize]) -> Self {
        Present(array::from_fn(|index| indices.contains(&index)))
    }

    /// All inputs, of those that there are.
    fn all<V>(self, inputs: impl IntoIterator<Item = V>) -> [Option<V>; N] {
        let mut inputs = inputs.into_iter();
        self.0.map(|present| if present { inputs.next() } else { None })
    }

    /// The terms of both, if none is in both.
    fn joined(self, inputs: &[ValueId], other: Self, others: &[ValueId]) -> Option<(Self, Vec<ValueId>)> {
        let (mut own, other) = (self.all(inputs.iter().copied()), other.all(others.iter().copied()));
        for (index, (own, other)) in own.iter_mut().zip(other).enumerate() {
            if own.is_some() && other.is_some() && (index > 0 || *own != other) {
                return None;
            }
            *own = own.or(other);
        }
        Some((Present(own.map(|input| input.is_some())), own.into_iter().flatten().collect()))
    }
}

/// `dx`, the sum of up to three terms: of the gate, `map * gate * dout`; of the pool over pixels,
/// `map * (dmean / pixels + dmaximum at its place)`; of the pool over channels, the same of channels without a map. Zero
/// where the mask, if there is one, is not above 0.
///
/// Inputs, of which those of other terms are left out: `map`; the gate's `dout`, and the gate; the `dout` of the pool over
/// pixels, and its places; the `dout` of the pool over channels, and its winners; the mask.
#[derive(Debug, Clone)]
pub struct AttentionGradient {
    x: Shape,
    present: Present<8>,
}

const MASK: usize = 7;

impl AttentionGradient {
    pub(super) fn of_gate(x: &Shape) -> Self {
        AttentionGradient { x: x.clone(), present: Present::only(&[0, 1, 2]) }
    }

    pub(super) fn of_pixel_pool(x: &Shape) -> Self {
        AttentionGradient { x: x.clone(), present: Present::only(&[0, 3, 4]) }
    }

    pub(super) fn of_channel_pool(x: &Shape) -> Self {
        AttentionGradient { x: x.clone(), present: Present::only(&[5, 6]) }
    }

    fn is_masked(&self) -> bool {
        self.present.0[MASK]
    }
}

impl Op for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention_gradient"
    }

    fn outputs(&self, _: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![self.x.clone()])
    }

    fn joined(&self, inputs: &[ValueId], other: &dyn Op, others: &[ValueId]) -> Option<Rewritten> {
        let other: &dyn Any = other;
        let other: &Self = other.downcast_ref().filter(|other: &&Self| !other.is_masked() && !self.is_masked())?;
        let (present, inputs) = self.present.joined(inputs, other.present, others)?;
        Some((Arc::new(AttentionGradient { present, ..self.clone() }), inputs))
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        let (present, inputs) = self.present.joined(inputs, Present::only(&[MASK]), &[mask])?;
        Some((Arc::new(AttentionGradient { present, ..self.clone() }), inputs))
    }
}

/// `dmap`, of each pixel the sum over the channels of `x` times one or both terms: of the gate, `gate * dout`; of the pool
/// over pixels, `dmean / pixels + dmaximum at its place`.
///
/// Inputs, of which those of another term are left out: `x`; the gate's `dout`, and the gate; the pool's `dout`, and its
/// places.
#[derive(Debug)]
pub struct AttentionMapGradient {
    present: Present<5>,
}

impl AttentionMapGradient {
    pub(super) fn of_gate() -> Self {
        AttentionMapGradient { present: Present::only(&[0, 1, 2]) }
    }

    pub(super) fn of_pixel_pool() -> Self {
        AttentionMapGradient { present: Present::only(&[0, 3, 4]) }
    }
}

impl Op for AttentionMapGradient {
    fn name(&self) -> &'static str {
        "attention_map_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].with_channels(Channels::new(1))])
    }

    fn joined(&self, inputs: &[ValueId], other: &dyn Op, others: &[ValueId]) -> Option<Rewritten> {
        let other: &dyn Any = other;
        let other: &Self = other.downcast_ref()?;
        let (present, inputs) = self.present.joined(inputs, other.present, others)?;
        Some((Arc::new(AttentionMapGradient { present }), inputs))
    }
}

// ------------------------------------------------------------------ CPU

/// The gradient of `refined`: the terms of the gate and of the pool over pixels, each with its `dout`.
struct Refined<'a, T> {
    gate: Option<(Input<'a, T>, Input<'a, T>)>,
    pool: Option<(Input<'a, T>, Input<'a, T>)>,
    x: &'a Shape,
}

impl<T: Real> Refined<'_, T> {
    /// Writes the gradient of a pixel, but for the maxima.
    fn write(&self, position: usize, row: &mut [T]) {
        let sample = position / self.x.pixels();
        let scale = T::ONE / T::from_f64(self.x.pixels() as f64);
        let given = self.gate.map(|(dout, gate)| (dout.pixel(position), gate.pixel(sample)));
        match (given, self.pool.map(|(dout, _)| dout.pixel(sample))) {
            (Some((dout, gate)), Some(dmean)) => {
                let values = dout.iter().zip(gate).zip(dmean);
                let gradient = |((&dout, &gate), &dmean)| dout * gate + dmean * scale;
                row.iter_mut().zip(values).for_each(|(out, values)| *out = gradient(values));
            }
            (Some((dout, gate)), None) => {
                row.iter_mut().zip(dout.iter().zip(gate)).for_each(|(out, (&dout, &gate))| *out = dout * gate);
            }
            (None, Some(dmean)) => row.iter_mut().zip(dmean).for_each(|(out, &dmean)| *out = dmean * scale),
            (None, None) => row.fill(T::ZERO),
        }
    }

    /// Calls `give(position, channel, dmaximum)` for the maxima among some pixels.
    fn for_each_maximum(&self, positions: Range<usize>, mut give: impl FnMut(usize, usize, T)) {
        let Some((dout, places)) = self.pool else { return };
        let pixels = self.x.pixels();
        for sample in positions.start / pixels..positions.end.div_ceil(pixels) {
            let dmaxima = places.pixel(sample).iter().zip(dout.pixel(self.x.batch + sample));
            for (channel, (&place, &dmaximum)) in dmaxima.enumerate() {
                let position = sample * pixels + place.to_f64() as usize;
                if positions.contains(&position) {
                    give(position, channel, dmaximum);
                }
            }
        }
    }
}

impl<T: Real> OnCpu<T> for AttentionGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let inputs = (0..call.inputs()).map(|index| call.input(index));
        let [map, dout, gate, dpixels, places, dchannels, winners, mask] = self.present.all(inputs);
        let refined = Refined { gate: dout.zip(gate), pool: dpixels.zip(places), x: &self.x };
        let (channels, count) = (self.x.channels.stored(), self.x.channels.count());
        let share = T::ONE / T::from_f64(count as f64);
        let factor = |position: usize| map.map_or(T::ONE, |map| map.pixel(position)[0]);
        let is_open = |position: usize, channel: usize| mask.is_none_or(|mask| mask.pixel(position)[channel] > T::ZERO);
        call.output(0).blocks(task_positions(channels)).for_each(|mut block| {
            for position in block.positions() {
                let dx = block.pixel(position);
                refined.write(position, dx);
                let factor = factor(position);
                let dmean = dchannels.map_or(T::ZERO, |dout| dout.pixel(position)[0] * share);
                match mask {
                    Some(mask) => dx.iter_mut().zip(mask.pixel(position)).for_each(|(dx, &mask)| {
                        let sum = *dx * factor + dmean;
                        *dx = if mask > T::ZERO { sum } else { T::ZERO };
                    }),
                    None => dx.iter_mut().for_each(|dx| *dx = *dx * factor + dmean),
                }
                dx[count..].fill(T::ZERO);
                if let Some((dout, winners)) = dchannels.zip(winners) {
                    let winner = winners.pixel(position)[0].to_f64() as usize;
                    dx[winner] += if is_open(position, winner) { dout.pixel(position)[1] } else { T::ZERO };
                }
            }
            refined.for_each_maximum(block.positions(), |position, channel, dmaximum| {
                if channel < count && is_open(position, channel) {
                    block.pixel(position)[channel] += dmaximum * factor(position);
                }
            });
        });
    }
}

/// Partial sums of a pixel's channels, which the compiler makes vectors of.
const LANES: usize = 8;

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: T = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.into_iter().sum::<T>() + rest
}

impl<T: Real> OnCpu<T> for AttentionMapGradient {
    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let inputs = (0..call.inputs()).map(|index| call.input(index));
        let [_, dout, gate, dpixels, places] = self.present.all(inputs);
        let refined = Refined { gate: dout.zip(gate), pool: dpixels.zip(places), x: x.shape() };
        call.output(0).blocks(task_positions(x.channels())).for_each(|mut dmap| {
            cpu.with_scratch(x.channels(), |row| {
                for position in dmap.positions() {
                    refined.write(position, row);
                    dmap.pixel(position)[0] = dot(row, x.pixel(position));
                }
            });
            refined.for_each_maximum(dmap.positions(), |position, channel, dmaximum| {
                dmap.pixel(position)[0] += dmaximum * x.pixel(position)[channel];
            });
        });
    }
}

// ------------------------------------------------------------------ CUDA

/// The pointers to inputs that may be missing, and their strides, which are then 0.
fn arguments<const N: usize>(
    inputs: &[Option<Operand>; N],
    elements: [Element; N],
    any: Pointer,
) -> ([Pointer; N], [usize; N]) {
    let pointer = |index: usize| inputs[index].map_or(any.unused(elements[index]), |input| input.pointer);
    (array::from_fn(pointer), inputs.map(|input| input.map_or(0, |input| input.stride)))
}

impl OnCuda for AttentionGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let dx = launcher.output(0);
        let inputs = self.present.all((0..launcher.inputs()).map(|index| launcher.input(index)));
        let [_, dout, gate, dpixels, places, _, _, mask] = &inputs;
        let grid =
            PixelGrid::new(dx.channels(), [dout, gate, dpixels, places, mask].into_iter().flatten().chain([&dx]));
        let mut elements = [Element::F32; 8];
        [elements[1], elements[MASK]] = [dx.element(); 2];
        let (pointers, strides) = arguments(&inputs, elements, dx.pointer);
        let (batch, pixels) = (self.x.batch, self.x.pixels());
        launcher
            .kernel(ATTENTION_BACKWARD)
            .pointers([dx.pointer])
            .pointers(pointers)
            .sizes([pixels, self.x.channels.count(), dx.channels(), dx.stride])
            .sizes(strides)
            .sizes([grid.width])
            .launch(grid.over(pixels, batch))
    }
}

impl OnCuda for AttentionMapGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dmap, x) = (launcher.output(0), launcher.input(0));
        let inputs = self.present.all((0..launcher.inputs()).map(|index| launcher.input(index)));
        let grid = LaneGrid::new(x.channels(), inputs.iter().flatten());
        let elements = [x.element(), x.element(), Element::F32, Element::F32, Element::F32];
        let (pointers, strides) = arguments(&inputs, elements, x.pointer);
        let (batch, pixels) = (x.shape.batch, x.shape.pixels());
        launcher
            .kernel(ATTENTION_BACKWARD_MAP)
            .pointers([dmap.pointer])
            .pointers(pointers)
            .sizes([pixels, x.channels(), dmap.stride])
            .sizes(strides)
            .sizes([grid.width])
            .launch(grid.over(pixels, batch))
    }
}

// ------------------------------------------------------------------ cases

/// CBAM with few parameters: all terms of both gradients, with `x` behind a ReLU or read by another op, too.
pub fn cases() -> Vec<Case> {
    let sizes = [(1, 1, 1), (2, 3, 3), (3, 5, 33), (1, 420, 9)];
    let behind_relu = sizes.map(|size| (size, true)).into_iter().chain([((2, 3, 3), false), ((2, 3, 33), false)]);
    let cases = behind_relu.map(|((batch, height, channels), behind_relu)| {
        let x = Shape::image(batch, height, 3, channels);
        let spatial = Convolution::new(Window::same(1), 1);
        let weight = spatial.weight_shape(&Channels::new(2));
        let build = move |graph: &mut Graph, inputs: &[ValueId]| {
            let x = if behind_relu { graph.apply_one(Relu, &inputs[..1])? } else { inputs[0] };
            let pooled = graph.apply(ChannelPool, &[x])?[0];
            let logits = graph.apply_one(spatial.clone(), &[pooled, inputs[1]])?;
            let map = graph.apply_one(Sigmoid, &[logits])?;
            let pooled = graph.apply(PixelPool, &[x, map])?[0];
            let out = graph.apply(ChannelGate, &[x, map, pooled])?[0];
            let other = if behind_relu { None } else { Some(graph.apply_one(Relu, &[x])?) };
            Ok([out].into_iter().chain(other).collect())
        };
        Case::new("attention", [x, weight], build).distinct()
    });
    cases.collect()
}
