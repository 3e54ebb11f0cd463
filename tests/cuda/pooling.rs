//! Batch norm with its maxima, where pixels of a window are equal, and where gamma turns their order around.

use super::convolution::values as eighths;
use rarunet_cuda::device::cpu::{CpuDevice, Real};
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::graph::{Graph, Region, ValueId};
use rarunet_cuda::ops::batch_norm::{BatchNorm, EPSILON};
use rarunet_cuda::tensor::{Channels, Shape};

/// Given values: x, gamma, beta, the gradients of the maxima and of the normalised tensor.
fn given(shape: &Shape, whole: bool) -> [Vec<f64>; 5] {
    let (count, channels) = (shape.values(), shape.channels.count());
    let gamma = (0..channels).map(|channel| [1.5, -0.75, 0.0][channel % 3]).collect();
    let dout = if whole { eighths(count, 4) } else { vec![0.0; count] };
    // A ReLU's output: many zeros.
    let x = eighths::<f64>(count, 1).into_iter().map(|value| value.max(0.0)).collect();
    [x, gamma, eighths(channels, 2), eighths(count / 4, 3), dout]
}

/// Maxima, normalised tensor, and the gradients of x, gamma and beta.
fn run<T: Real>(mut device: Box<dyn Device<T>>, shape: &Shape, whole: bool) -> Vec<Vec<f64>> {
    let mut graph = Graph::new();
    let vector = Shape::vector(shape.channels.clone());
    let [x, gamma, beta] = [shape, &vector, &vector].map(|shape| graph.input(shape.clone()));
    let [mean, variance] = [0, vector.elements()].map(|at| graph.state(vector.clone(), Region::Statistics, at));
    let momentum = graph.input(Shape::flat(1));
    let outputs = graph.apply(BatchNorm { pooled: true }, &[x, gamma, beta, mean, variance, momentum]).unwrap();
    let (out, maxima) = (outputs[0], outputs[5]);
    let seeds = [maxima, out].map(|value| (value, graph.input(graph.shape(value).clone())));
    let used = if whole { &seeds[..] } else { &seeds[..1] };
    let gradients = graph.differentiate(used, &[x, gamma, beta]).unwrap();
    let found: Vec<ValueId> = [maxima, out].into_iter().chain(gradients.into_iter().map(Option::unwrap)).collect();
    let counts: Vec<usize> = found.iter().map(|&value| graph.shape(value).values()).collect();
    device.allocate_state(Region::Statistics, 2 * vector.elements()).unwrap();
    let step = device.load(graph, &found).unwrap();
    device.poison().unwrap();
    let inputs = [x, gamma, beta, seeds[0].1, seeds[1].1];
    for (value, data) in inputs[..if whole { 5 } else { 4 }].iter().zip(given(shape, whole)) {
        device.write(step, *value, &data.into_iter().map(T::from_f64).collect::<Vec<T>>()).unwrap();
    }
    device.write(step, momentum, &[T::ZERO]).unwrap();
    device.run(step).unwrap();
    let read = |(&value, &count): (&ValueId, &usize)| {
        let mut data = vec![T::ZERO; count];
        device.read(step, value, &mut data).unwrap();
        data.into_iter().map(T::to_f64).collect()
    };
    found.iter().zip(&counts).map(read).collect()
}

/// The same from the definition, channel by channel.
fn defined(shape: &Shape, whole: bool) -> Vec<Vec<f64>> {
    let [x, gamma, beta, dmaxima, dout] = given(shape, whole);
    let (channels, positions, [_, _, width]) = (shape.channels.count(), shape.positions(), shape.spatial);
    let mut found = [dmaxima.len(), x.len(), x.len(), channels, channels].map(|count| vec![0.0; count]);
    for channel in 0..channels {
        let of = |values: &[f64]| values.iter().skip(channel).step_by(channels).copied().collect::<Vec<f64>>();
        let (x, mut gradient, count) = (of(&x), of(&dout), positions as f64);
        let mean = x.iter().sum::<f64>() / count;
        let inverse = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count + EPSILON).sqrt();
        let hat: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
        let y: Vec<f64> = hat.iter().map(|hat| gamma[channel] * hat + beta[channel]).collect();
        for (window, &given) in of(&dmaxima).iter().enumerate() {
            let (row, column) = (window / (width / 2), window % (width / 2));
            let first = 2 * row * width + 2 * column;
            let pixels = [first, first + 1, first + width, first + width + 1];
            let best = pixels.into_iter().reduce(|best, pixel| if y[pixel] > y[best] { pixel } else { best }).unwrap();
            found[0][window * channels + channel] = y[best];
            gradient[best] += given;
        }
        let dbeta = gradient.iter().sum::<f64>();
        let dgamma = gradient.iter().zip(&hat).map(|(gradient, hat)| gradient * hat).sum::<f64>();
        for pixel in 0..positions {
            let centred = gradient[pixel] - dbeta / count - hat[pixel] * dgamma / count;
            found[1][pixel * channels + channel] = y[pixel];
            found[2][pixel * channels + channel] = gamma[channel] * inverse * centred;
        }
        (found[3][channel], found[4][channel]) = (dgamma, dbeta);
    }
    found.into()
}

#[test]
fn a_windows_gradient_goes_to_its_first_maximum() {
    for (batch, height, width, channels) in [(1, 2, 2, 8), (2, 6, 10, 33), (3, 34, 18, 40), (2, 4, 6, 3)] {
        let shape = Shape::volume(batch, [1, height, width], Channels::new(channels));
        for whole in [false, true] {
            let expected = defined(&shape, whole);
            let check = |found: Vec<Vec<f64>>, tolerance: f64| {
                let names = ["maxima", "out", "dx", "dgamma", "dbeta"];
                for ((what, found), expected) in names.iter().zip(found).zip(&expected) {
                    let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
                    let pairs = found.iter().zip(expected);
                    let error = pairs.map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
                    assert!(error < tolerance, "{what} of {shape}, whole {whole}: {error:.1e}");
                }
            };
            check(run::<f64>(Box::new(CpuDevice::new().unwrap()), &shape, whole), 1e-11);
            for (precision, tolerance) in
                [(Precision::F32, super::TOLERANCE), (Precision::Bf16, 1e-2), (Precision::Fp16, 2e-3)]
            {
                let Some(device) = super::open_in(precision) else { return };
                check(run::<f32>(Box::new(device), &shape, whole), tolerance);
            }
        }
    }
}
