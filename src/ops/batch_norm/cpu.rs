//! Batch norm on the CPU.

use super::pooled::{write_maxima, write_with_maxima};
use super::{
    BatchNorm, BatchNormGradient, BatchNormInference, BatchNormScale, BatchNormScaleGradient, BatchNormScaleInference,
    EPSILON,
};
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Real};
use crate::tensor::Shape;
use rayon::prelude::*;
use std::ops::Range;

/// Pixels whose statistics are taken together, in the second-level cache; chunks are merged in order.
const CHUNK_PIXELS: usize = 512;

fn chunk(index: usize, shape: &Shape) -> Range<usize> {
    index * CHUNK_PIXELS..((index + 1) * CHUNK_PIXELS).min(shape.positions())
}

/// Two sums for each chunk and channel.
fn chunk_sums(x: &Shape) -> usize {
    2 * x.positions().div_ceil(CHUNK_PIXELS) * x.channels.stored()
}

/// The mean and the sum of squared deviations of each channel, chunk by chunk, then merged.
fn moments<T: Real>(x: Input<T>, workspace: &mut [T], mean: &mut [T], squares: &mut [T]) {
    let channels = x.channels();
    workspace.par_chunks_mut(2 * channels).enumerate().for_each(|(index, sums)| {
        let positions = chunk(index, x.shape());
        let scale = T::ONE / T::from_f64(positions.len() as f64);
        let (mean, squares) = sums.split_at_mut(channels);
        mean.fill(T::ZERO);
        squares.fill(T::ZERO);
        for position in positions.clone() {
            mean.iter_mut().zip(x.pixel(position)).for_each(|(sum, &x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum = *sum * scale);
        for position in positions {
            for ((square, &mean), &x) in squares.iter_mut().zip(&*mean).zip(x.pixel(position)) {
                *square += (x - mean) * (x - mean);
            }
        }
    });
    for channel in 0..channels {
        // Chan, Golub and LeVeque's merge of two sets' means and squared deviations.
        let (mut count, mut m, mut s) = (0.0, 0.0, 0.0);
        for (index, sums) in workspace.chunks_exact(2 * channels).enumerate() {
            let more = chunk(index, x.shape()).len() as f64;
            let delta = sums[channel].to_f64() - m;
            m += delta * more / (count + more);
            s += sums[channels + channel].to_f64() + delta * delta * count * more / (count + more);
            count += more;
        }
        (mean[channel], squares[channel]) = (T::from_f64(m), T::from_f64(s));
    }
}

/// Takes the batch's mean and `1 / sqrt(variance + epsilon)` of input 0, outputs `first` and the next, and moves the running
/// statistics, the two outputs behind them.
fn statistics<'a, T: Real>(call: &mut Call<'a, T>, first: usize) -> [&'a [T]; 2] {
    let (x, momentum) = (call.input(0), call.input(5).scalar());
    let [mean, inverse, running_mean, running_variance] =
        [0, 1, 2, 3].map(|index| call.output(first + index).into_dense());
    moments(x, call.workspace(), mean, inverse);
    let count = x.shape().positions() as f64;
    for channel in 0..x.channels() {
        let squares = inverse[channel].to_f64();
        let towards = |running: &mut T, value: f64| {
            *running = *running + momentum * (T::from_f64(value) - *running);
        };
        towards(&mut running_mean[channel], mean[channel].to_f64());
        towards(&mut running_variance[channel], squares / (count - 1.0).max(1.0));
        inverse[channel] = T::from_f64(1.0 / (squares / count + EPSILON).sqrt());
    }
    [mean, inverse]
}

impl<T: Real> OnCpu<T> for BatchNorm {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_sums(inputs[0])
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (x, gamma, beta) = (call.input(0), call.input(1).dense(), call.input(2).dense());
        let [mean, inverse] = statistics(&mut call, 1);
        let maxima = self.pooled.then(|| call.output(5));
        let normalise = normalisation([mean, inverse, gamma, beta]);
        write_with_maxima(call.output(0), maxima, |position, out| normalise(x.pixel(position), out));
    }
}

/// What normalises a pixel by the batch's statistics, and writes it to another.
fn normalisation<'a, T: Real>(
    [mean, inverse, gamma, beta]: [&'a [T]; 4],
) -> impl Fn(&[T], &mut [T]) + Sync + use<'a, T> {
    move |x, out| {
        let statistics = mean.iter().zip(inverse).zip(gamma.iter().zip(beta));
        for ((out, &x), ((&mean, &inverse), (&gamma, &beta))) in out.iter_mut().zip(x).zip(statistics) {
            *out = (x - mean) * (inverse * gamma) + beta;
        }
    }
}

impl<T: Real> OnCpu<T> for BatchNormScale {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_sums(inputs[0])
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (gamma, beta) = (call.input(1).dense(), call.input(2).dense());
        let [mean, inverse] = statistics(&mut call, 2);
        let [scale, shift] = [0, 1].map(|index| call.output(index).into_dense());
        for channel in 0..scale.len() {
            scale[channel] = gamma[channel] * inverse[channel];
            shift[channel] = beta[channel] - mean[channel] * scale[channel];
        }
        if self.pooled {
            let x = call.input(0);
            write_maxima(cpu, x, call.output(6), normalisation([mean, inverse, gamma, beta]));
        }
    }
}

impl<T: Real> OnCpu<T> for BatchNormScaleGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let [dscale, dshift, gamma, mean, inverse] = [0, 1, 2, 3, 4].map(|index| call.input(index).dense());
        let [dgamma, dbeta, slope, offset] = [0, 1, 2, 3].map(|index| call.output(index).into_dense());
        let count = T::from_f64(self.pixels as f64);
        for channel in 0..gamma.len() {
            dgamma[channel] = (dscale[channel] - mean[channel] * dshift[channel]) * inverse[channel];
            dbeta[channel] = dshift[channel];
            let factor = -gamma[channel] * inverse[channel] / count;
            slope[channel] = factor * inverse[channel] * dgamma[channel];
            offset[channel] = factor * dshift[channel] - slope[channel] * mean[channel];
        }
    }
}

/// Adds a pixel's `dout` and `dout * (x - mean)`, channel by channel.
pub(super) fn add_pixel<T: Real>([dbeta, dgamma]: [&mut [T]; 2], dout: &[T], x: &[T], mean: &[T]) {
    let pixel = dout.iter().zip(x).zip(mean);
    for ((dbeta, dgamma), ((&dout, &x), &mean)) in dbeta.iter_mut().zip(dgamma).zip(pixel) {
        *dbeta += dout;
        *dgamma += dout * (x - mean);
    }
}

/// What makes `dx` of `dout` and `x`, channel by channel:
/// `dx = gamma / deviation * (dout - mean(dout) - x_hat mean(dout x_hat)) = gamma inverse dout + slope (x - mean) + offset`.
pub(super) struct Slopes<'a, T> {
    gamma: &'a [T],
    mean: &'a [T],
    inverse: &'a [T],
    slopes: &'a [T],
    offsets: &'a [T],
}

impl<'a, T: Real> Slopes<'a, T> {
    /// Makes `dgamma` and `dbeta` of the sums of all chunks, in `workspace`, and of the gradients of scale and shift, if there
    /// are any; keeps what follows from them in the sums' place.
    pub fn new(
        workspace: &'a mut [T],
        [gamma, mean, inverse]: [&'a [T]; 3],
        [dgamma, dbeta]: [&mut [T]; 2],
        scale_and_shift: Option<[&[T]; 2]>,
        positions: usize,
    ) -> Self {
        let (channels, count) = (gamma.len(), T::from_f64(positions as f64));
        for channel in 0..channels {
            let sum = |offset: usize| {
                workspace.chunks_exact(2 * channels).map(|sums| sums[offset + channel].to_f64()).sum::<f64>()
            };
            let [dscale, dshift] =
                scale_and_shift.map_or([0.0; 2], |gradients| gradients.map(|gradient| gradient[channel].to_f64()));
            dbeta[channel] = T::from_f64(sum(0) + dshift);
            let deviations = sum(channels) + dscale - mean[channel].to_f64() * dshift;
            dgamma[channel] = T::from_f64(deviations * inverse[channel].to_f64());
        }
        let (slopes, offsets) = workspace[..2 * channels].split_at_mut(channels);
        for channel in 0..channels {
            let factor = gamma[channel] * inverse[channel];
            slopes[channel] = -factor * inverse[channel] * dgamma[channel] / count;
            offsets[channel] = -factor * dbeta[channel] / count;
        }
        Slopes { gamma, mean, inverse, slopes, offsets }
    }

    pub fn apply(&self, dout: &[T], x: &[T], dx: &mut [T]) {
        let statistics = self.mean.iter().zip(self.inverse).zip(self.gamma);
        let terms = self.slopes.iter().zip(self.offsets);
        for (((dx, (&dout, &x)), ((&mean, &inverse), &gamma)), (&slope, &offset)) in
            dx.iter_mut().zip(dout.iter().zip(x)).zip(statistics).zip(terms)
        {
            *dx = gamma * inverse * dout + slope * (x - mean) + offset;
        }
    }
}

/// Zero where `mask` is not above 0.
pub(super) fn mask<T: Real>(values: &mut [T], mask: &[T]) {
    values.iter_mut().zip(mask).for_each(|(value, &mask)| *value = if mask > T::ZERO { *value } else { T::ZERO });
}

impl<T: Real> OnCpu<T> for BatchNormGradient {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        chunk_sums(inputs[1])
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let (dout, x) = (call.input(0), call.input(1));
        let [gamma, mean, inverse] = [2, 3, 4].map(|index| call.input(index).dense());
        let channels = x.channels();
        let workspace = call.workspace();
        workspace.par_chunks_mut(2 * channels).enumerate().for_each(|(index, sums)| {
            sums.fill(T::ZERO);
            let (dbeta, dgamma) = sums.split_at_mut(channels);
            for position in chunk(index, x.shape()) {
                add_pixel([dbeta, dgamma], dout.pixel(position), x.pixel(position), mean);
            }
        });
        let [dgamma, dbeta] = [1, 2].map(|index| call.output(index).into_dense());
        let slopes = Slopes::new(workspace, [gamma, mean, inverse], [dgamma, dbeta], None, x.shape().positions());
        let masked = self.masked.start..self.masked.end.min(channels);
        let differentiate = |position, dx: &mut [T]| {
            slopes.apply(dout.pixel(position), x.pixel(position), dx);
            mask(&mut dx[masked.clone()], &x.pixel(position)[masked.clone()]);
        };
        call.output(0).for_each_pixel(differentiate);
    }
}

/// The scale and shift of running statistics: inputs `gamma`, `beta`, mean, variance.
fn running_scale<T: Real>([gamma, beta, mean, variance]: [&[T]; 4], scale: &mut [T], shift: &mut [T]) {
    for channel in 0..gamma.len() {
        scale[channel] = gamma[channel] / (variance[channel] + T::from_f64(EPSILON)).sqrt();
        shift[channel] = beta[channel] - mean[channel] * scale[channel];
    }
}

/// What normalises a pixel by `gamma`, `beta`, running mean and running variance, and writes it to another. `workspace` has two
/// elements for each channel.
pub(in crate::ops) fn by_running<'a, T: Real>(
    vectors: [&[T]; 4],
    workspace: &'a mut [T],
) -> impl Fn(&[T], &mut [T]) + Sync + use<'a, T> {
    let (scale, shift) = workspace.split_at_mut(vectors[0].len());
    running_scale(vectors, scale, shift);
    let (scale, shift) = (&*scale, &*shift);
    move |x, out| {
        for ((out, &x), (&scale, &shift)) in out.iter_mut().zip(x).zip(scale.iter().zip(shift)) {
            *out = x * scale + shift;
        }
    }
}

impl<T: Real> OnCpu<T> for BatchNormScaleInference {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let [scale, shift] = [0, 1].map(|index| call.output(index).into_dense());
        running_scale([0, 1, 2, 3].map(|index| call.input(index).dense()), scale, shift);
    }
}

impl<T: Real> OnCpu<T> for BatchNormInference {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[0].channels.stored()
    }

    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let x = call.input(0);
        let normalise = by_running([1, 2, 3, 4].map(|index| call.input(index).dense()), call.workspace());
        let maxima = self.pooled.then(|| call.output(1));
        write_with_maxima(call.output(0), maxima, |position, out| normalise(x.pixel(position), out));
    }
}
