//! What a GPU would store in 16 bits, on the CPU: sums are taken in f32, as tensor cores take them, and what they come to
//! is rounded where a GPU keeps it in bf16 or fp16. A reference for runs on a GPU, which saves neither time nor memory.

use super::{Call, Cpu, CpuDevice, Real};
use crate::device::Precision;
use crate::device::kernels::Element;
use crate::plan::{Plan, shapes};
use crate::tensor::Storage;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Values that are rounded together.
const BLOCK: usize = 64;
/// Values of a task.
const TASK: usize = 1 << 14;

impl CpuDevice<f32> {
    /// This device, which from now on rounds as a GPU that computes in `precision`.
    pub fn rounding(mut self, precision: Precision) -> Self {
        self.cpu.precision = precision;
        self
    }
}

impl<T: Real> Cpu<T> {
    /// Rounds what a GPU would store in [`Storage::Reduced`] to the nearest that it can hold, ties to even. What
    /// `saturates` is no more than the largest of fp16; see [`crate::ops::Op::saturates`].
    pub fn round(&self, values: &mut [T], saturates: bool) {
        let element = self.precision.element(Storage::Reduced);
        if element == Element::F32 {
            return;
        }
        assert_eq!(T::PRECISION, Precision::F32, "only a device of f32 rounds");
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        match element {
            Element::F32 | Element::Bits => {}
            Element::Bf16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
            Element::F16 => {
                let limit = if saturates { f16::MAX.to_f32() } else { f32::INFINITY };
                round_to_fp16(values, limit);
            }
        }
    }

    /// Rounds what an op wrote. `saturates`: output 0.
    pub(super) fn round_outputs(&self, mut call: Call<T>, saturates: bool) {
        for index in 0..call.outputs() {
            let output = call.output(index);
            if output.shape().storage != Storage::Reduced {
                continue;
            }
            let (channels, saturates) = (output.channels(), saturates && index == 0);
            let dense = output.stride() == channels;
            output.blocks(TASK.div_ceil(channels)).for_each(|mut block| match dense {
                true => self.round(block.dense(), saturates),
                false => block.positions().for_each(|position| self.round(block.pixel(position), saturates)),
            });
        }
    }

    /// Copies the parameters, rounded.
    pub(super) fn copy_rounded(&self, parameters: &[T], copies: &mut [T]) {
        self.threads.install(|| {
            let tasks = copies.par_chunks_mut(TASK).zip(parameters.par_chunks(TASK));
            tasks.for_each(|(copies, parameters)| {
                copies.copy_from_slice(parameters);
                self.round(copies, false);
            });
        });
    }
}

fn round_to_fp16(values: &mut [f32], limit: f32) {
    let mut halves = [f16::ZERO; BLOCK];
    for values in values.chunks_mut(BLOCK) {
        let halves = &mut halves[..values.len()];
        values.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
        // Together: one by one, each would ask anew what the processor knows.
        halves.convert_from_f32_slice(values);
        halves.convert_to_f32_slice(values);
    }
}

/// Of each node of a plan, whether its output 0 saturates.
pub(super) fn saturating(plan: &Plan) -> Vec<bool> {
    let nodes = plan.nodes.iter().map(|node| {
        let (inputs, outputs) = shapes(&plan.graph, node.index);
        plan.graph.nodes()[node.index].op.saturates(&inputs, &outputs)
    });
    nodes.collect()
}
