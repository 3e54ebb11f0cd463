//! A residual block's two convolutions and their sum (equation 1): the gradient needs of the first no more than where it is
//! above zero.

use super::batch_norm::{by_running, channel_vectors, launch_inference};
use super::border::{BorderGradient, border_kind, border_shape, has_kinds};
use super::case::Case;
use super::convolution::{
    BiasOf, Convolution, ConvolutionInputGradient, ConvolutionWeightGradient, CpuEpilogue, Epilogue, Form, Rectified,
    SHORTCUT, TensorProduct, TensorWeights, tensor_form,
};
use super::relu::Relu;
use super::window::Window;
use super::{Gradient, Op};
use crate::device::Precision;
use crate::device::cpu::operand::task_positions;
use crate::device::cpu::tile::Start;
use crate::device::cpu::{Call, Cpu, Input, OnCpu, Output, Real};
use crate::device::cuda::{Launcher, OnCuda, Operand, PixelGrid, scratch_elements};
use crate::device::kernels::{Element, RESIDUAL_BACKWARD, RESIDUAL_FORWARD};
use crate::graph::{Graph, ValueId};
use crate::tensor::{CHANNEL_ALIGNMENT, Channels, Shape, Storage};
use crate::{Error, Result};
use rayon::prelude::*;

/// `out = relu(relu(convolution(x, 3x3) + bias) + convolution(x, 1x1) + bias)`, in inference batch-normalised.
///
/// Inputs: `x`, weight and bias of the 3x3 convolution, weight and bias of the 1x1 convolution, what is added to the first
/// convolution at the border if anything is, and `gamma`, `beta`, running mean and running variance if it is normalised.
/// Outputs: `out`, and if wanted where the inner ReLU's output, as it would be stored, is above zero, in [`Shape::bits`] of
/// `out`.
#[derive(Debug, Clone)]
pub struct Residual {
    /// The 3x3 convolution, whose sums pass a ReLU.
    pub main: Convolution,
    /// The 1x1 convolution.
    pub shortcut: Convolution,
    /// Whether the bits are wanted: the gradient needs them.
    pub positive: bool,
    /// Whether a value is added for each kind of pixel at the border: [`FoldResidual`](super::fold_residual::FoldResidual) makes
    /// some. Height and width must then be 2 at least.
    pub border: bool,
    /// Whether the result is normalised, as by [`BatchNormInference`](super::batch_norm::BatchNormInference). There is no
    /// gradient then.
    pub normalised: bool,
}

impl Residual {
    /// A block to `out` channels.
    pub fn new(out: usize, positive: bool) -> Self {
        let main = Convolution::new(Window::same(3), out);
        Residual { main, shortcut: Convolution::new(SHORTCUT, out), positive, border: false, normalised: false }
    }

    /// A block to `out` channels, to whose first convolution something is added at the border.
    pub fn bordered(out: usize, positive: bool) -> Self {
        Residual { border: true, ..Residual::new(out, positive) }
    }

    /// A block to `out` channels and the batch norm behind it, in inference.
    pub fn normalised(out: usize) -> Self {
        Residual { normalised: true, ..Residual::new(out, false) }
    }

    /// The shapes of both convolutions' weights and biases, for inputs with these channels.
    pub fn parameter_shapes(&self, input: &Channels) -> [Shape; 4] {
        let [main, shortcut] = [&self.main, &self.shortcut].map(|op| op.weight_shape(input));
        let bias = Shape::vector(self.main.out.clone());
        [main, bias.clone(), shortcut, bias]
    }
}

impl Op for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        let shortcut = self.shortcut.outputs(&[inputs[0], inputs[3], inputs[4]])?;
        let mut outputs = self.main.outputs(&inputs[..3])?;
        if shortcut != outputs {
            return Err(Error::shape("residual", format!("{} cannot be added to {}", shortcut[0], outputs[0])));
        }
        if self.normalised && self.border {
            return Err(Error::shape(
                "residual",
                "a block is normalised, or something is added at its border, not both",
            ));
        }
        if self.normalised {
            channel_vectors(&[&[&outputs[0]], &inputs[5..]].concat())?;
        }
        if self.border {
            let out = &outputs[0];
            if *inputs[5] != border_shape(out.channels.clone()) || !has_kinds(out) {
                return Err(Error::shape("residual", format!("{} cannot be added at the border of {out}", inputs[5])));
            }
        }
        outputs.extend(self.positive.then(|| outputs[0].bits()));
        Ok(outputs)
    }

    fn ends_in_relu(&self) -> bool {
        !self.normalised
    }

    fn saturates(&self, inputs: &[&Shape], outputs: &[&Shape]) -> bool {
        !self.normalised && self.main.saturates(&inputs[..3], outputs)
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let ([x, main, shortcut], dout) = ([0, 1, 3].map(|index| context.inputs[index]), context.of(0));
        let input = graph.shape(x).clone();
        let positive = context.outputs.get(1).ok_or_else(|| Error::shape("residual", "no gradient without bits"))?;
        let mut gradients = vec![None; context.inputs.len()];
        if context.wanted[1..5].contains(&true) {
            let found = graph.apply(ResidualWeightGradient, &[dout, x, *positive])?;
            gradients.iter_mut().skip(1).zip(found).for_each(|(gradient, found)| *gradient = Some(found));
        }
        if self.border && context.wanted[5] {
            gradients[5] = Some(graph.apply_one(BorderGradient, &[dout, *positive])?);
        }
        if context.wanted[0] {
            let op = ConvolutionInputGradient::of_residual(input);
            gradients[0] = Some(graph.apply_one(op, &[dout, main, shortcut, *positive])?);
        }
        Ok(gradients)
    }

    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        [&self.main, &self.shortcut].iter().map(|op| op.operations(&inputs[..1], &outputs[..1])).sum()
    }
}

/// The gradients of both convolutions' weights and biases, in the order of [`Residual`]'s inputs.
///
/// Inputs: `dout`, which for the 3x3 convolution is zero where there is no bit, `x`, the bits.
#[derive(Debug)]
pub struct ResidualWeightGradient;

impl ResidualWeightGradient {
    /// Those of the 3x3 convolution, and of the 1x1 one.
    const PARTS: [ConvolutionWeightGradient; 2] = [
        ConvolutionWeightGradient { window: Window::same(3), groups: 1, bias: BiasOf::Out },
        ConvolutionWeightGradient { window: SHORTCUT, groups: 1, bias: BiasOf::Out },
    ];
}

impl Op for ResidualWeightGradient {
    fn name(&self) -> &'static str {
        "residual_weight_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        if *inputs[2] != inputs[0].bits() {
            let message = format!("{} is not the bits of {}", inputs[2], inputs[0]);
            return Err(Error::shape("residual_weight_gradient", message));
        }
        let outputs = Self::PARTS.iter().map(|part| part.outputs(&inputs[..2])).collect::<Result<Vec<_>>>()?;
        Ok(outputs.concat())
    }

    fn operations(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        Self::PARTS.iter().map(|part| part.operations(&inputs[..2], outputs)).sum()
    }
}

// ------------------------------------------------------------------ CPU

/// Bits of the stored channels of a tensor's pixels, on the CPU.
#[derive(Clone, Copy)]
pub(super) struct BitsInput<'a, T> {
    groups: &'a [T],
    of_pixel: usize,
}

impl<'a, T: Real> BitsInput<'a, T> {
    pub fn new(bits: Input<'a, T>, channels: usize) -> Self {
        BitsInput { groups: bits.dense(), of_pixel: channels.div_ceil(CHANNEL_ALIGNMENT) }
    }

    /// Writes a tensor into a workspace, but zero where there is no bit. Returns what it wrote, and the rest.
    pub fn mask_into<'w>(&self, workspace: &'w mut [T], tensor: Input<'w, T>) -> (Input<'w, T>, &'w mut [T]) {
        let (masked, rest) = workspace.split_at_mut(tensor.shape().elements());
        Output::dense_in(masked, tensor.shape())
            .for_each_pixel(|position, pixel| self.write_masked(tensor, position, pixel));
        (Input::dense_in(masked, tensor.shape()), rest)
    }

    /// Writes a pixel of a tensor, but zero where there is no bit.
    pub fn write_masked(&self, tensor: Input<T>, position: usize, pixel: &mut [T]) {
        let groups = &self.groups[position * self.of_pixel..][..self.of_pixel];
        let values = tensor.pixel(position).chunks(CHANNEL_ALIGNMENT);
        for ((out, values), group) in pixel.chunks_mut(CHANNEL_ALIGNMENT).zip(values).zip(groups) {
            let bits = group.to_f64() as u8;
            out.iter_mut().zip(values).enumerate().for_each(|(bit, (out, &value))| {
                *out = if bits >> bit & 1 == 1 { value } else { T::ZERO };
            });
        }
    }
}

/// Adds to the 3x3 convolution what there is for the border, makes what is below zero zero, writes what is above, if that is
/// wanted, and adds a bias.
fn begin_sum<T: Real>(out: Output<T>, bits: Option<Output<T>>, border: Option<&[T]>, bias: &[T]) {
    let (groups, count) = (out.shape().bit_groups(), task_positions(out.channels()));
    let (spatial, channels) = (out.shape().spatial, out.channels());
    let rectify = |position, pixel: &mut [T]| {
        if let Some((border, kind)) = border.and_then(|border| Some((border, border_kind(position, spatial)?))) {
            pixel.iter_mut().zip(&border[kind * channels..]).for_each(|(value, &added)| *value += added);
        }
        pixel.iter_mut().for_each(|value| *value = if *value < T::ZERO { T::ZERO } else { *value });
    };
    let add = |pixel: &mut [T]| pixel.iter_mut().zip(bias).for_each(|(value, &bias)| *value += bias);
    let Some(bits) = bits else {
        return out.for_each_pixel(|position, pixel| {
            rectify(position, pixel);
            add(pixel);
        });
    };
    out.blocks(count).zip(bits.blocks(count * groups)).for_each(|(mut out, mut bits)| {
        for (position, groups) in out.positions().zip(bits.dense().chunks_exact_mut(groups)) {
            let pixel = out.pixel(position);
            rectify(position, pixel);
            for (group, values) in groups.iter_mut().zip(pixel.chunks(CHANNEL_ALIGNMENT)) {
                let bits = values.iter().enumerate().map(|(bit, &value)| u8::from(value > T::ZERO) << bit);
                *group = T::from_f64(bits.sum::<u8>().into());
            }
            add(pixel);
        }
    });
}

impl<T: Real> OnCpu<T> for Residual {
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        let main = self.main.packed(cpu, [inputs[0], inputs[1]], outputs[0]);
        let shortcut = self.shortcut.packed(cpu, [inputs[0], inputs[3]], outputs[0]);
        main.max(shortcut) + if self.normalised { normalised_elements(outputs[0]) } else { 0 }
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let workspace = call.workspace();
        if !self.normalised {
            let (out, bits) = (call.output(0), self.positive.then(|| call.output(1)));
            return self.sum(cpu, &call, workspace, out, bits);
        }
        // The sum is read and written several times: side by side, where the output may be a slice of a larger tensor.
        let out = call.output(0);
        let (sum, workspace) = workspace.split_at_mut(normalised_elements(out.shape()));
        let (sum, scale) = sum.split_at_mut(out.shape().elements());
        self.sum(cpu, &call, workspace, Output::dense_in(sum, out.shape()), None);
        if out.shape().storage == Storage::Reduced {
            cpu.round(sum, self.main.is_limited(3, call.input(0).shape(), out.shape()));
        }
        let normalise = by_running([5, 6, 7, 8].map(|index| call.input(index).dense()), scale);
        let (sum, channels) = (&*sum, out.channels());
        out.for_each_pixel(|position, pixel| normalise(&sum[position * channels..][..channels], pixel));
    }
}

/// Elements of workspace for the sum that is normalised, and for the scale and the shift.
fn normalised_elements(out: &Shape) -> usize {
    out.elements() + 2 * out.channels.stored()
}

impl Residual {
    /// Computes what is not normalised yet.
    fn sum<T: Real>(
        &self,
        cpu: &Cpu<T>,
        call: &Call<T>,
        workspace: &mut [T],
        mut out: Output<T>,
        bits: Option<Output<T>>,
    ) {
        let [x, main, main_bias, shortcut, shortcut_bias] = [0, 1, 2, 3, 4].map(|index| call.input(index));
        let border = self.border.then(|| call.input(5).dense());
        let (plain, relu) = (CpuEpilogue::default(), CpuEpilogue { relu: true, ..CpuEpilogue::default() });
        self.main.compute(cpu, workspace, [x, main], out.lend(), Start::Bias(main_bias.dense()), plain);
        begin_sum(out.lend(), bits, border, shortcut_bias.dense());
        self.shortcut.compute(cpu, workspace, [x, shortcut], out, Start::Out, relu);
    }
}

impl<T: Real> OnCpu<T> for ResidualWeightGradient {
    fn workspace(&self, cpu: &Cpu<T>, inputs: &[&Shape], _: &[&Shape]) -> usize {
        let parts = Self::PARTS.iter().map(|part| part.cpu_workspace(cpu, [inputs[0], inputs[1]]));
        inputs[0].elements() + parts.max().unwrap_or(0)
    }

    fn run(&self, cpu: &Cpu<T>, mut call: Call<T>) {
        let (dout, x) = (call.input(0), call.input(1));
        let positive = BitsInput::new(call.input(2), dout.channels());
        let (masked, workspace) = positive.mask_into(call.workspace(), dout);
        for (index, (part, dout)) in Self::PARTS.iter().zip([masked, dout]).enumerate() {
            let (dweight, dbias) = (call.output(2 * index), call.output(2 * index + 1));
            part.compute(cpu, workspace, [dout, x], dweight, Some(dbias));
        }
    }
}

// ------------------------------------------------------------------ CUDA

/// Whether all channels come in eights that can be read and written by 16 bytes.
fn in_eights(operands: &[Operand]) -> bool {
    operands.iter().all(|operand| operand.is_aligned() && operand.channels().is_multiple_of(CHANNEL_ALIGNMENT))
}

/// The form that tensor cores do, of both convolutions.
fn form(precision: Precision, x: &Shape, out: &Shape) -> Option<Form> {
    tensor_form(precision, Window::same(3), 1, [x, out])
}

impl OnCuda for Residual {
    fn workspace(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        if form(precision, inputs[0], outputs[0]).is_some() { 0 } else { scratch_elements(precision, outputs[0]) }
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [x, main, main_bias, shortcut, shortcut_bias] = [0, 1, 2, 3, 4].map(|index| launcher.input(index));
        let out = launcher.output(0);
        let positive = self.positive.then(|| launcher.output(1).pointer);
        let norm = self.normalised.then(|| [5, 6, 7, 8].map(|index| launcher.input(index)));
        if let Some(form) = form(launcher.precision(), x.shape, out.shape) {
            let norm = norm.map(|norm| norm.map(|operand| operand.pointer));
            let border = self.border.then(|| launcher.input(5).pointer);
            let shortcut = [shortcut, shortcut_bias].map(|operand| operand.pointer);
            let block = Rectified { shortcut, border, positive, norm };
            let product = TensorProduct {
                form,
                target: out,
                source: x,
                weight: main.pointer,
                bias: Some((main_bias.pointer, out.channels())),
                epilogue: Epilogue { relu: true, ..Epilogue::default() },
            };
            return product.forward(launcher, Some(&block));
        }
        let part = launcher.scratch(0, out);
        self.main.launch_untensored(launcher, out, [x, main], Some(main_bias.pointer))?;
        self.shortcut.launch_untensored(launcher, part, [x, shortcut], Some(shortcut_bias.pointer))?;
        let (pixels, channels, [_, height, width]) = (out.positions(), out.channels(), out.shape.spatial);
        let none = out.pointer.unused(Element::F32);
        let border = if self.border { launcher.input(5).pointer } else { none };
        launcher
            .kernel(RESIDUAL_FORWARD)
            .pointers([out.pointer, positive.unwrap_or(out.pointer.unused(Element::Bits)), out.pointer, part.pointer])
            .pointers([border])
            .sizes([pixels, channels, out.stride, out.stride, part.stride])
            .sizes([positive.map_or(0, |_| out.shape.bit_groups()), height, width])
            .flag(self.border)
            .flag(in_eights(&[out, part]))
            .launch(PixelGrid::eights(channels).over(pixels, 1))?;
        norm.map_or(Ok(()), |norm| launch_inference(launcher, [out, out], norm))
    }
}

/// Writes `dout` into the workspace, from this element on, but zero where there is no bit: for kernels that do not mask it in
/// passing. (An op's first launch is taken for what computes: this one should not be.)
pub(super) fn mask_into<'a>(
    launcher: &mut Launcher,
    start: usize,
    dout: Operand<'a>,
    positive: Operand,
) -> Result<Operand<'a>> {
    let (pixels, channels, masked) = (dout.positions(), dout.channels(), launcher.scratch(start, dout));
    launcher
        .kernel(RESIDUAL_BACKWARD)
        .pointers([masked, dout, positive].map(|operand| operand.pointer))
        .sizes([pixels, channels, masked.stride, dout.stride, dout.shape.bit_groups()])
        .flag(in_eights(&[masked, dout]))
        .launch(PixelGrid::eights(channels).over(pixels, 1))?;
    Ok(masked)
}

impl ResidualWeightGradient {
    /// Elements of workspace for the sums of parts, in whole 16 bytes: together both convolutions have as many parts as the 3x3
    /// one alone.
    fn parts_workspace(precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        let parts = Self::PARTS.iter().zip([outputs, &outputs[2..]]);
        let parts = parts.map(|(part, gradients)| part.cuda_workspace(precision, [inputs[0], inputs[1]], gradients));
        parts.max().unwrap_or(0).next_multiple_of(4)
    }
}

impl OnCuda for ResidualWeightGradient {
    fn workspace(&self, precision: Precision, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        // Behind the parts what has a bit of `dout`, where no kernel masks it in passing.
        Self::parts_workspace(precision, inputs, outputs) + scratch_elements(precision, inputs[0])
    }

    fn launch(&self, launcher: &mut Launcher) -> Result<()> {
        let [dout, x, positive] = [0, 1, 2].map(|index| launcher.input(index));
        let gradients = [0, 1, 2, 3].map(|index| launcher.output(index));
        if let Some(form) = form(launcher.precision(), x.shape, dout.shape) {
            let weights = TensorWeights::new(form, dout.shape, x.shape);
            if weights.launch_residual(launcher, &gradients, [dout, x, positive])? {
                return Ok(());
            }
        }
        let parts = Self::parts_workspace(
            launcher.precision(),
            &[dout.shape, x.shape],
            &gradients.map(|operand| operand.shape),
        );
        let [main, shortcut] = &Self::PARTS;
        shortcut.launch_from(launcher, [dout, x], &gradients[2..])?;
        let masked = mask_into(launcher, parts, dout, positive)?;
        main.launch_from(launcher, [masked, x], &gradients[..2])
    }
}

// ------------------------------------------------------------------ cases

/// A block of an image behind a ReLU, whose gradient is masked in passing.
fn case(x: Shape, output: usize) -> Case {
    let op = Residual::new(output, true);
    let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels)].concat();
    let case = Case::new("residual", inputs, move |graph, inputs| {
        let y = graph.apply_one(Relu, &inputs[..1])?;
        Ok(vec![graph.apply(op.clone(), &[&[y], &inputs[1..]].concat())?[0]])
    });
    case.rows(1, x.channels.clone()).rows(3, x.channels)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (input, output) in [(3, 1), (8, 33), (40, 9), (33, 3), (16, 72)] {
        cases.push(case(Shape::image(2, 5, 4, input), output));
    }
    // What the workspace has of an odd number of values.
    cases.push(case(Shape::image(1, 5, 5, 33), 3));
    // Output channels in 32s, whose weight gradients tensor cores compute in one pass.
    for (size, input, output) in [([5, 4], 17, 32), ([5, 4], 8, 64), ([9, 17], 9, 96)] {
        cases.push(case(Shape::image(2, size[0], size[1], input), output));
    }
    // Its output, and so the gradient of that, in a slice of a concatenation.
    let (op, x, other) = (Residual::new(32, true), Shape::image(2, 5, 4, 9), Shape::image(2, 5, 4, 3));
    let inputs = [&[other, x.clone()][..], &op.parameter_shapes(&x.channels)].concat();
    let concatenated = Case::new("residual", inputs, move |graph, inputs| {
        let out = graph.apply(op.clone(), &inputs[1..])?[0];
        Ok(vec![graph.concat(&[inputs[0], out])?])
    });
    cases.push(concatenated.rows(2, x.channels.clone()).rows(4, x.channels));
    // Channels and pixels enough for Winograd's way on the CPU.
    cases.push(case(Shape::image(1, 5, 7, 17), 16));
    // With something added at the border.
    for (size, input, output) in [([2, 2], 3, 1), ([5, 4], 8, 17), ([2, 18], 16, 8), ([3, 2], 9, 32)] {
        let op = Residual::bordered(output, true);
        let x = Shape::image(2, size[0], size[1], input);
        let border = border_shape(op.main.out.clone());
        let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &[border]].concat();
        let case = Case::new("residual", inputs, move |graph, inputs| Ok(vec![graph.apply(op.clone(), inputs)?[0]]));
        cases.push(case.rows(1, x.channels.clone()).rows(3, x.channels));
    }
    // Without the bits, as in inference.
    let (op, x) = (Residual::new(9, false), Shape::image(2, 4, 3, 16));
    let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels)].concat();
    cases.push(Case::new("residual", inputs, move |graph, inputs| graph.apply(op.clone(), inputs)).forward_only());
    // Normalised, as in inference; the last input is a variance.
    for (input, output) in [(3, 4), (16, 40)] {
        let (op, x) = (Residual::normalised(output), Shape::image(2, 4, 3, input));
        let norm = [(); 4].map(|()| Shape::vector(op.main.out.clone()));
        let inputs = [std::slice::from_ref(&x), &op.parameter_shapes(&x.channels), &norm].concat();
        let case = Case::new("residual", inputs, move |graph, inputs| graph.apply(op.clone(), inputs));
        cases.push(case.rows(1, x.channels.clone()).rows(3, x.channels).fraction(8).forward_only());
    }
    cases
}
