//! A model on a device: its weights there, and the steps that were loaded for it.

use super::builder::{Mode, StepGraph, stored_count};
use super::{LossScale, Model, Parameter};
use crate::Result;
use crate::device::cpu::Real;
use crate::device::{Device, LaunchTime, Precision, StepId};
use crate::graph::Region;
use crate::ops::adam::{self, moment_starts};
use crate::plan::Plan;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;

/// A network on a device.
pub struct Network<T> {
    model: Model,
    parameters: Vec<Parameter>,
    device: Box<dyn Device<T>>,
    /// Only in fp16.
    loss_scale: Option<LossScale>,
    /// That of the last training step.
    last_scale: f64,
}

/// A loaded step: its graph's values, without the graph itself.
#[derive(Debug)]
pub struct Step {
    pub id: StepId,
    pub mode: Mode,
    pub batch: usize,
    /// Height and width.
    pub size: [usize; 2],
    values: StepGraph,
}

/// What a step found.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses<T> {
    /// The loss that trains.
    pub batch: T,
    /// Each sample's own.
    pub samples: Vec<T>,
    /// Whether a training step's gradients were not finite, so that it changed nothing: in fp16 a sign that the scale
    /// of the loss was too large.
    pub skipped: bool,
}

impl<T: Real> Network<T> {
    /// A model on a device, all parameters zero.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(model: Model, mut device: Box<dyn Device<T>>) -> Result<Self> {
        let parameters = model.parameters();
        for region in [Region::Parameters, Region::Statistics] {
            device.allocate_state(region, stored_count(&parameters, region))?;
        }
        let loss_scale = (device.precision() == Precision::Fp16).then(LossScale::default);
        Ok(Network { model, parameters, device, loss_scale, last_scale: 1.0 })
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn device(&self) -> &dyn Device<T> {
        &*self.device
    }

    /// The scale of the loss, in fp16: part of a training run's state.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Sets what [`Network::loss_scale`] returned; nothing where the loss is not scaled.
    pub fn set_loss_scale(&mut self, scale: Option<LossScale>) {
        self.loss_scale = self.loss_scale.map(|own| scale.unwrap_or(own));
    }

    /// Fills the arena with a pattern that is not a number; see [`Device::poison`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn poison(&mut self) -> Result<()> {
        self.device.poison()
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The plan of a step: what it computes and needs.
    pub fn plan(&self, step: &Step) -> &Plan {
        self.device.plan(step.id)
    }

    /// Memory of state and arena: all that the loaded steps need.
    pub fn planned_bytes(&self) -> u64 {
        self.device.planned_bytes()
    }

    /// Starts from random weights (He-normal), the same for the same seed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for parameter in self.parameters.clone() {
            let values: Vec<T> =
                parameter.initial_values(&mut random).into_iter().map(|value| T::from_f64(value.into())).collect();
            self.write_parameter(&parameter, &values)?;
        }
        Ok(())
    }

    fn write_parameter(&mut self, parameter: &Parameter, values: &[T]) -> Result<()> {
        self.device.write_state(parameter.region, parameter.start, &parameter.to_stored(values))
    }

    /// All parameters and running statistics by name, each in its file's order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights(&mut self) -> Result<BTreeMap<String, Vec<T>>> {
        let mut weights = BTreeMap::new();
        for parameter in self.parameters.clone() {
            let mut stored = vec![T::ZERO; parameter.stored_count()];
            self.device.read_state(parameter.region, parameter.start, &mut stored)?;
            weights.insert(parameter.name.clone(), parameter.from_stored(&stored));
        }
        Ok(weights)
    }

    /// Sets all parameters and running statistics; `find` returns the values for a parameter.
    ///
    /// # Errors
    /// If `find` does, or the device fails.
    pub fn set_weights(&mut self, mut find: impl FnMut(&Parameter) -> Result<Vec<T>>) -> Result<()> {
        for parameter in self.parameters.clone() {
            let values = find(&parameter)?;
            self.write_parameter(&parameter, &values)?;
        }
        Ok(())
    }

    /// Adam's first and second moments by parameter name, each in its file's order.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If no training step was loaded.
    pub fn moments(&mut self) -> Result<[BTreeMap<String, Vec<T>>; 2]> {
        let mut moments = [BTreeMap::new(), BTreeMap::new()];
        for (order, moments) in moments.iter_mut().enumerate() {
            for (parameter, start) in self.moment_places(order) {
                let mut stored = vec![T::ZERO; parameter.stored_count()];
                self.device.read_state(Region::Moments, start, &mut stored)?;
                moments.insert(parameter.name.clone(), parameter.from_stored(&stored));
            }
        }
        Ok(moments)
    }

    /// Sets all moments; `find` returns the first (0) or second (1) ones of a parameter.
    ///
    /// # Errors
    /// If `find` does, or the device fails.
    ///
    /// # Panics
    /// If no training step was loaded.
    pub fn set_moments(&mut self, mut find: impl FnMut(usize, &Parameter) -> Result<Vec<T>>) -> Result<()> {
        for order in 0..2 {
            for (parameter, start) in self.moment_places(order) {
                let values = find(order, &parameter)?;
                self.device.write_state(Region::Moments, start, &parameter.to_stored(&values))?;
            }
        }
        Ok(())
    }

    /// The trained parameters, and where their first (0) or second (1) moments lie: all first ones come first.
    fn moment_places(&self, order: usize) -> Vec<(Parameter, usize)> {
        let first = moment_starts(stored_count(&self.parameters, Region::Parameters))[order];
        let trained = self.parameters.iter().filter(|parameter| parameter.region == Region::Parameters);
        trained.map(|parameter| (parameter.clone(), first + parameter.start)).collect()
    }

    /// Loads a step of `batch` images of `size` (height, width).
    ///
    /// # Errors
    /// If the size does not fit the network or the device has no room.
    pub fn load(&mut self, mode: Mode, batch: usize, size: [usize; 2]) -> Result<Step> {
        let mut values = self.model.graph(mode, batch, size)?;
        if mode == Mode::Train {
            let [.., end] = moment_starts(stored_count(&self.parameters, Region::Parameters));
            self.device.allocate_state(Region::Moments, end)?;
        }
        let graph = std::mem::take(&mut values.graph);
        let keep = values.kept();
        let id = self.device.load(graph, &keep)?;
        Ok(Step { id, mode, batch, size, values })
    }

    /// Writes a batch: images and masks of `batch * height * width` pixels, a weight for each image.
    ///
    /// # Errors
    /// If the device fails.
    pub fn write_batch(&mut self, step: &Step, image: &[T], target: &[T], weight: &[T]) -> Result<()> {
        self.device.write(step.id, step.values.image, image)?;
        if step.mode != Mode::Statistics {
            self.device.write(step.id, step.values.target, target)?;
            self.device.write(step.id, step.values.weight, weight)?;
        }
        Ok(())
    }

    /// One optimizer step, the `number`-th (from 1), on the batch that was written.
    ///
    /// # Errors
    /// If the device fails.
    pub fn train(&mut self, step: &Step, learning_rate: f64, number: u64) -> Result<Losses<T>> {
        self.begin_training(step, learning_rate, number)?;
        self.finish_training(step)
    }

    /// Begins an optimizer step. A GPU goes on with it alone: meanwhile the next batch can be prepared, and even written.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin_training(&mut self, step: &Step, learning_rate: f64, number: u64) -> Result<()> {
        assert_eq!(step.mode, Mode::Train, "the step trains");
        let rate = adam::rate(learning_rate, number).map(T::from_f64);
        self.device.write(step.id, step.values.rate, &rate)?;
        self.last_scale = self.loss_scale.map_or(1.0, |loss_scale| loss_scale.scale);
        self.device.write(step.id, step.values.loss_scale, &[T::from_f64(self.last_scale)])?;
        self.device.write(step.id, step.values.momentum, &[T::from_f64(MOMENTUM)])?;
        self.device.run(step.id)
    }

    /// What the step that was begun came to, once it is done.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish_training(&mut self, step: &Step) -> Result<Losses<T>> {
        let mut finite = [T::ZERO];
        self.device.read(step.id, step.values.finite.expect("a training step says so"), &mut finite)?;
        let finite = finite[0] == T::ONE;
        if let Some(loss_scale) = &mut self.loss_scale {
            loss_scale.update(finite);
        }
        Ok(Losses { skipped: !finite, ..self.losses(step)? })
    }

    /// One batch of a pass that re-estimates the running statistics, the `number`-th of the pass (from 1):
    /// after the pass they are the plain mean of its batches'.
    ///
    /// # Errors
    /// If the device fails.
    pub fn estimate_statistics(&mut self, step: &Step, number: u64) -> Result<()> {
        assert_eq!(step.mode, Mode::Statistics, "the step estimates statistics");
        self.device.write(step.id, step.values.momentum, &[T::from_f64(1.0 / number as f64)])?;
        self.device.run(step.id)
    }

    /// Sets the running statistics to zero: what is estimated next then depends on nothing before.
    ///
    /// # Errors
    /// If the device fails.
    pub fn reset_statistics(&mut self) -> Result<()> {
        let zeros = vec![T::ZERO; stored_count(&self.parameters, Region::Statistics)];
        self.device.write_state(Region::Statistics, 0, &zeros)
    }

    /// Inference on the batch that was written.
    ///
    /// # Errors
    /// If the device fails.
    pub fn evaluate(&mut self, step: &Step) -> Result<Losses<T>> {
        assert_eq!(step.mode, Mode::Evaluate, "the step evaluates");
        self.device.run(step.id)?;
        self.losses(step)
    }

    /// See [`Device::run_nodes`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn run_nodes(&mut self, step: &Step, positions: &[usize]) -> Result<()> {
        self.device.run_nodes(step.id, positions)
    }

    /// See [`Device::time_nodes`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn time_nodes(&mut self, step: &Step, positions: &[usize], times: usize) -> Result<f64> {
        self.device.time_nodes(step.id, positions, times)
    }

    /// See [`Device::time_launches`]. A training step trains meanwhile.
    ///
    /// # Errors
    /// If the device fails.
    pub fn time_launches(&mut self, step: &Step, repeats: usize) -> Result<Option<Vec<LaunchTime>>> {
        self.device.time_launches(step.id, repeats)
    }

    fn losses(&mut self, step: &Step) -> Result<Losses<T>> {
        let mut loss = [T::ZERO];
        let mut samples = vec![T::ZERO; step.batch];
        self.device.read(step.id, step.values.loss, &mut loss)?;
        self.device.read(step.id, step.values.sample_losses, &mut samples)?;
        Ok(Losses { batch: loss[0], samples, skipped: false })
    }

    /// The foreground probabilities of the last run of `step`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prediction(&mut self, step: &Step, probabilities: &mut [T]) -> Result<()> {
        self.device.read(step.id, step.values.prediction, probabilities)
    }

    /// The gradients of the last run of a training step, by name, each in its file's order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gradients(&mut self, step: &Step) -> Result<BTreeMap<String, Vec<T>>> {
        let flat = step.values.gradients.expect("a training step has gradients");
        let mut stored = vec![T::ZERO; self.device.plan(step.id).shape(flat).values()];
        self.device.read(step.id, flat, &mut stored)?;
        let inverse = T::from_f64(1.0 / self.last_scale);
        stored.iter_mut().for_each(|gradient| *gradient = *gradient * inverse);
        let trained = self.parameters.iter().filter(|parameter| parameter.region == Region::Parameters);
        Ok(trained.map(|p| (p.name.clone(), p.from_stored(&stored[p.start..p.start + p.stored_count()]))).collect())
    }
}

/// What batch norm's running statistics take of each training batch's.
pub const MOMENTUM: f64 = 0.1;
