//! Transposed convolution whose stride is its kernel, 2x2 in the decoder: each input pixel becomes a patch of
//! output pixels. It is the adjoint of the convolution with that kernel and stride, whose code serves its gradients.
//!
//! Weights are stored as that convolution's: a row for each kernel element and output channel, a column for
//! each input channel.

use super::case::Case;
use super::convolution::{BiasGradient, BiasOf, Convolution, ConvolutionWeightGradient, Weights, weight_storage};
use super::convolution::{
    Epilogue, Form, TILE_64X32, TILE_128X64, TensorProduct, Tile, TileKernels, any_kernel, tensor_form,
};
use super::window::Window;
use super::{Gradient, Op};
use crate::device::cpu::operand::Span;
use crate::device::cpu::tile::{Product, Start};
use crate::device::cpu::{Call, Cpu, OnCpu, Real};
use crate::device::cuda::{Launcher, OnCuda};
use crate::device::kernels::matrix_tile::TILE_INNER;
use crate::device::kernels::{
    Element, TRANSPOSED_CONVOLUTION_FORWARD_64X32, TRANSPOSED_CONVOLUTION_FORWARD_64X32_TF32,
    TRANSPOSED_CONVOLUTION_FORWARD_128X64, TRANSPOSED_CONVOLUTION_FORWARD_128X64_TF32,
    TRANSPOSED_CONVOLUTION_FORWARD_ANY, TRANSPOSED_CONVOLUTION_FORWARD_ANY_FROM_FULL,
    TRANSPOSED_CONVOLUTION_FORWARD_ANY_TO_FULL,
};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Channels, Shape};
use crate::{Error, Result};
use rayon::prelude::*;

/// `out[p * kernel + k] = x[p] weight[k] + bias`; inputs `x`, `weight`, `bias`, which may be one for each `k`.
#[derive(Debug, Clone)]
pub struct TransposedConvolution {
    /// Depth, height and width of the patch that each pixel becomes.
    pub kernel: [usize; 3],
    pub out: Channels,
}

impl TransposedConvolution {
    /// The adjoint's window.
    fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.kernel, padding: [0; 3] }
    }

    /// The weights' shape for inputs with these channels.
    pub fn weight_shape(&self, input: &Channels) -> Shape {
        let shape = Shape::matrix(self.window().taps() * self.out.stored(), input.clone());
        shape.stored_in(weight_storage(input, &self.out))
    }
}

impl Op for TransposedConvolution {
    fn name(&self) -> &'static str {
        "transposed_convolution"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (x, weight) = (inputs[0], inputs[1]);
        let expected = self.weight_shape(&x.channels);
        if *weight != expected {
            return Err(Error::shape(
                "transposed_convolution",
                format!("{x} needs weights of {expected}, not {weight}"),
            ));
        }
        let bias = inputs[2];
        if ![1, self.window().taps()].iter().any(|&rows| *bias == Shape::matrix(rows, self.out.clone())) {
            let (count, taps) = (self.out.count(), self.window().taps());
            let message = format!("{count} output channels of {taps} taps cannot have a bias of {bias}");
            return Err(Error::shape("transposed_convolution", message));
        }
        let spatial = std::array::from_fn(|axis| x.spatial[axis] * self.kernel[axis]);
        Ok(vec![Shape::volume(x.batch, spatial, self.out.clone())])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, weight, dout) = (context.inputs[0], context.inputs[1], context.of(0));
        let adjoint = Convolution {
            window: self.window(),
            out: graph.shape(x).channels.clone(),
            ..Convolution::new(self.window(), 1)
        };
        let dx = context.wanted[0].then(|| graph.apply_one(adjoint, &[dout, weight])).transpose()?;
        // The bias is of the large image, which is the adjoint's input.
        let has_taps = graph.shape(context.inputs[2]).positions() == self.window().taps();
        let bias = if has_taps && context.wanted[2] { BiasOf::Taps } else { BiasOf::Nothing };
        let mut parameters = Vec::new();
        if context.wanted[1] {
            let op = ConvolutionWeightGradient { window: self.window(), groups: 1, bias };
            parameters = graph.apply(op, &[x, dout])?;
        }
        let (dweight, mut dbias) = (parameters.first().copied(), parameters.get(1).copied());
        if context.wanted[2] && dbias.is_none() {
            let kernel = if has_taps { self.kernel } else { [1; 3] };
            dbias = Some(graph.apply_one(BiasGradient { kernel }, &[dout])?);
        }
        Ok(vec![dx, dweight, dbias])
    }

    fn saturates(&self, inputs: &[&Shape], outputs: &[&Shape]) -> bool {
        Form::of(self.window(), 1, [outputs[0], inputs[0]]).is_some()
    }

    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        2 * (outputs[0].positions() * outputs[0].channels.count() * inputs[0].channels.count()) as u64
    }
}

// ------------------------------------------------------------------ CPU

impl<T: Real> OnCpu<T> for TransposedConvolution {
    fn workspace(&self, _: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[1].elements()
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (x, weight, bias) = (call.input(0), call.input(1), call.input(2));
        let [kernel_depth, kernel_height, kernel_width] = self.kernel;
        let (taps, inputs, outputs) = (self.window().taps(), x.shape().channels.used(), self.out.stored());
        let (dense, columns, biases) = (weight.dense(), weight.channels(), bias.shape().elements());
        let workspace = call.workspace();
        Weights::pack(cpu, workspace, [1, taps, inputs, outputs], |_, tap, input, output| {
            dense[(tap * outputs + output) * columns + input]
        });
        let packed = &*workspace;
        let out = call.output(0);
        let [depth, height, width] = out.shape().spatial;
        let block = cpu.tiles().max_columns();
        out.blocks(kernel_height * width).for_each(|mut out| {
            let (first, stride) = (out.positions().start, out.stride());
            let last = out.positions().end / width;
            for row in first / width..last {
                let (sample, z, y) = (row / height / depth, row / height % depth, row % height);
                let source =
                    (sample * (depth / kernel_depth) + z / kernel_depth) * (height / kernel_height) + y / kernel_height;
                for start in (0..outputs).step_by(block) {
                    let columns = block.min(outputs - start);
                    for tap_x in 0..kernel_width {
                        let tap = (z % kernel_depth * kernel_height + y % kernel_height) * kernel_width + tap_x;
                        let product = Product {
                            a: x.span(),
                            a_start: source * (width / kernel_width) * x.stride(),
                            a_row: x.stride(),
                            a_step: 1,
                            b: Span::from(packed),
                            b_start: start * taps * inputs + tap * inputs * columns,
                            b_step: columns,
                            terms: &[(0, 0)],
                            depth: inputs,
                            out_start: (row * width - first + tap_x) * stride + start,
                            out_row: kernel_width * stride,
                            rows: width / kernel_width,
                            columns,
                            start: Start::Bias(&bias.dense()[tap * outputs % biases + start..]),
                            relu: false,
                        };
                        cpu.tiles().run(&mut out.span(), &product);
                    }
                }
            }
        });
    }
}

// ------------------------------------------------------------------ CUDA

/// There is no tile between the largest and the small one.
const FORWARD: TileKernels = TileKernels {
    f32: [
        TRANSPOSED_CONVOLUTION_FORWARD_128X64,
        TRANSPOSED_CONVOLUTION_FORWARD_128X64,
        TRANSPOSED_CONVOLUTION_FORWARD_64X32,
    ],
    tf32: [
        TRANSPOSED_CONVOLUTION_FORWARD_128X64_TF32,
        TRANSPOSED_CONVOLUTION_FORWARD_128X64_TF32,
        TRANSPOSED_CONVOLUTION_FORWARD_64X32_TF32,
    ],
};

impl OnCuda for TransposedConvolution {
    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let (out, x) = (launcher.output(0), launcher.input(0));
        let (weight, bias) = (launcher.input(1).pointer, launcher.input(2));
        let biases = bias.shape.elements();
        let bias = bias.pointer;
        let (pixels, taps, inputs, outputs) = (x.positions(), self.window().taps(), x.channels(), out.channels());
        if let Some(form) = tensor_form(launcher.precision(), self.window(), 1, [out.shape, x.shape]) {
            let epilogue = Epilogue::default();
            let bias = Some((bias, biases));
            let product = TensorProduct { form, target: out, source: x, weight, bias, epilogue };
            return product.transposed(launcher, None);
        }
        let aligned = out.is_aligned() && x.is_aligned() && weight.is_aligned() && bias.is_aligned();
        let full = out.element() == Element::F32 && x.element() == Element::F32;
        let (kernel, grid) = if full && aligned && inputs.is_multiple_of(TILE_INNER) {
            let tile = match Tile::choose(pixels, taps * outputs, 1) {
                TILE_64X32 => TILE_64X32,
                _ => TILE_128X64,
            };
            (FORWARD.of(tile, launcher), tile.grid(pixels, taps * outputs, 1, 1))
        } else {
            // Each tap's channels are rounded up to whole quads.
            let columns = taps * outputs.next_multiple_of(4);
            let kernel = any_kernel(
                [out, x],
                [
                    TRANSPOSED_CONVOLUTION_FORWARD_ANY,
                    TRANSPOSED_CONVOLUTION_FORWARD_ANY_FROM_FULL,
                    TRANSPOSED_CONVOLUTION_FORWARD_ANY_TO_FULL,
                ],
            );
            (kernel, TILE_64X32.grid(pixels, columns, 1, 1))
        };
        launcher
            .kernel(kernel)
            .pointers([out.pointer, x.pointer, weight, bias])
            .sizes([pixels])
            .sizes(x.shape.spatial)
            .sizes(self.kernel)
            .sizes([inputs, outputs, out.stride, x.stride, biases])
            .launch(grid)
    }
}

// ------------------------------------------------------------------ cases

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, input, output) in [(1, 1, 3), (2, 3, 33), (1, 33, 8), (3, 8, 1)] {
        let op = TransposedConvolution { kernel: [1, 2, 2], out: Channels::new(output) };
        let x = Shape::image(batch, 3, 5, input);
        cases.push((op, x));
    }
    let volume = Shape::volume(2, [2, 3, 2], Channels::new(3));
    cases.push((TransposedConvolution { kernel: [2, 2, 2], out: Channels::new(2) }, volume));
    let biases = |op: &TransposedConvolution| [1, op.window().taps()].map(|rows| Shape::matrix(rows, op.out.clone()));
    let cases = cases.into_iter().flat_map(|(op, x)| biases(&op).map(|bias| (op.clone(), x.clone(), bias)));
    let cases = cases.map(|(op, x, bias)| {
        let (inputs, out) = ([x.clone(), op.weight_shape(&x.channels), bias], op.out.clone());
        Case::new("transposed_convolution", inputs, move |graph, inputs| graph.apply(op.clone(), inputs)).rows(1, out)
    });
    cases.collect()
}
