//! Builds a network's graph, layer by layer, in the order and with the parameter names of a weights file.

use super::parameter::{Initial, Layout, Parameter};
use super::{Loss, Model};
use crate::Result;
use crate::graph::{Graph, Region, ValueId};
use crate::ops::Op;
use crate::ops::adam::{Adam, moment_starts};
use crate::ops::batch_norm::{BatchNorm, BatchNormInference, BatchNormScale, BatchNormScaleInference};
use crate::ops::channel_gate::ChannelGate;
use crate::ops::channel_pool::ChannelPool;
use crate::ops::convolution::Convolution;
use crate::ops::dice_loss::DiceLoss;
use crate::ops::fold::Fold;
use crate::ops::fold_residual::FoldResidual;
use crate::ops::pixel_pool::PixelPool;
use crate::ops::residual::Residual;
use crate::ops::robust_dice_loss::RobustDiceLoss;
use crate::ops::sigmoid::Sigmoid;
use crate::ops::transposed_convolution::TransposedConvolution;
use crate::ops::window::Window;
use crate::tensor::{Channels, Shape};
use std::collections::HashMap;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward with the batch's statistics, backward, Adam.
    Train,
    /// Forward with the batch's statistics, for the running ones alone.
    Statistics,
    /// Forward with the running statistics.
    Evaluate,
}

/// A step's graph and the values that are written and read.
#[derive(Debug)]
pub struct StepGraph {
    pub graph: Graph,
    pub mode: Mode,
    /// Images, a channel each.
    pub image: ValueId,
    /// Masks: 0 or 1.
    pub target: ValueId,
    /// A weight for each sample: 0 or 1.
    pub weight: ValueId,
    /// What batch norm's running statistics take of the new ones, a scalar.
    pub momentum: ValueId,
    /// The loss's own gradient, a scalar: 1, or a scale.
    pub loss_scale: ValueId,
    /// What [`crate::ops::adam::rate`] returns.
    pub rate: ValueId,
    /// Foreground probabilities.
    pub prediction: ValueId,
    pub loss: ValueId,
    pub sample_losses: ValueId,
    /// Whether the gradients were finite: 1, or 0 if the optimizer left out the step; only if the mode is [`Mode::Train`].
    pub finite: Option<ValueId>,
    /// All gradients, laid out like the parameters; only if the mode is [`Mode::Train`].
    pub gradients: Option<ValueId>,
    pub parameters: Vec<Parameter>,
}

impl StepGraph {
    /// The values that are read after a run.
    pub fn kept(&self) -> Vec<ValueId> {
        if self.mode == Mode::Statistics {
            return Vec::new();
        }
        let always = [self.prediction, self.loss, self.sample_losses];
        always.into_iter().chain(self.gradients).chain(self.finite).collect()
    }
}

/// Where each parameter starts in its region, by name.
pub(super) type Starts = HashMap<String, usize>;

pub(super) fn build(
    model: &Model,
    mode: Mode,
    batch: usize,
    [height, width]: [usize; 2],
    starts: &Starts,
) -> Result<StepGraph> {
    let mut graph = Graph::new();
    let image = graph.input(Shape::image(batch, height, width, 1));
    let target = graph.input(Shape::image(batch, height, width, 1));
    let weight = graph.input(Shape::flat(batch));
    let [momentum, loss_scale] = [(); 2].map(|()| graph.input(Shape::flat(1)));
    let rate = graph.input(Shape::flat(2));
    let mut builder = Builder { graph, model, mode, momentum, starts, parameters: Vec::new(), values: Vec::new() };
    let prediction = builder.network(image)?;
    let losses = match model.loss {
        Loss::Dice => builder.graph.apply(DiceLoss, &[prediction, target, weight])?,
        Loss::RobustDice => builder.graph.apply(RobustDiceLoss, &[prediction, target, weight])?,
    };
    let (mut gradients, mut finite) = (None, None);
    if mode == Mode::Train {
        let trained = builder.train(losses[0], loss_scale, rate)?;
        (gradients, finite) = (Some(trained.0), Some(trained.1));
    }
    let Builder { graph, parameters, .. } = builder;
    Ok(StepGraph {
        graph,
        mode,
        image,
        target,
        weight,
        momentum,
        loss_scale,
        rate,
        prediction,
        loss: losses[0],
        sample_losses: losses[1],
        finite,
        gradients,
        parameters,
    })
}

struct Builder<'a> {
    graph: Graph,
    model: &'a Model,
    mode: Mode,
    momentum: ValueId,
    starts: &'a Starts,
    parameters: Vec<Parameter>,
    values: Vec<ValueId>,
}

/// A block's outputs: of its second convolution, and of all of it, before its batch norm.
struct BlockOutput {
    convolution: ValueId,
    whole: ValueId,
}

/// What a linear layer or a residual block reads: a tensor, and the scale, shift and mean of its channels if a batch norm is to
/// be folded into it.
#[derive(Clone, Copy)]
struct Features {
    x: ValueId,
    norm: Option<[ValueId; 3]>,
}

impl Builder<'_> {
    /// From an image to foreground probabilities.
    fn network(&mut self, image: ValueId) -> Result<ValueId> {
        let architecture = self.model.architecture;
        let widths = self.model.widths;
        let levels = widths.len();
        let (mut x, mut skips) = (image, Vec::new());
        for (level, &width) in widths[..levels - 1].iter().enumerate() {
            let out = self.block(&format!("encoder.{level}"), x, width, false)?;
            let [skip, maxima] = self.encoder_end(level, &out)?;
            skips.push(skip);
            x = maxima;
        }
        let name = format!("encoder.{}", levels - 1);
        let deepest = self.block(&name, x, widths[levels - 1], false)?.whole;
        let mut features = match architecture.residual || architecture.dense {
            true => Features { x: deepest, norm: None },
            false => self.normalised(&format!("{name}.bn"), deepest)?,
        };
        for (index, level) in (0..levels - 1).rev().enumerate() {
            let up = self.up(&format!("up.{index}"), features, widths[level])?;
            let joined = self.graph.concat(&[up, skips[level]])?;
            let name = format!("decoder.{index}");
            let out = self.block(&name, joined, widths[level], architecture.attention)?;
            features = self.normalised(&format!("{name}.bn"), out.whole)?;
        }
        let head = self.head(features)?;
        self.graph.apply_one(Sigmoid, &[head])
    }

    /// What the decoder of a level gets from its encoder, and what the next encoder gets.
    fn encoder_end(&mut self, level: usize, out: &BlockOutput) -> Result<[ValueId; 2]> {
        let (architecture, norm) = (self.model.architecture, format!("encoder.{level}.bn"));
        if architecture.dense && level == 3 {
            let outputs = self.apply_batch_norm(&norm, out.whole, true)?;
            return Ok([outputs[0], outputs[outputs.len() - 1]]);
        }
        let (mut features, maxima) = self.pooled(&norm, out.whole)?;
        // Only with all three parts does the whole block's output go on: Table 4's last count says so.
        if !(architecture.residual && architecture.path && architecture.attention) {
            features = Features { x: out.convolution, norm: None };
        }
        let (blocks, width) = (if architecture.path { 4 - level } else { 0 }, self.model.widths[level]);
        for index in 0..blocks {
            features = self.residual_block(&format!("path.{level}.{index}"), features, width, index + 1 == blocks)?;
        }
        Ok([features.x, maxima])
    }

    /// Two convolutions, CBAM in a decoder with attention, the block's input beside the result.
    fn block(&mut self, name: &str, x: ValueId, width: usize, attention: bool) -> Result<BlockOutput> {
        let convolution = Convolution::new(Window::same(3), width).relu();
        let mut hidden = self.convolution(&format!("{name}.conv1"), x, convolution.clone(), true)?;
        if self.model.architecture.dense {
            hidden = self.graph.concat(&[x, hidden])?;
        }
        let y = self.convolution(&format!("{name}.conv2"), hidden, convolution, true)?;
        let mut z = y;
        if attention {
            z = self.attention(&format!("{name}.attention"), y, width)?;
        }
        if self.model.architecture.residual {
            z = self.graph.concat(&[x, z])?;
        }
        Ok(BlockOutput { convolution: y, whole: z })
    }

    /// `BN(ReLU(ReLU(conv3x3(x)) + conv1x1(x)))`, equation 1. Its batch norm is left to the block behind it, unless it is the
    /// last.
    fn residual_block(&mut self, name: &str, features: Features, width: usize, last: bool) -> Result<Features> {
        let Features { x, norm: earlier } = features;
        let inference = self.mode == Mode::Evaluate;
        let positive = self.mode == Mode::Train;
        let op = match (inference, earlier) {
            (true, _) => Residual::normalised(width),
            (false, Some(_)) => Residual::bordered(width, positive),
            (false, None) => Residual::new(width, positive),
        };
        let mut operands = vec![x];
        for (part, convolution) in [("conv", &op.main), ("shortcut", &op.shortcut)] {
            let kernel = convolution.window.kernel;
            operands.extend(self.weight_and_bias(&format!("{name}.{part}"), x, convolution, &kernel[1..]));
        }
        let norm = format!("{name}.bn");
        if inference {
            operands.extend(self.norm_parameters(&norm, &op.main.out));
            return Ok(Features { x: self.graph.apply_one(op, &operands)?, norm: None });
        }
        if let Some(earlier) = earlier {
            operands.splice(1.., self.graph.apply(FoldResidual, &[&operands[1..], &earlier].concat())?);
        }
        let sum = self.graph.apply(op, &operands)?[0];
        match last {
            true => Ok(Features { x: self.batch_norm(&norm, sum)?, norm: None }),
            false => self.normalised(&norm, sum),
        }
    }

    /// CBAM, spatial attention first (equations 2 to 4).
    fn attention(&mut self, name: &str, x: ValueId, width: usize) -> Result<ValueId> {
        let pooled = self.graph.apply(ChannelPool, &[x])?[0];
        let spatial = Convolution::new(Window::same(7), 1);
        let spatial = self.convolution(&format!("{name}.spatial"), pooled, spatial, false)?;
        let map = self.graph.apply_one(Sigmoid, &[spatial])?;
        let pooled = self.graph.apply(PixelPool, &[x, map])?[0];
        let reduced = Convolution::new(Window::same(1), (width / 8).max(1)).relu().full();
        let reduced = self.layer(&format!("{name}.fc1"), pooled, reduced, true, &[])?;
        let logits = Convolution::new(Window::same(1), width).full();
        let logits = self.layer(&format!("{name}.fc2"), reduced, logits, true, &[])?;
        Ok(self.graph.apply(ChannelGate, &[x, map, logits])?[0])
    }

    fn convolution(&mut self, name: &str, x: ValueId, op: Convolution, bias: bool) -> Result<ValueId> {
        let kernel = op.window.kernel;
        self.layer(name, x, op, bias, &kernel[1..])
    }

    /// A convolution whose weights' shape in a file ends in `kernel`: nothing, if the file has a linear layer.
    fn layer(&mut self, name: &str, x: ValueId, op: Convolution, bias: bool, kernel: &[usize]) -> Result<ValueId> {
        let parameters = match bias {
            true => self.weight_and_bias(name, x, &op, kernel).to_vec(),
            false => vec![self.convolution_weight(name, x, &op, kernel)],
        };
        self.graph.apply_one(op, &[&[x], &parameters[..]].concat())
    }

    fn weight_and_bias(&mut self, name: &str, x: ValueId, op: &Convolution, kernel: &[usize]) -> [ValueId; 2] {
        let weight = self.convolution_weight(name, x, op, kernel);
        [weight, self.vector(format!("{name}.bias"), &op.out, 0.0, Region::Parameters)]
    }

    fn convolution_weight(&mut self, name: &str, x: ValueId, op: &Convolution, kernel: &[usize]) -> ValueId {
        let (input, output) = (self.graph.shape(x).channels.clone(), op.out.clone());
        let shape = [&[output.count(), input.count()], kernel].concat();
        let inputs = input.count() * op.window.taps();
        let stored = op.weight_shape(&input);
        let layout = Layout::Convolution { input, output };
        self.parameter(format!("{name}.weight"), shape, Initial::HeNormal { inputs }, layout, stored)
    }

    /// To one channel.
    fn head(&mut self, features: Features) -> Result<ValueId> {
        let op = Convolution::new(Window::same(1), 1);
        let [weight, bias] = self.weight_and_bias("head", features.x, &op, &[1, 1]);
        self.linear(op, features, weight, bias)
    }

    /// A layer of weight and bias, into which its input's batch norm is folded.
    fn linear(&mut self, op: impl Op + 'static, features: Features, weight: ValueId, bias: ValueId) -> Result<ValueId> {
        let Features { x, norm } = features;
        let Some([scale, shift, mean]) = norm else { return self.graph.apply_one(op, &[x, weight, bias]) };
        let folded = self.graph.apply(Fold, &[weight, bias, scale, shift, mean])?;
        self.graph.apply_one(op, &[x, folded[0], folded[1]])
    }

    fn up(&mut self, name: &str, features: Features, width: usize) -> Result<ValueId> {
        let (input, output) = (self.graph.shape(features.x).channels.clone(), Channels::new(width));
        let op = TransposedConvolution { kernel: [1, 2, 2], out: output.clone() };
        let shape = vec![input.count(), output.count(), 2, 2];
        let initial = Initial::HeNormal { inputs: input.count() };
        let stored = op.weight_shape(&input);
        let layout = Layout::TransposedConvolution { input, output: output.clone() };
        let weight = self.parameter(format!("{name}.weight"), shape, initial, layout, stored);
        let bias = self.vector(format!("{name}.bias"), &output, 0.0, Region::Parameters);
        self.linear(op, features, weight, bias)
    }

    fn batch_norm(&mut self, name: &str, x: ValueId) -> Result<ValueId> {
        Ok(self.apply_batch_norm(name, x, false)?[0])
    }

    fn apply_batch_norm(&mut self, name: &str, x: ValueId, pooled: bool) -> Result<Vec<ValueId>> {
        let inputs = self.batch_norm_inputs(name, x);
        match self.mode {
            Mode::Evaluate => self.graph.apply(BatchNormInference { pooled }, &inputs),
            Mode::Train | Mode::Statistics => {
                self.graph.apply(BatchNorm { pooled }, &[&inputs[..], &[self.momentum]].concat())
            }
        }
    }

    /// A batch norm that only a linear layer or a residual block reads is left to that.
    fn normalised(&mut self, name: &str, x: ValueId) -> Result<Features> {
        let inputs = self.batch_norm_inputs(name, x);
        let [_, gamma, beta, mean, variance] = inputs;
        let norm = match self.mode {
            Mode::Evaluate => {
                let found = self.graph.apply(BatchNormScaleInference, &[gamma, beta, mean, variance])?;
                [found[0], found[1], mean]
            }
            Mode::Train | Mode::Statistics => return Ok(self.batch_norm_scale(inputs, false)?.0),
        };
        Ok(Features { x, norm: Some(norm) })
    }

    /// A tensor with its batch norm by the batch's statistics, and all that the op finds.
    fn batch_norm_scale(&mut self, inputs: [ValueId; 5], pooled: bool) -> Result<(Features, Vec<ValueId>)> {
        let found = self.graph.apply(BatchNormScale { pooled }, &[&inputs[..], &[self.momentum]].concat())?;
        Ok((Features { x: inputs[0], norm: Some([found[0], found[1], found[2]]) }, found))
    }

    /// The same of an encoder, and the maxima of its windows of 2x2 pixels.
    fn pooled(&mut self, name: &str, x: ValueId) -> Result<(Features, ValueId)> {
        if self.mode == Mode::Evaluate {
            let found = self.apply_batch_norm(name, x, true)?;
            return Ok((Features { x: found[0], norm: None }, found[1]));
        }
        let inputs = self.batch_norm_inputs(name, x);
        let (features, found) = self.batch_norm_scale(inputs, true)?;
        Ok((features, found[6]))
    }

    /// A tensor, and the parameters and running statistics of its batch norm.
    fn batch_norm_inputs(&mut self, name: &str, x: ValueId) -> [ValueId; 5] {
        let channels = self.graph.shape(x).channels.clone();
        let [gamma, beta, mean, variance] = self.norm_parameters(name, &channels);
        [x, gamma, beta, mean, variance]
    }

    /// Scale, shift, running mean and running variance of a batch norm.
    fn norm_parameters(&mut self, name: &str, channels: &Channels) -> [ValueId; 4] {
        [
            self.vector(format!("{name}.weight"), channels, 1.0, Region::Parameters),
            self.vector(format!("{name}.bias"), channels, 0.0, Region::Parameters),
            self.vector(format!("{name}.running_mean"), channels, 0.0, Region::Statistics),
            self.vector(format!("{name}.running_var"), channels, 1.0, Region::Statistics),
        ]
    }

    fn vector(&mut self, name: String, channels: &Channels, value: f32, region: Region) -> ValueId {
        let layout = Layout::Vector { channels: channels.clone() };
        let (shape, stored) = (vec![channels.count()], Shape::vector(channels.clone()));
        self.add(Parameter { name, shape, region, start: 0, initial: Initial::Constant(value), layout, stored })
    }

    fn parameter(
        &mut self,
        name: String,
        shape: Vec<usize>,
        initial: Initial,
        layout: Layout,
        stored: Shape,
    ) -> ValueId {
        self.add(Parameter { name, shape, region: Region::Parameters, start: 0, initial, layout, stored })
    }

    fn add(&mut self, mut parameter: Parameter) -> ValueId {
        parameter.start = self.starts.get(&parameter.name).copied().unwrap_or(0);
        let value = self.graph.state(parameter.stored.clone(), parameter.region, parameter.start);
        self.parameters.push(parameter);
        self.values.push(value);
        value
    }

    /// Adds the gradients of the loss and the optimizer's step; returns them, and whether they are finite.
    fn train(&mut self, loss: ValueId, loss_scale: ValueId, rate: ValueId) -> Result<(ValueId, ValueId)> {
        let trained = self.parameters.iter().zip(&self.values).filter(|(p, _)| p.region == Region::Parameters);
        let (starts, values): (Vec<usize>, Vec<ValueId>) = trained.map(|(p, &value)| (p.start, value)).unzip();
        let count = stored_count(&self.parameters, Region::Parameters);
        let gradients = self.graph.differentiate_into(&[(loss, loss_scale)], &values, &starts, count)?;
        let parameters = self.graph.state(Shape::flat(count), Region::Parameters, 0);
        let [first, second, _] = moment_starts(count);
        let moments = [first, second].map(|start| self.graph.state(Shape::flat(count), Region::Moments, start));
        let operands = [parameters, moments[0], moments[1], gradients, rate, loss_scale];
        let outputs = self.graph.apply(Adam, &operands)?;
        Ok((gradients, outputs[3]))
    }
}

/// Elements of a region that the parameters take.
pub(super) fn stored_count(parameters: &[Parameter], region: Region) -> usize {
    parameters.iter().filter(|parameter| parameter.region == region).map(Parameter::stored_count).sum()
}
