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
        Present(std::array::from_fn(|index| indices.contains(&index)))
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
    /// Writes the gradient of a pixel.
    fn write(&self, position: usize, row: &mut [T]) {
        let pixels = self.x.pixels();
        let (sample, pixel) = (position / pixels, T::from_f64((position % pixels) as f64));
        match self.gate {
            Some((dout, gate)) => {
                let values = dout.pixel(position).iter().zip(gate.pixel(sample));
                row.iter_mut().zip(values).for_each(|(out, (&dout, &gate))| *out = dout * gate);
            }
            None => row.fill(T::ZERO),
        }
        if let Some((dout, places)) = self.pool {
            let scale = T::ONE / T::from_f64(pixels as f64);
            let values = dout.pixel(sample).iter().zip(dout.pixel(self.x.batch + sample)).zip(places.pixel(sample));
            for (out, ((&dmean, &dmaximum), &place)) in row.iter_mut().zip(values) {
                *out += dmean * scale + if place == pixel { dmaximum } else { T::ZERO };
            }
        }
    }
}

impl<T: Real> OnCpu<T> for AttentionGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let inputs = (0..call.inputs()).map(|index| call.input(index));
        let [map, dout, gate, dpixels, places, dchannels, winners, mask] = self.present.all(inputs);
        let refined = Refined { gate: dout.zip(gate), pool: dpixels.zip(places), x: &self.x };
        let count = self.x.channels.count();
        let share = T::ONE / T::from_f64(count as f64);
        call.output(0).for_each_pixel(|position, dx| {
            match map {
                Some(map) => {
                    refined.write(position, dx);
                    let factor = map.pixel(position)[0];
                    dx.iter_mut().for_each(|dx| *dx = *dx * factor);
                }
                None => dx.fill(T::ZERO),
            }
            if let Some((dout, winners)) = dchannels.zip(winners) {
                let (dmean, dmaximum) = (dout.pixel(position)[0] * share, dout.pixel(position)[1]);
                dx[..count].iter_mut().for_each(|dx| *dx += dmean);
                dx[winners.pixel(position)[0].to_f64() as usize] += dmaximum;
            }
            if let Some(mask) = mask {
                let values = dx.iter_mut().zip(mask.pixel(position));
                values.for_each(|(dx, &mask)| *dx = if mask > T::ZERO { *dx } else { T::ZERO });
            }
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
        });
    }
}

// ------------------------------------------------------------------ CUDA

/// The pointer and the stride of an input that may be missing: its stride is then 0.
fn pointer_and_stride(operand: Option<Operand>, missing: Pointer) -> (Pointer, usize) {
    operand.map_or((missing, 0), |operand| (operand.pointer, operand.stride))
}

impl OnCuda for AttentionGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let dx = launcher.output(0);
        let inputs = self.present.all((0..launcher.inputs()).map(|index| launcher.input(index)));
        let [_, dout, gate, dpixels, places, _, _, mask] = &inputs;
        let grid =
            PixelGrid::new(dx.channels(), [dout, gate, dpixels, places, mask].into_iter().flatten().chain([&dx]));
        let [like_dx, float] = [dx.element(), Element::F32].map(|element| dx.pointer.unused(element));
        let missing = [float, like_dx, float, float, float, float, float, like_dx];
        let inputs: Vec<_> = inputs.into_iter().zip(missing).map(|(input, it)| pointer_and_stride(input, it)).collect();
        let (batch, pixels) = (self.x.batch, self.x.pixels());
        launcher
            .kernel(ATTENTION_BACKWARD)
            .pointers([dx.pointer])
            .pointers(inputs.iter().map(|&(pointer, _)| pointer))
            .sizes([pixels, self.x.channels.count(), dx.channels(), dx.stride])
            .sizes(inputs.iter().map(|&(_, stride)| stride))
            .sizes([grid.width])
            .launch(grid.over(pixels, batch))
    }
}

impl OnCuda for AttentionMapGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dmap, x) = (launcher.output(0), launcher.input(0));
        let inputs = self.present.all((0..launcher.inputs()).map(|index| launcher.input(index)));
        let grid = LaneGrid::new(x.channels(), inputs.iter().flatten());
        let [like_x, float] = [x.element(), Element::F32].map(|element| x.pointer.unused(element));
        let missing = [like_x, like_x, float, float, float];
        let inputs: Vec<_> = inputs.into_iter().zip(missing).map(|(input, it)| pointer_and_stride(input, it)).collect();
        let (batch, pixels) = (x.shape.batch, x.shape.pixels());
        launcher
            .kernel(ATTENTION_BACKWARD_MAP)
            .pointers([dmap.pointer])
            .pointers(inputs.iter().map(|&(pointer, _)| pointer))
            .sizes([pixels, x.channels(), dmap.stride])
            .sizes(inputs.iter().map(|&(_, stride)| stride))
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
