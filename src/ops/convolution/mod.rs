//! Convolution over height and width (and depth), with bias and ReLU: every block of the network, CBAM's
//! shared MLP (1x1) and its spatial attention (7x7).
//!
//! Weights are stored as a matrix: a row for each kernel element and input channel (kernel element slowest),
//! a column for each output channel.

mod bias;
mod cpu;
mod cuda;
mod epilogue;
mod special;
mod sums;
mod tensor;
mod winograd;

pub(super) use bias::BiasGradient;
pub(super) use cpu::Weights;
pub(super) use cuda::{TILE_64X32, TILE_128X64, Tile, TileKernels, any_kernel, tensor_form};
pub(super) use epilogue::{CpuEpilogue, Epilogue};
pub(super) use tensor::{Form, Rectified, TensorProduct, TensorWeights};

use super::window::Window;
use super::{Gradient, Op, Rewritten};
use crate::graph::{Graph, ValueId};
use crate::ops::case::Case;
use crate::ops::relu::Relu;
use crate::tensor::{Channels, Shape, Storage};
use crate::{Error, Result};
use std::sync::Arc;

/// `out = convolution(x, weight) + bias + added`, or the ReLU of it. Inputs: `x`, `weight`, `bias` if there is one, and
/// what is added.
#[derive(Debug, Clone)]
pub struct Convolution {
    pub window: Window,
    /// Input and output channels are divided into this many independent groups.
    pub groups: usize,
    pub out: Channels,
    /// Whether the last input is a tensor of the output's shape, as an earlier gradient is: only of 1x1 kernels, and of those
    /// whose stride is their size.
    pub add: bool,
    /// Whether the last inputs are such a tensor, and a scale and an offset for each of its channels: what batch norm's
    /// statistics add to a gradient.
    pub affine: bool,
    pub relu: bool,
    /// Whether the output is stored in full, as the input is, however many channels it has: CBAM's shared MLP.
    pub full: bool,
}

impl Convolution {
    /// A convolution to `out` channels, of one group, without ReLU.
    pub fn new(window: Window, out: usize) -> Self {
        Convolution { window, groups: 1, out: Channels::new(out), add: false, affine: false, relu: false, full: false }
    }

    /// Added to a tensor of the output's shape.
    pub fn add(self) -> Self {
        Convolution { add: true, ..self }
    }

    /// With ReLU.
    pub fn relu(self) -> Self {
        Convolution { relu: true, ..self }
    }

    /// With input and output stored in full.
    pub fn full(self) -> Self {
        Convolution { full: true, ..self }
    }

    /// Whether nothing is done with the sums but to add a bias.
    fn is_plain(&self) -> bool {
        !self.add && !self.affine && !self.relu
    }

    /// The same of so many inputs with `x * scale + offset` added, the last inputs then, if nothing is yet.
    pub(super) fn with_affine(&self, inputs: usize) -> Option<Arc<dyn Op>> {
        let possible = self.is_plain() && !self.has_bias(inputs) && adds(self.window);
        possible.then(|| Arc::new(Convolution { affine: true, ..self.clone() }) as _)
    }

    /// Whether there is a bias among so many inputs.
    fn has_bias(&self, inputs: usize) -> bool {
        self.first_added(inputs) > 2
    }

    /// The index of the first input that is added, of so many inputs.
    fn first_added(&self, inputs: usize) -> usize {
        inputs - if self.affine { 3 } else { usize::from(self.add) }
    }

    /// Whether it saturates: only with a bias, as the gradient of a transposed convolution is a convolution without one.
    pub(super) fn is_limited(&self, inputs: usize, x: &Shape, out: &Shape) -> bool {
        self.has_bias(inputs) && Form::of(self.window, self.groups, [x, out]).is_some()
    }

    /// The weights' shape for inputs with these channels. They are reduced where input and output are, for tensor cores.
    pub fn weight_shape(&self, input: &Channels) -> Shape {
        let storage = if self.full { Storage::Full } else { weight_storage(input, &self.out) };
        weight_shape(self.window, self.groups, input, &self.out).stored_in(storage)
    }
}

/// Whether a tensor is added forward: by 1x1 kernels, and by those whose stride is their size.
fn adds(window: Window) -> bool {
    window.kernel == window.stride && window.padding == [0; 3]
}

/// What weights between images of these channels are stored in.
pub(super) fn weight_storage(input: &Channels, output: &Channels) -> Storage {
    let reduced = [input, output].map(Storage::of_image) == [Storage::Reduced; 2];
    if reduced { Storage::Reduced } else { Storage::Full }
}

fn weight_shape(window: Window, groups: usize, input: &Channels, output: &Channels) -> Shape {
    let rows = if groups == 1 { input.stored() } else { input.count() / groups };
    Shape::matrix(window.taps() * rows, output.clone())
}

/// Operations of a convolution: two for each weight and output position.
fn operations(window: Window, groups: usize, input: &Shape, output: &Shape) -> u64 {
    let products = window.taps() * (input.channels.count() / groups) * output.channels.count();
    2 * products as u64 * output.positions() as u64
}

impl Op for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (x, weight) = (inputs[0], inputs[1]);
        let error = |message| Error::shape("convolution", message);
        let spatial = self.window.output(x.spatial).map_err(error)?;
        if self.groups > 1 {
            for channels in [&x.channels, &self.out] {
                if channels.stored() != channels.count() || channels.count() % self.groups != 0 {
                    let count = channels.count();
                    return Err(error(format!("{count} channels cannot be divided into {} groups", self.groups)));
                }
            }
        }
        if (self.add || self.affine) && !adds(self.window) {
            let [depth, height, width] = self.window.kernel;
            return Err(error(format!(
                "a kernel of {depth} x {height} x {width} adds to no tensor: add in another op"
            )));
        }
        let expected = self.weight_shape(&x.channels);
        if *weight != expected {
            return Err(error(format!("{x} needs weights of {expected}, not {weight}")));
        }
        let bias = self.has_bias(inputs.len()).then(|| inputs[2]);
        if let Some(bias) = bias.filter(|&bias| *bias != Shape::vector(self.out.clone())) {
            return Err(error(format!("{} output channels cannot have a bias of {bias}", self.out.count())));
        }
        let out = Shape::volume(x.batch, spatial, self.out.clone());
        let out = if self.full { out.stored_in(Storage::Full) } else { out };
        if let Some(added) = inputs.get(self.first_added(inputs.len())).filter(|&&added| *added != out) {
            return Err(error(format!("{added} cannot be added to {out}")));
        }
        Ok(vec![out])
    }

    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let op = (self.is_plain() && adds(self.window)).then(|| self.clone().add())?;
        Some((Arc::new(op), [inputs, &[added]].concat()))
    }

    fn ends_in_relu(&self) -> bool {
        self.relu
    }

    fn saturates(&self, inputs: &[&Shape], outputs: &[&Shape]) -> bool {
        self.is_limited(inputs.len(), inputs[0], outputs[0])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let (x, weight) = (context.inputs[0], context.inputs[1]);
        let dout = context.of(0);
        let input = graph.shape(x).clone();
        let count = context.inputs.len();
        let mut gradients = vec![None; count];
        let bias = self.has_bias(count) && context.wanted[2];
        match (context.wanted[1], bias) {
            (true, _) => {
                let bias = if bias { BiasOf::Out } else { BiasOf::Nothing };
                let op = ConvolutionWeightGradient { window: self.window, groups: self.groups, bias };
                let found = graph.apply(op, &[dout, x])?;
                found.into_iter().enumerate().for_each(|(index, gradient)| gradients[1 + index] = Some(gradient));
            }
            (false, true) => gradients[2] = Some(graph.apply_one(BiasGradient { kernel: [1; 3] }, &[dout])?),
            (false, false) => {}
        }
        if self.add && context.wanted[count - 1] {
            gradients[count - 1] = Some(dout);
        }
        if context.wanted[0] {
            let op = ConvolutionInputGradient::new(self.window, self.groups, input);
            gradients[0] = Some(graph.apply_one(op, &[dout, weight])?);
        }
        Ok(gradients)
    }

    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        operations(self.window, self.groups, inputs[0], outputs[0])
    }
}

/// The gradient of a convolution's input; inputs `dout`, `weight` (on tensor cores as
/// [`TransposeWeight`](super::transpose_weight::TransposeWeight) makes it), of a residual block the shortcut's weight and bits,
/// the sum of the input's earlier gradients if `add`, a tensor with its scale and offset if `affine`, and the input itself if
/// `mask`.
#[derive(Debug, Clone)]
pub struct ConvolutionInputGradient {
    window: Window,
    groups: usize,
    /// The shape of the convolution's input.
    input: Shape,
    /// Whether it is a residual block's: `dout`, for this convolution zero where there is no bit, is that of a 1x1 convolution
    /// of the same input, too, whose input gradient is added.
    residual: bool,
    /// Whether an earlier gradient is added.
    add: bool,
    /// Whether `x * scale + offset` is added: what batch norm's statistics add.
    affine: bool,
    /// Whether the sum is zero where the input, which ends in a ReLU, is.
    mask: bool,
}

/// The window of a residual block's shortcut.
pub(super) const SHORTCUT: Window = Window { kernel: [1; 3], stride: [1; 3], padding: [0; 3] };

impl ConvolutionInputGradient {
    fn new(window: Window, groups: usize, input: Shape) -> Self {
        let (residual, add, affine, mask) = (false, false, false, false);
        ConvolutionInputGradient { window, groups, input, residual, add, affine, mask }
    }

    /// Of a residual block.
    pub(super) fn of_residual(input: Shape) -> Self {
        ConvolutionInputGradient { residual: true, ..ConvolutionInputGradient::new(Window::same(3), 1, input) }
    }

    /// The index of the first input that is added.
    fn first_added(&self) -> usize {
        if self.residual { 4 } else { 2 }
    }

    /// Whether nothing is done with the sums.
    fn is_plain(&self) -> bool {
        !self.add && !self.affine && !self.mask
    }

    /// As [`Convolution::with_affine`].
    pub(super) fn with_affine(&self) -> Option<Arc<dyn Op>> {
        self.is_plain().then(|| Arc::new(ConvolutionInputGradient { affine: true, ..self.clone() }) as _)
    }
}

impl Op for ConvolutionInputGradient {
    fn name(&self) -> &'static str {
        "convolution_input_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if self.residual && *inputs[3] != inputs[0].bits() {
            let message = format!("{} is not the bits of {}", inputs[3], inputs[0]);
            return Err(Error::shape("convolution_input_gradient", message));
        }
        Ok(vec![self.input.clone()])
    }

    fn plus(&self, inputs: &[ValueId], added: ValueId) -> Option<Rewritten> {
        let op = self.is_plain().then(|| ConvolutionInputGradient { add: true, ..self.clone() })?;
        Some((Arc::new(op), [inputs, &[added]].concat()))
    }

    fn masked(&self, inputs: &[ValueId], mask: ValueId) -> Option<Rewritten> {
        let op = (!self.mask).then(|| ConvolutionInputGradient { mask: true, ..self.clone() })?;
        Some((Arc::new(op), [inputs, &[mask]].concat()))
    }

    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        let shortcut = self.residual.then(|| operations(SHORTCUT, 1, outputs[0], inputs[0]));
        operations(self.window, self.groups, outputs[0], inputs[0]) + shortcut.unwrap_or(0)
    }
}

/// The bias whose gradient is computed beside the weights'; as in `kernels/convolution_tensor_weight.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasOf {
    Nothing,
    /// A convolution's: the sum of `dout` over all pixels.
    Out,
    /// A transposed convolution's of each tap, whose stride is its size: the sum of the pixels of `x` that the tap meets.
    Taps,
}

/// The gradients of a convolution's weights, and of a bias; inputs `dout`, `x`. (Of a transposed convolution `x` is the
/// gradient and `dout` the input.)
#[derive(Debug)]
pub struct ConvolutionWeightGradient {
    pub window: Window,
    pub groups: usize,
    pub bias: BiasOf,
}

impl ConvolutionWeightGradient {
    /// What the bias's gradient is the sum of, and over the taps of which window.
    fn bias_terms<O>(&self, dout: O, x: O) -> Option<(O, [usize; 3])> {
        match self.bias {
            BiasOf::Nothing => None,
            BiasOf::Out => Some((dout, [1; 3])),
            BiasOf::Taps => Some((x, self.window.kernel)),
        }
    }
}

impl Op for ConvolutionWeightGradient {
    fn name(&self) -> &'static str {
        "convolution_weight_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let (dout, x) = (inputs[0], inputs[1]);
        let weight = weight_shape(self.window, self.groups, &x.channels, &dout.channels);
        let bias = self.bias_terms(dout, x);
        let bias = bias.map(|(terms, kernel)| Shape::matrix(kernel.iter().product(), terms.channels.clone()));
        Ok(std::iter::once(weight).chain(bias).collect())
    }

    fn operations(&self, inputs: &[&Shape], _: &[&Shape]) -> u64 {
        operations(self.window, self.groups, inputs[1], inputs[0])
    }
}

// ------------------------------------------------------------------ cases

/// A case of one convolution of an image `x`, with a bias.
fn case(op: Convolution, x: Shape) -> Case {
    let inputs = [x.clone(), op.weight_shape(&x.channels), Shape::vector(op.out.clone())];
    Case::new("convolution", inputs, move |graph, inputs| graph.apply(op.clone(), inputs)).rows(1, x.channels)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (input, output) in [(1, 3), (3, 1), (33, 8), (8, 33), (2, 40), (16, 97)] {
        cases.push(case(Convolution::new(Window::same(3), output), Shape::image(1, 4, 5, input)));
        cases.push(case(Convolution::new(Window::same(1), output).relu(), Shape::image(2, 3, 5, input)));
    }
    cases.push(case(Convolution::new(Window::same(3), 3).relu(), Shape::image(3, 1, 1, 3)));
    cases.push(case(Convolution::new(Window::same(3), 8), Shape::image(2, 17, 15, 2)));
    // Channels enough for Winograd's way on the CPU, tiles that reach over the border, and several blocks of tiles.
    cases.push(case(Convolution::new(Window::same(3), 40).relu(), Shape::image(2, 5, 7, 17)));
    cases.push(case(Convolution::new(Window::same(3), 16), Shape::image(1, 17, 30, 33)));
    cases.push(case(Convolution::new(Window::same(7), 1), Shape::image(2, 5, 9, 2)));
    cases.push(case(Convolution::new(Window::square(3, 2, 1), 5), Shape::image(2, 6, 7, 3)));
    cases.push(case(Convolution::new(Window::square(2, 2, 0), 5), Shape::image(1, 5, 6, 3)));
    cases.push(case(Convolution::new(Window::square(3, 1, 0), 9), Shape::image(1, 5, 4, 3)));
    let volume = Shape::volume(2, [3, 4, 5], Channels::new(2));
    cases.push(case(Convolution::new(Window::cube(3, 1, 1), 3), volume.clone()));
    cases.push(case(Convolution::new(Window::cube(3, 2, 1), 3), volume));
    // Some pixels of the input meet no tap; and vectors.
    cases.push(case(Convolution::new(Window::square(2, 3, 1), 5), Shape::image(1, 7, 8, 3)));
    cases.push(case(Convolution::new(Window::same(1), 9).relu(), Shape::image(5, 1, 1, 33)));
    for (input, output) in [(33, 4), (4, 33), (40, 9)] {
        let x = Shape::image(6, 1, 1, input).stored_in(Storage::Full);
        cases.push(case(Convolution::new(Window::same(1), output).full(), x));
    }
    for groups in [2, 8] {
        let op = Convolution { groups, ..Convolution::new(Window::square(3, 2, 1), 16) };
        cases.push(case(op, Shape::image(2, 5, 4, 8)));
    }
    // A sum behind a ReLU: the sum of gradients, and its mask, in the convolutions that compute them.
    for (input, output) in [(3, 1), (8, 33), (40, 9)] {
        let [main, shortcut] = [3, 1].map(|size| Convolution::new(Window::same(size), output));
        let (x, vector) = (Shape::image(2, 5, 4, input), Shape::vector(Channels::new(output)));
        let [wide, narrow] = [&main, &shortcut].map(|op| op.weight_shape(&x.channels));
        let inputs = [x.clone(), wide, narrow, vector.clone(), vector];
        let residual = move |graph: &mut Graph, inputs: &[ValueId]| {
            let y = graph.apply_one(Relu, &inputs[..1])?;
            let main = graph.apply_one(main.clone(), &[y, inputs[1], inputs[3]])?;
            graph.apply(shortcut.clone().add().relu(), &[y, inputs[2], inputs[4], main])
        };
        cases.push(Case::new("convolution", inputs, residual).rows(1, x.channels.clone()).rows(2, x.channels));
    }
    // The gradients of two convolutions' input, added by the one that computes the later one.
    for (main, other) in [(33, 1), (8, 40), (1, 16)] {
        let [main, other] = [(3, main), (1, other)].map(|(size, out)| Convolution::new(Window::same(size), out));
        let x = Shape::image(2, 5, 4, 40);
        let biases = [&main, &other].map(|op| Shape::vector(op.out.clone()));
        let weights = [&main, &other].map(|op| op.weight_shape(&x.channels));
        let inputs = [x].into_iter().chain(weights).chain(biases);
        cases.push(Case::new("convolution", inputs, move |graph, inputs| {
            let first = graph.apply_one(main.clone(), &[inputs[0], inputs[1], inputs[3]])?;
            Ok(vec![first, graph.apply_one(other.clone(), &[inputs[0], inputs[2], inputs[4]])?])
        }));
    }
    // Without a bias, as in CBAM's spatial attention; to and from a concatenation.
    let op = Convolution::new(Window::same(3), 3);
    let x = Shape::image(2, 3, 4, 3);
    let inputs = [x.clone(), op.weight_shape(&x.channels)];
    cases.push(Case::new("convolution", inputs, move |graph, inputs| graph.apply(op.clone(), inputs)));
    let (op, other) = (Convolution::new(Window::same(3), 9).relu(), Shape::image(2, 3, 4, 3));
    let inputs = [x.clone(), op.weight_shape(&x.channels), Shape::vector(Channels::new(9)), other];
    cases.push(Case::new("convolution", inputs, move |graph, inputs| {
        let out = graph.apply_one(op.clone(), &inputs[..3])?;
        Ok(vec![graph.concat(&[inputs[3], out])?])
    }));
    let (op, a, b) = (Convolution::new(Window::same(3), 3), Shape::image(1, 3, 4, 1), Shape::image(1, 3, 4, 9));
    let joined = Channels::concat([&a.channels, &b.channels]);
    let inputs = [a, b, op.weight_shape(&joined), Shape::vector(Channels::new(3))];
    let joins = move |graph: &mut Graph, inputs: &[ValueId]| {
        let joined = graph.concat(&inputs[..2])?;
        graph.apply(op.clone(), &[joined, inputs[2], inputs[3]])
    };
    cases.push(Case::new("convolution", inputs, joins).rows(2, joined));
    cases
}
