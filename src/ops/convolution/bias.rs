//! The gradient of a convolution's bias: of a plain convolution the sum over all pixels.

use super::cpu::tap_offset;
use super::cuda::WARP;
use super::special::MOST_CHANNELS;
use super::sums::Sums;
use crate::Result;
use crate::device::Precision;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Output, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda, Operand};
use crate::device::kernels::convolution::BIAS_THREADS;
use crate::device::kernels::convolution_one_channel::ONE_CHANNEL_THREADS;
use crate::device::kernels::{CONVOLUTION_BACKWARD_BIAS, CONVOLUTION_BACKWARD_BIAS_ALIGNED};
use crate::ops::Op;
use crate::tensor::Shape;
use rayon::prelude::*;
use std::ops::Range;

/// The gradient of a bias alone: the sum of `dout` over all pixels; or, of a bias for each tap of a transposed convolution,
/// over those that each tap meets.
#[derive(Debug)]
pub struct BiasGradient {
    /// The window, whose stride is its size.
    pub kernel: [usize; 3],
}

impl BiasGradient {
    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }
}

impl Op for BiasGradient {
    fn name(&self) -> &'static str {
        "convolution_bias_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![Shape::matrix(self.taps(), inputs[0].channels.clone())])
    }
}

// ------------------------------------------------------------------ CPU

/// Pixels that are summed apart and added in order.
const SUM_PIXELS: usize = 4096;

impl<T: Real> OnCpu<T> for BiasGradient {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        bias_sums(inputs[0], self.kernel)
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        sum_bias(call.input(0), self.kernel, call.workspace(), call.output(0));
    }
}

/// Elements of the sums of all chunks of windows.
pub(super) fn bias_sums(dout: &Shape, kernel: [usize; 3]) -> usize {
    let taps = kernel.iter().product::<usize>();
    (dout.positions() / taps).div_ceil(SUM_PIXELS) * taps * dout.channels.stored()
}

/// The sums of the pixels that each tap of a window meets, whose stride is its size.
pub(super) fn sum_bias<T: Real>(dout: Input<T>, kernel: [usize; 3], workspace: &mut [T], mut out: Output<T>) {
    let (channels, elements) = (dout.channels(), kernel.iter().product::<usize>() * dout.channels());
    let windows = dout.shape().positions() * channels / elements;
    let sums = &mut workspace[..bias_sums(dout.shape(), kernel)];
    sums.par_chunks_mut(elements).enumerate().for_each(|(chunk, sums)| {
        let windows = chunk * SUM_PIXELS..((chunk + 1) * SUM_PIXELS).min(windows);
        for (tap, sums) in sums.chunks_exact_mut(channels).enumerate() {
            sum_pixels(dout, kernel, tap, windows.clone(), sums);
        }
    });
    let out = out.dense();
    out.fill(T::ZERO);
    for sums in sums.chunks_exact(elements) {
        out.iter_mut().zip(sums).for_each(|(out, &sum)| *out += sum);
    }
}

/// The pixel that a tap of a window meets.
fn window_pixel(large: &Shape, kernel: [usize; 3], window: usize, tap: usize) -> usize {
    let small: [usize; 3] = std::array::from_fn(|axis| large.spatial[axis] / kernel[axis]);
    let [sample, y, x] = [window / small[2] / small[1], window / small[2] % small[1], window % small[2]];
    let [sample, z] = [sample / small[0], sample % small[0]];
    let [tap_z, tap_y, tap_x] = tap_offset(kernel, tap);
    let plane = (sample * small[0] + z) * kernel[0] + tap_z;
    ((plane * small[1] + y) * kernel[1] + tap_y) * large.spatial[2] + x * kernel[2] + tap_x
}

/// The sum of the pixels that a tap of some windows meets, channel by channel; runs of them are summed apart, which rounds
/// less.
fn sum_pixels<T: Real>(x: Input<T>, kernel: [usize; 3], tap: usize, windows: Range<usize>, sums: &mut [T]) {
    const RUN: usize = 64;
    const LANES: usize = 32;
    let plain = kernel == [1; 3];
    sums.fill(T::ZERO);
    for first in windows.clone().step_by(RUN) {
        for start in (0..sums.len()).step_by(LANES) {
            let count = LANES.min(sums.len() - start);
            let mut run = [T::ZERO; LANES];
            for window in first..(first + RUN).min(windows.end) {
                let position = if plain { window } else { window_pixel(x.shape(), kernel, window, tap) };
                let pixel = &x.pixel(position)[start..start + count];
                run.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += value);
            }
            sums[start..].iter_mut().zip(&run[..count]).for_each(|(sum, &value)| *sum += value);
        }
    }
}

// ------------------------------------------------------------------ CUDA

/// Windows of a part of the bias gradient at least, and parts at most.
const BIAS_PART_PIXELS: usize = 32;
const BIAS_PARTS: usize = 512;

/// How a bias gradient's windows are divided, of a plain convolution pixels.
struct BiasDivision {
    /// The small image: a window for each pixel.
    size: [usize; 3],
    windows: usize,
    part: usize,
    parts: usize,
}

impl BiasDivision {
    fn new(dout: &Shape, kernel: [usize; 3]) -> Self {
        let size = std::array::from_fn(|axis| dout.spatial[axis] / kernel[axis]);
        let windows = dout.batch * size.iter().product::<usize>();
        let part = windows.div_ceil(BIAS_PARTS).max(BIAS_PART_PIXELS);
        BiasDivision { size, windows, part, parts: windows.div_ceil(part) }
    }
}

/// Elements of all parts of the bias gradient.
pub(super) fn bias_workspace(dout: &Shape, kernel: [usize; 3]) -> usize {
    let BiasDivision { parts, .. } = BiasDivision::new(dout, kernel);
    if parts == 1 { 0 } else { parts * kernel.iter().product::<usize>() * dout.channels.stored() }
}

pub(super) fn launch_bias(launcher: &mut Launcher, dbias: Operand, dout: Operand, kernel: [usize; 3]) -> Result<()> {
    let BiasDivision { size, windows, part, parts } = BiasDivision::new(dout.shape, kernel);
    let taps = kernel.iter().product();
    let gradients = [dbias];
    let sums = Sums::new(launcher, &gradients, parts);
    let (code, grid) = if dout.is_aligned() && dout.channels() <= MOST_CHANNELS {
        (CONVOLUTION_BACKWARD_BIAS_ALIGNED, Grid::new([parts, taps, 1], ONE_CHANNEL_THREADS))
    } else {
        (CONVOLUTION_BACKWARD_BIAS, Grid::new([dout.channels().div_ceil(WARP), parts, taps], BIAS_THREADS))
    };
    launcher
        .kernel(code)
        .pointers([sums.parts(0), dout.pointer])
        .sizes([windows])
        .sizes(size)
        .sizes(kernel)
        .sizes([dout.channels(), dout.stride, part])
        .launch(grid)?;
    sums.launch(launcher)
}

impl OnCuda for BiasGradient {
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        bias_workspace(inputs[0], self.kernel)
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (dbias, dout) = (launcher.output(0), launcher.input(0));
        launch_bias(launcher, dbias, dout, self.kernel)
    }
}
