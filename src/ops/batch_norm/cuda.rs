//! Batch norm on CUDA.

use super::pooled::normalise_and_pool;
use super::{
    BatchNorm, BatchNormGradient, BatchNormInference, BatchNormScale, BatchNormScaleGradient, BatchNormScaleInference,
    EPSILON,
};
use crate::Result;
use crate::device::Precision;
use crate::device::cuda::{Chunks, Grid, Launcher, OnCuda, Operand, PixelGrid};
use crate::device::kernels::pixels::THREADS;
use crate::device::kernels::{
    BATCH_NORM_BACKWARD, BATCH_NORM_BACKWARD_CHUNKS, BATCH_NORM_BACKWARD_PARAMETERS, BATCH_NORM_FORWARD,
    BATCH_NORM_FORWARD_CHUNKS, BATCH_NORM_FORWARD_STATISTICS, BATCH_NORM_INFERENCE, BATCH_NORM_SCALE_BACKWARD,
    BATCH_NORM_SCALE_INFERENCE, Element,
};
use crate::tensor::Shape;

/// Two numbers for each chunk and channel.
pub(super) fn chunk_elements(x: &Shape) -> usize {
    Chunks::most(x.positions(), 1) * 2 * x.channels.stored()
}

/// Chunks of the gradient's sums, at most: their kernel has registers for three blocks to a multiprocessor, and a second
/// round of blocks would be mostly empty.
const GRADIENT_CHUNKS: usize = 384;

/// Launches the kernels that take the statistics of input 0 and write them, outputs `first` to `first + 3`; and `scale` and
/// `shift`, if they are wanted.
fn launch_statistics(launcher: &mut Launcher, first: usize, scale_and_shift: Option<[Operand; 2]>) -> Result<()> {
    let [x, gamma, beta] = [0, 1, 2].map(|index| launcher.input(index));
    let statistics = [0, 1, 2, 3].map(|index| launcher.output(first + index));
    let (momentum, partial) = (launcher.input(5), launcher.workspace());
    let (pixels, channels) = (x.positions(), x.channels());
    let grid = PixelGrid::new(channels, [&x]);
    let chunks = grid.chunks(pixels, 1);
    launcher
        .kernel(BATCH_NORM_FORWARD_CHUNKS)
        .pointers([partial, x.pointer])
        .sizes([pixels, channels, x.stride, chunks.pixels, grid.width])
        .launch(grid.with_blocks(chunks.count, 1))?;
    let scaled = match scale_and_shift {
        Some([scale, shift]) => [scale, shift, gamma, beta].map(|operand| operand.pointer),
        None => [statistics[0], statistics[1], gamma, beta].map(|operand| operand.pointer.unused(Element::F32)),
    };
    launcher
        .kernel(BATCH_NORM_FORWARD_STATISTICS)
        .pointers(statistics.map(|operand| operand.pointer))
        .pointers(scaled)
        .pointers([partial, momentum.pointer])
        .sizes([pixels, channels, chunks.pixels, chunks.count])
        .flag(scale_and_shift.is_some())
        .floats([EPSILON as f32])
        .launch(PixelGrid::merging(channels).with_blocks(1, 1))
}

impl OnCuda for BatchNorm {
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[0])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [x, gamma, beta] = [0, 1, 2].map(|index| launcher.input(index));
        let [out, mean, inverse] = [0, 1, 2].map(|index| launcher.output(index));
        let (pixels, channels) = (x.positions(), x.channels());
        launch_statistics(launcher, 1, None)?;
        if self.pooled {
            let vectors = [gamma, beta, mean, inverse];
            return normalise_and_pool(launcher, Some(out), [launcher.output(5), x], vectors, None);
        }
        let grid = PixelGrid::new(channels, [&x, &out, &gamma, &beta, &mean, &inverse]);
        launcher
            .kernel(BATCH_NORM_FORWARD)
            .pointers([out, x, gamma, beta, mean, inverse].map(|operand| operand.pointer))
            .sizes([pixels, channels, out.stride, x.stride, grid.width])
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for BatchNormScale {
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[0])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let scale_and_shift = [0, 1].map(|index| launcher.output(index));
        launch_statistics(launcher, 2, Some(scale_and_shift))?;
        if !self.pooled {
            return Ok(());
        }
        let ([x, gamma, beta], [mean, inverse]) =
            ([0, 1, 2].map(|index| launcher.input(index)), [2, 3].map(|index| launcher.output(index)));
        normalise_and_pool(launcher, None, [launcher.output(6), x], [gamma, beta, mean, inverse], None)
    }
}

impl OnCuda for BatchNormScaleGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (outputs, inputs) =
            ([0, 1, 2, 3].map(|index| launcher.output(index)), [0, 1, 2, 3, 4].map(|index| launcher.input(index)));
        let channels = inputs[2].channels();
        launcher
            .kernel(BATCH_NORM_SCALE_BACKWARD)
            .pointers(outputs.iter().chain(&inputs).map(|operand| operand.pointer))
            .sizes([self.pixels, channels])
            .launch(Grid::over(channels, THREADS))
    }
}

impl OnCuda for BatchNormScaleInference {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let outputs = [0, 1].map(|index| launcher.output(index));
        let inputs = [0, 1, 2, 3].map(|index| launcher.input(index));
        let channels = inputs[0].channels();
        launcher
            .kernel(BATCH_NORM_SCALE_INFERENCE)
            .pointers(outputs.iter().chain(&inputs).map(|operand| operand.pointer))
            .sizes([channels])
            .floats([EPSILON as f32])
            .launch(Grid::over(channels, THREADS))
    }
}

/// Launches the kernel that makes the parameters' gradients of the chunks' sums in the workspace and, if there are any, of the
/// gradients of scale and shift.
pub(super) fn launch_parameters(
    launcher: &mut Launcher,
    [dgamma, dbeta]: [Operand; 2],
    [mean, inverse]: [Operand; 2],
    scale_and_shift: Option<[Operand; 2]>,
    chunks: Chunks,
) -> Result<()> {
    let (partial, channels) = (launcher.workspace(), dgamma.channels());
    let none = mean.pointer.unused(Element::F32);
    let scaled = scale_and_shift.map(|gradients| gradients.map(|gradient| gradient.pointer));
    launcher
        .kernel(BATCH_NORM_BACKWARD_PARAMETERS)
        .pointers([dgamma.pointer, dbeta.pointer, partial])
        .pointers([if scaled.is_some() { mean.pointer } else { none }, inverse.pointer])
        .pointers(scaled.unwrap_or([none; 2]))
        .sizes([channels, chunks.count])
        .flag(scaled.is_some())
        .launch(PixelGrid::merging(channels).with_blocks(1, 1))
}

impl OnCuda for BatchNormGradient {
    fn workspace(&self, _: Precision, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_elements(inputs[1])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dout, x, gamma, mean, inverse] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let ([dx, dgamma, dbeta], partial) = ([0, 1, 2].map(|index| launcher.output(index)), launcher.workspace());
        let (pixels, channels) = (x.positions(), x.channels());
        let grid = PixelGrid::new(channels, [&dx, &dgamma, &dbeta, &dout, &x, &gamma, &mean, &inverse]);
        let chunks = grid.chunks_up_to(Chunks::most(pixels, 1).min(GRADIENT_CHUNKS), pixels);
        launcher
            .kernel(BATCH_NORM_BACKWARD_CHUNKS)
            .pointers([partial, dout.pointer, x.pointer, mean.pointer])
            .sizes([pixels, channels, dout.stride, x.stride, chunks.pixels, grid.width])
            .launch(grid.with_blocks(chunks.count, 1))?;
        launch_parameters(launcher, [dgamma, dbeta], [mean, inverse], None, chunks)?;
        let vectors = [gamma, dgamma, dbeta, mean, inverse];
        let masked = [self.masked.start, self.masked.end.min(channels)];
        launcher
            .kernel(BATCH_NORM_BACKWARD)
            .pointers([dx, dout, x].iter().chain(&vectors).map(|operand| operand.pointer))
            .sizes([pixels, channels, dx.stride, dout.stride, x.stride, grid.width])
            .sizes(masked)
            .launch(grid.over(pixels, 1))
    }
}

impl OnCuda for BatchNormInference {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [x, gamma, beta, mean, variance] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let out = launcher.output(0);
        if self.pooled {
            let vectors = [gamma, beta, mean, variance];
            return normalise_and_pool(launcher, Some(out), [launcher.output(1), x], vectors, Some(EPSILON as f32));
        }
        launch_inference(launcher, [out, x], [gamma, beta, mean, variance])
    }
}

/// Normalises `x` by `gamma`, `beta`, running mean and running variance; `out` may be `x`.
pub(in crate::ops) fn launch_inference(
    launcher: &mut Launcher,
    [out, x]: [Operand; 2],
    [gamma, beta, mean, variance]: [Operand; 4],
) -> Result<()> {
    let (pixels, channels) = (x.positions(), x.channels());
    let grid = PixelGrid::new(channels, [&out, &x, &gamma, &beta, &mean, &variance]);
    launcher
        .kernel(BATCH_NORM_INFERENCE)
        .pointers([out, x, gamma, beta, mean, variance].map(|operand| operand.pointer))
        .sizes([pixels, channels, out.stride, x.stride, grid.width])
        .floats([EPSILON as f32])
        .launch(grid.over(pixels, 1))
}
