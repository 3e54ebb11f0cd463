//! A linear layer of `x * scale + shift` as a layer of `x` itself, with other weights and another bias: how batch norm
//! is applied without a pass over the tensor, where nothing but such a layer reads its result.

use super::case::Case;
use super::convolution::Convolution;
use super::transposed_convolution::TransposedConvolution;
use super::window::Window;
use super::{Gradient, Op};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Grid, Launcher, OnCuda, PixelGrid};
use crate::device::kernels::fold::FOLD_THREADS;
use crate::device::kernels::{FOLD_BACKWARD, FOLD_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// `folded[n][c] = weight[n][c] scale[c]`, `folded bias[n] = bias[n] + sum over c of weight[n][c] shift[c]`.
///
/// Inputs: `weight`, a row of input channels for each output (of each tap of a transposed convolution, or the one of a 1x1
/// convolution); `bias`, of each output; `scale`, `shift`, and the mean of `x`, of each input channel. The mean has no
/// gradient: it says where to make up for what rounding changes in the folded weights. Outputs: folded weight, and folded
/// bias, of each row.
#[derive(Debug)]
pub struct Fold;

/// The matrix of weights: its rows, and how many of them have a bias of their own.
struct Rows {
    count: usize,
    inputs: usize,
    biases: usize,
}

impl Rows {
    fn of(weight: &Shape, bias: &Shape, scale: &Shape) -> Self {
        let inputs = scale.channels.stored();
        Rows { count: weight.elements() / inputs, inputs, biases: bias.channels.stored() }
    }
}

impl Op for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (weight, bias, scale) = (inputs[0], inputs[1], inputs[2]);
        let rows = Rows::of(weight, bias, scale);
        let one = weight.channels.count() == 1 && weight.positions() == rows.inputs;
        let vectors = inputs[2..].iter().all(|&shape| *shape == Shape::vector(scale.channels.clone()));
        if !(vectors && (one || weight.channels == scale.channels)) || !rows.count.is_multiple_of(rows.biases) {
            return Err(Error::shape("fold", format!("{scale} cannot be folded into weights of {weight}")));
        }
        Ok(vec![weight.clone(), Shape::matrix(rows.count / rows.biases, bias.channels.clone())])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let [weight, bias, scale, shift] = [0, 1, 2, 3].map(|index| context.inputs[index]);
        let op = FoldGradient { weight: graph.shape(weight).clone(), bias: graph.shape(bias).clone() };
        let found = graph.apply(op, &[context.of(0), context.of(1), weight, scale, shift])?;
        Ok(found.into_iter().map(Some).chain([None]).collect())
    }
}

/// Inputs: the gradients of folded weight and bias, `weight`, `scale`, `shift`. Outputs: the gradients of `weight`, `bias`,
/// `scale`, `shift`.
#[derive(Debug)]
pub struct FoldGradient {
    /// The shapes of weight and bias.
    weight: Shape,
    bias: Shape,
}

impl Op for FoldGradient {
    fn name(&self) -> &'static str {
        "fold_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let weight = self.weight.clone().stored_in(Storage::Full);
        Ok(vec![weight, self.bias.clone(), inputs[3].clone(), inputs[4].clone()])
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for Fold {
    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (weight, bias, scale) = (call.input(0), call.input(1), call.input(2));
        let Rows { inputs, biases, .. } = Rows::of(weight.shape(), bias.shape(), scale.shape());
        let reduced = weight.shape().storage == Storage::Reduced;
        let [weight, bias, scale] = [weight, bias, scale].map(|input| input.dense());
        let (shift, mean) = (call.input(3).dense(), call.input(4).dense());
        let (mut folded, mut folded_bias) = (call.output(0), call.output(1));
        let rows = weight.par_chunks_exact(inputs).zip(folded.dense().par_chunks_exact_mut(inputs));
        rows.zip(folded_bias.dense().par_iter_mut()).enumerate().for_each(|(row, ((weight, folded), sum))| {
            folded.iter_mut().zip(weight.iter().zip(scale)).for_each(|(folded, (&w, &scale))| *folded = w * scale);
            if reduced {
                cpu.round(folded, false);
            }
            let terms = (0..inputs).map(|c| {
                let [weight, scale, folded] = [weight[c], scale[c], folded[c]].map(T::to_f64);
                weight * shift[c].to_f64() + mean[c].to_f64() * (weight * scale - folded)
            });
            *sum = bias[row % biases] + T::from_f64(terms.sum());
        });
    }
}

impl<T: Real> OnCpu<T> for FoldGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let [dfolded, dfolded_bias, weight, scale, shift] = [0, 1, 2, 3, 4].map(|index| call.input(index));
        let Rows { inputs, biases, .. } = Rows::of(weight.shape(), &self.bias, scale.shape());
        let (dfolded, dfolded_bias, weight) = (dfolded.dense(), dfolded_bias.dense(), weight.dense());
        let (scale, shift) = (scale.dense(), shift.dense());
        let [mut dweight, mut dbias, mut dscale, mut dshift] = [0, 1, 2, 3].map(|index| call.output(index));
        let (dbias, dscale, dshift) = (dbias.dense(), dscale.dense(), dshift.dense());
        [&mut *dbias, &mut *dscale, &mut *dshift].into_iter().for_each(|sums| sums.fill(T::ZERO));
        let rows = dweight.dense().chunks_exact_mut(inputs).zip(dfolded.chunks_exact(inputs));
        for (row, ((dweight, dfolded), weight)) in rows.zip(weight.chunks_exact(inputs)).enumerate() {
            let gradient = dfolded_bias[row];
            dbias[row % biases] += gradient;
            for c in 0..inputs {
                dweight[c] = scale[c] * dfolded[c] + shift[c] * gradient;
                dscale[c] += weight[c] * dfolded[c];
                dshift[c] += weight[c] * gradient;
            }
        }
    }
}

// ------------------------------------------------------------------ CUDA

impl OnCuda for Fold {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [weight, bias, scale, shift, mean] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let outputs = [0, 1].map(|index| launcher.output(index).pointer);
        let Rows { count, inputs, biases } = Rows::of(weight.shape, bias.shape, scale.shape);
        launcher
            .kernel(FOLD_FORWARD)
            .pointers(outputs)
            .pointers([weight, bias, scale, shift, mean].map(|operand| operand.pointer))
            .sizes([inputs, biases])
            .launch(Grid::new([count, 1, 1], FOLD_THREADS))
    }
}

impl OnCuda for FoldGradient {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dfolded, dfolded_bias, weight, scale, shift] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let outputs = [0, 1, 2, 3].map(|index| launcher.output(index));
        let Rows { count, inputs, biases } = Rows::of(weight.shape, &self.bias, scale.shape);
        launcher
            .kernel(FOLD_BACKWARD)
            .pointers(outputs.map(|output| output.pointer))
            .pointers([dfolded, dfolded_bias, weight, scale, shift].map(|input| input.pointer))
            .sizes([count, inputs, biases])
            .launch(PixelGrid::merging(inputs).with_blocks(1, 1))
    }
}

// ------------------------------------------------------------------ cases

/// A layer of an image, folded, whose mean is said to be what comes last.
fn case(x: Shape, weight: Shape, bias: Shape, layer: impl Op + Clone + 'static) -> Case {
    let vector = Shape::vector(x.channels.clone());
    let inputs = [x, weight, bias, vector.clone(), vector];
    Case::new("fold", inputs, move |graph, inputs| {
        let [x, weight, bias, scale, shift] = [0, 1, 2, 3, 4].map(|index| inputs[index]);
        let folded = graph.apply(Fold, &[weight, bias, scale, shift, shift])?;
        graph.apply(layer.clone(), &[x, folded[0], folded[1]])
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, input, output) in [(1, 1, 3), (2, 3, 33), (1, 33, 8), (3, 40, 24)] {
        let layer = TransposedConvolution { kernel: [1, 2, 2], out: Channels::new(output) };
        let x = Shape::image(batch, 3, 5, input);
        let (weight, bias) = (layer.weight_shape(&x.channels), Shape::vector(layer.out.clone()));
        cases.push(case(x, weight, bias, layer.clone()).rows(1, layer.out));
    }
    for input in [3, 33, 96] {
        let layer = Convolution::new(Window::same(1), 1);
        let x = Shape::image(2, 5, 4, input);
        let (weight, bias) = (layer.weight_shape(&x.channels), Shape::vector(layer.out.clone()));
        cases.push(case(x.clone(), weight, bias, layer).rows(1, x.channels));
    }
    cases
}
