//! Batch normalisation of each channel over batch and pixels.
//!
//! Training normalises by the batch's mean and biased variance and moves the running statistics towards the
//! batch's mean and unbiased variance; inference uses the running ones. With momentum 1/k in the k-th batch
//! of a pass, the running statistics are the pass's plain mean.
//!
//! [`BatchNorm`] writes the normalised tensor. Where only a linear layer or a residual block reads it, [`BatchNormScale`] says
//! what scale and shift it would take, and [`Fold`](super::fold::Fold) or
//! [`FoldResidual`](super::fold_residual::FoldResidual) gives them to the layer: the tensor is never written. Both write the
//! maxima of its windows of 2x2 pixels, if they are wanted: the end of an encoder's level.

mod cpu;
mod cuda;
mod pooled;

use super::add::Add;
use super::affine::Affine;
use super::case::Case;
use super::convolution::Convolution;
use super::fold::Fold;
use super::relu::Relu;
use super::residual::Residual;
use super::transposed_convolution::TransposedConvolution;
use super::window::Window;
use super::{Gradient, Op, Rewritten};
use crate::graph::{Graph, Region, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
pub(super) use cpu::by_running;
pub(super) use cuda::launch_inference;
use pooled::PooledGradient;
use std::ops::Range;
use std::sync::Arc;

/// Added to the variance.
pub const EPSILON: f64 = 1e-5;

/// `out = (x - mean) / sqrt(variance + epsilon) * gamma + beta` with the batch's statistics.
///
/// Inputs: `x`, `gamma`, `beta`, running mean, running variance (both updated), momentum (a scalar).
/// Outputs: `out`, the batch's mean, `1 / sqrt(variance + epsilon)`, the updated running statistics, and the maxima if
/// `pooled`.
#[derive(Debug, Default)]
pub struct BatchNorm {
    /// Whether the maximum of each window of 2x2 pixels of `out` is wanted. Height and width must then be even.
    pub pooled: bool,
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = channel_vectors(&inputs[..5])?;
        let maxima = self.pooled.then(|| pooled::halved(inputs[0])).transpose()?;
        let normalised = [inputs[0].clone(), vector.clone(), vector.clone(), vector.clone(), vector];
        Ok(normalised.into_iter().chain(maxima).collect())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(3, 3), (4, 4)]
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, gamma, mean, inverse_deviation) =
            (context.inputs[0], context.inputs[1], context.outputs[1], context.outputs[2]);
        let statistics = [x, gamma, mean, inverse_deviation];
        let gradients = match context.gradients.get(5).copied().flatten() {
            Some(dpooled) => {
                let dout = context.gradients[0];
                let inputs: Vec<ValueId> = [dpooled].into_iter().chain(statistics).chain(dout).collect();
                graph.apply(PooledGradient { dout: dout.is_some(), ..PooledGradient::default() }, &inputs)?
            }
            None => {
                let op = BatchNormGradient { masked: 0..0 };
                graph.apply(op, &[&[context.of(0)], &statistics[..]].concat())?
            }
        };
        Ok(gradients.into_iter().map(Some).chain([None; 3]).collect())
    }
}

/// Inputs: `dout`, `x`, `gamma`, mean, `1 / sqrt(variance + epsilon)`. Outputs: `dx`, `dgamma`, `dbeta`.
#[derive(Debug)]
pub struct BatchNormGradient {
    /// The stored channels, perhaps more than there are, in which `dx` is zero where `x`, which ends in a ReLU, is.
    masked: Range<usize>,
}

impl Op for BatchNormGradient {
    fn name(&self) -> &'static str {
        "batch_norm_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let vector = channel_vectors(&inputs[1..5])?;
        Ok(vec![inputs[1].clone(), vector.clone(), vector])
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        self.masked_channels(inputs, mask, 0..usize::MAX)
    }

    fn masked_channels(&self, inputs: &[ValueId], mask: ValueId, channels: Range<usize>) -> Option<Rewritten> {
        let op = (inputs[1] == mask && self.masked.is_empty()).then_some(BatchNormGradient { masked: channels })?;
        Some((Arc::new(op), inputs.to_vec()))
    }
}

/// The `scale` and `shift` with which `x * scale + shift` is what [`BatchNorm`] makes of `x`; the same inputs. Outputs:
/// `scale`, `shift`, and those of [`BatchNorm`] behind the first.
#[derive(Debug, Default)]
pub struct BatchNormScale {
    /// As in [`BatchNorm`].
    pub pooled: bool,
}

impl Op for BatchNormScale {
    fn name(&self) -> &'static str {
        "batch_norm_scale"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let maxima = self.pooled.then(|| pooled::halved(inputs[0])).transpose()?;
        Ok(std::iter::repeat_n(channel_vectors(&inputs[..5])?, 6).chain(maxima).collect())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(4, 3), (5, 4)]
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, gamma) = (context.inputs[0], context.inputs[1]);
        let statistics = [context.outputs[2], context.outputs[3]];
        if let Some(dpooled) = context.gradients.get(6).copied().flatten() {
            let scaled = context.gradients[0].is_some() || context.gradients[1].is_some();
            let op = PooledGradient { scaled, ..PooledGradient::default() };
            let mut inputs = vec![dpooled, x, gamma, statistics[0], statistics[1]];
            inputs.extend(scaled.then(|| [context.of(0), context.of(1)]).into_iter().flatten());
            return Ok(graph.apply(op, &inputs)?.into_iter().map(Some).chain([None; 3]).collect());
        }
        let op = BatchNormScaleGradient { pixels: graph.shape(x).positions() };
        let inputs = [context.of(0), context.of(1), gamma, statistics[0], statistics[1]];
        let found = graph.apply(op, &inputs)?;
        let dx = context.wanted[0].then(|| graph.apply_one(Affine, &[x, found[2], found[3]])).transpose()?;
        Ok([dx, Some(found[0]), Some(found[1])].into_iter().chain([None; 3]).collect())
    }
}

/// Inputs: the gradients of `scale` and `shift`, `gamma`, mean, `1 / sqrt(variance + epsilon)`. Outputs: `dgamma`, `dbeta`,
/// and the scale and the offset with which [`Affine`] makes of `x` what the batch's statistics add to its gradient.
#[derive(Debug)]
pub struct BatchNormScaleGradient {
    /// Pixels of all samples.
    pixels: usize,
}

impl Op for BatchNormScaleGradient {
    fn name(&self) -> &'static str {
        "batch_norm_scale_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[2].clone(); 4])
    }
}

/// As [`BatchNormScale`], with the running statistics. Inputs: `gamma`, `beta`, running mean, running variance. Outputs:
/// `scale`, `shift`.
#[derive(Debug)]
pub struct BatchNormScaleInference;

impl Op for BatchNormScaleInference {
    fn name(&self) -> &'static str {
        "batch_norm_scale_inference"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![channel_vectors(inputs)?; 2])
    }
}

/// As [`BatchNorm`], with the running statistics. Inputs: `x`, `gamma`, `beta`, running mean, running variance. Outputs: `out`,
/// and the maxima if `pooled`.
#[derive(Debug, Default)]
pub struct BatchNormInference {
    pub pooled: bool,
}

impl Op for BatchNormInference {
    fn name(&self) -> &'static str {
        "batch_norm_inference"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        channel_vectors(inputs)?;
        let maxima = self.pooled.then(|| pooled::halved(inputs[0])).transpose()?;
        Ok(std::iter::once(inputs[0].clone()).chain(maxima).collect())
    }
}

/// The shape of one value per channel, which all inputs after the first must have.
pub(super) fn channel_vectors(inputs: &[&Shape]) -> Result<Shape> {
    let vector = Shape::vector(inputs[0].channels.clone());
    match inputs[1..].iter().find(|&&shape| *shape != vector) {
        Some(shape) => Err(Error::shape("batch_norm", format!("{} needs a value per channel, not {shape}", inputs[0]))),
        None => Ok(vector),
    }
}

// ------------------------------------------------------------------ cases

/// The statistics' place among a case's state: means, then variances.
fn running(graph: &mut Graph, x: &Shape) -> [ValueId; 2] {
    let vector = Shape::vector(x.channels.clone());
    [0, vector.elements()].map(|start| graph.state(vector.clone(), Region::Statistics, start))
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, height, channels) in [(1, 3, 1), (2, 3, 3), (3, 40, 33)] {
        let x = Shape::image(batch, height, 5, channels);
        let vector = Shape::vector(x.channels.clone());
        let inputs = [x.clone(), vector.clone(), vector.clone()];
        let shape = x.clone();
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &shape);
            let momentum = graph.input(Shape::flat(1));
            let outputs =
                graph.apply(BatchNorm::default(), &[inputs[0], inputs[1], inputs[2], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        // Behind a ReLU, whose gradient takes no pass of its own.
        let (inputs, shape) = ([x.clone(), x.clone(), vector.clone(), vector.clone()], x.clone());
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &shape);
            let momentum = graph.input(Shape::flat(1));
            let sum = graph.apply_one(Add { relu: true }, &inputs[..2])?;
            let outputs = graph.apply(BatchNorm::default(), &[sum, inputs[2], inputs[3], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        // Of a concatenation, one part of which ends in a ReLU.
        let both = x.with_channels(Channels::concat([&x.channels, &x.channels]));
        let vectors = Shape::vector(both.channels.clone());
        let inputs = [x.clone(), x.clone(), vectors.clone(), vectors];
        cases.push(Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &both);
            let momentum = graph.input(Shape::flat(1));
            let part = graph.apply_one(Relu, &inputs[1..2])?;
            let whole = graph.concat(&[inputs[0], part])?;
            let outputs =
                graph.apply(BatchNorm::default(), &[whole, inputs[2], inputs[3], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        }));
        let inputs = [(); 4].map(|()| vector.clone());
        let scale = Case::new("batch_norm_scale_inference", inputs, |graph, inputs| {
            graph.apply(BatchNormScaleInference, inputs)
        });
        cases.push(scale.fraction(3).forward_only());
        let inputs = [x, vector.clone(), vector.clone(), vector.clone(), vector];
        cases.push(
            Case::new("batch_norm_inference", inputs, |graph, inputs| {
                graph.apply(BatchNormInference::default(), inputs)
            })
            .fraction(4)
            .forward_only(),
        );
    }
    // Of a residual block, which ends in a ReLU. (Of so many pixels that not all of a channel are above zero: the gradient of
    // its bias would be what rounding leaves.)
    for (input, channels) in [(3, 4), (8, 33)] {
        let op = Residual::new(channels, true);
        let x = Shape::image(3, 7, 6, input);
        let vector = Shape::vector(op.main.out.clone());
        let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &[vector.clone(), vector]].concat();
        let out = x.with_channels(op.main.out.clone());
        let residual = Case::new("batch_norm", inputs, move |graph, inputs| {
            let [mean, variance] = running(graph, &out);
            let momentum = graph.input(Shape::flat(1));
            let sum = graph.apply(op.clone(), &inputs[..5])?[0];
            let outputs = graph.apply(BatchNorm::default(), &[sum, inputs[5], inputs[6], mean, variance, momentum])?;
            Ok(vec![outputs[0]])
        });
        cases.push(residual.rows(1, x.channels.clone()).rows(3, x.channels));
    }
    cases.extend(pooled::cases());
    for (batch, channels, out) in [(1, 1, 3), (2, 3, 3), (2, 33, 8), (1, 16, 24), (2, 72, 40), (1, 40, 72)] {
        let layer = TransposedConvolution { kernel: [1, 2, 2], out: Channels::new(out) };
        let x = Shape::image(batch, 4, 5, channels);
        let weight = layer.weight_shape(&x.channels);
        cases.push(folded(x, weight, layer.out.clone(), layer.clone()).rows(3, layer.out.clone()));
        let (layer, x) = (Convolution::new(Window::same(1), 1), Shape::image(batch, 4, 5, channels));
        let weight = layer.weight_shape(&x.channels);
        cases.push(folded(x.clone(), weight, layer.out.clone(), layer).rows(3, x.channels));
    }
    cases
}

/// A layer of a batch norm that is not applied.
fn folded(x: Shape, weight: Shape, out: Channels, layer: impl Op + Clone + 'static) -> Case {
    let vector = Shape::vector(x.channels.clone());
    Case::new(
        "batch_norm_scale",
        [x.clone(), vector.clone(), vector, weight, Shape::vector(out)],
        move |graph, inputs| {
            let [mean, variance] = running(graph, &x);
            let momentum = graph.input(Shape::flat(1));
            let norm =
                graph.apply(BatchNormScale::default(), &[inputs[0], inputs[1], inputs[2], mean, variance, momentum])?;
            let folded = graph.apply(Fold, &[inputs[3], inputs[4], norm[0], norm[1], norm[2]])?;
            graph.apply(layer.clone(), &[inputs[0], folded[0], folded[1]])
        },
    )
}
