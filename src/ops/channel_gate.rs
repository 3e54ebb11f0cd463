//! CBAM's channel attention map: the sigmoid of the sum of the shared MLP's two outputs (equation 3).

use super::case::Case;
use super::sigmoid::sigmoid;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda, PixelGrid};
use crate::device::kernels::{CHANNEL_GATE_BACKWARD, CHANNEL_GATE_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Shape, Storage};
use crate::{Error, Result};

/// `out[n] = sigmoid(x[n] + x[batch + n])`: the first half of `x` comes from the means, the second from the maxima.
#[derive(Debug)]
pub struct ChannelGate;

impl Op for ChannelGate {
    fn name(&self) -> &'static str {
        "channel_gate"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let x = inputs[0];
        if !x.batch.is_multiple_of(2) || !x.channels.is_single() {
            return Err(Error::shape("channel_gate", format!("{x} is not two halves of one segment of channels")));
        }
        Ok(vec![Shape { batch: x.batch / 2, ..x.clone() }])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(graph.apply_one(ChannelGateGradient, &[context.of(0), context.outputs[0]])?)])
    }
}

/// `dx[n] = dx[batch + n] = dout[n] out[n] (1 - out[n])`; inputs `dout`, `out`.
#[derive(Debug)]
pub struct ChannelGateGradient;

impl Op for ChannelGateGradient {
    fn name(&self) -> &'static str {
        "channel_gate_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![Shape { batch: 2 * inputs[0].batch, ..inputs[0].clone() }])
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for ChannelGate {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let (half, count) = (x.shape().positions() / 2, x.shape().channels.count());
        call.output(0).for_each_pixel(|position, out| {
            let halves = x.pixel(position).iter().zip(x.pixel(half + position));
            out.iter_mut().zip(halves).for_each(|(out, (&mean, &maximum))| *out = sigmoid(mean + maximum));
            out[count..].fill(T::ZERO);
        });
    }
}

impl<T: Real> OnCpu<T> for ChannelGateGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, out) = (call.input(0), call.input(1));
        let half = out.shape().positions();
        call.output(0).for_each_pixel(|position, dx| {
            let values = dout.pixel(position % half).iter().zip(out.pixel(position % half));
            dx.iter_mut().zip(values).for_each(|(dx, (&dout, &out))| *dx = dout * out * (T::ONE - out));
        });
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for ChannelGate {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let (batch, channels) = (out.positions(), out.channels());
        launcher
            .kernel(CHANNEL_GATE_FORWARD)
            .pointers([out.pointer, x.pointer])
            .sizes([batch, channels, out.shape.channels.count(), out.stride, x.stride])
            .launch(PixelGrid::single(channels).over(batch, 1))
    }
}

impl OnCuda for ChannelGateGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dx, dout, out) = (launcher.output(0), launcher.input(0), launcher.input(1));
        let (batch, channels) = (out.positions(), out.channels());
        launcher
            .kernel(CHANNEL_GATE_BACKWARD)
            .pointers([dx.pointer, dout.pointer, out.pointer])
            .sizes([batch, channels, dx.stride, dout.stride, out.stride])
            .launch(PixelGrid::single(channels).over(batch, 1))
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let cases = [(1, 1), (2, 3), (3, 33)].into_iter().map(|(batch, channels)| {
        let shape = Shape::image(2 * batch, 1, 1, channels).stored_in(Storage::Full);
        Case::new("channel_gate", [shape], |graph, inputs| graph.apply(ChannelGate, inputs))
    });
    cases.collect()
}
