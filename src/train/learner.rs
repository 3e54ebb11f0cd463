//! A network that is being trained: its steps on a device, and the buffers of a batch.

use super::Settings;
use crate::data::Loader;
use crate::device::Device;
use crate::model::{Losses, Mode, Network, Step};
use crate::plan::Plan;
use crate::{Error, Result};

/// Batches, at most, whose statistics batch norm's running ones are re-estimated from before they are used. Plain
/// running averages lag behind the weights so far that the Dice of inference jumps from epoch to epoch.
const STATISTICS_BATCHES: usize = 32;

/// A network on its device with all that training needs of it.
pub struct Learner {
    pub network: Network<f32>,
    train_step: Step,
    statistics_step: Step,
    evaluation_step: Step,
    /// The images, masks and weights of a batch.
    image: Vec<f32>,
    target: Vec<f32>,
    weight: Vec<f32>,
    /// The batch of the epoch that the device has already, to train on next.
    written: Option<usize>,
    probabilities: Vec<f32>,
}

/// A slice that went through inference.
pub struct Evaluated<'a> {
    /// Index into the set.
    pub slice: usize,
    /// Its own Dice loss against its mask.
    pub loss: f32,
    /// `size * size` foreground probabilities, and the mask as the network saw it.
    pub probabilities: &'a [f32],
    pub target: &'a [f32],
}

impl Learner {
    /// A network with random weights, drawn with `seed`, and its steps.
    ///
    /// # Errors
    /// If the settings name no model or the device has no room.
    pub fn new(settings: &Settings, device: Box<dyn Device<f32>>, seed: u64) -> Result<Self> {
        let mut network = Network::new(settings.check()?, device)?;
        network.initialise(seed)?;
        let size = [settings.size; 2];
        let train_step = network.load(Mode::Train, settings.batch, size)?;
        let statistics_step = network.load(Mode::Statistics, settings.batch, size)?;
        let evaluation_step = network.load(Mode::Evaluate, settings.batch, size)?;
        let pixels = settings.batch * settings.size * settings.size;
        Ok(Learner {
            network,
            train_step,
            statistics_step,
            evaluation_step,
            image: vec![0.0; pixels],
            target: vec![0.0; pixels],
            weight: vec![0.0; settings.batch],
            written: None,
            probabilities: vec![0.0; pixels],
        })
    }

    /// The plan of a training step.
    pub fn plan(&self) -> &Plan {
        self.network.plan(&self.train_step)
    }

    /// Trains on batch `batch` of `loader`: the `number`-th optimizer step (from 1). Returns the losses and the
    /// slices that are really in the batch. While a GPU is at it, the epoch's next batch is prepared.
    ///
    /// # Errors
    /// If the device fails.
    pub fn train<'l>(
        &mut self,
        loader: &'l Loader,
        batch: usize,
        learning_rate: f64,
        number: u64,
    ) -> Result<(Losses<f32>, &'l [usize])> {
        if self.written.take() != Some(batch) {
            self.write_batch(loader, batch)?;
        }
        self.network.begin_training(&self.train_step, learning_rate, number)?;
        if batch + 1 < loader.batches() {
            self.write_batch(loader, batch + 1)?;
            self.written = Some(batch + 1);
        }
        Ok((self.network.finish_training(&self.train_step)?, loader.slices(batch)))
    }

    fn write_batch(&mut self, loader: &Loader, batch: usize) -> Result<()> {
        loader.fill(batch, &mut self.image, &mut self.target, &mut self.weight);
        self.network.write_batch(&self.train_step, &self.image, &self.target, &self.weight)
    }

    /// Replaces batch norm's running statistics by the mean over the loader's batches, or the first of many. All
    /// slices of a small set count: a channel that only a few of them excite has next to no variance without them,
    /// and such a slice would come out full of foreground.
    ///
    /// # Errors
    /// If the device fails.
    pub fn estimate_statistics(&mut self, loader: &Loader) -> Result<()> {
        // Or a run that was stopped after this would come to other bits when it does it again.
        self.network.reset_statistics()?;
        self.written = None; // steps share their memory
        for number in 0..loader.batches().min(STATISTICS_BATCHES) {
            loader.fill(number, &mut self.image, &mut self.target, &mut self.weight);
            self.network.write_batch(&self.statistics_step, &self.image, &self.target, &self.weight)?;
            self.network.estimate_statistics(&self.statistics_step, number as u64 + 1)?;
        }
        Ok(())
    }

    /// Inference on all slices of `loader`, in its order; `stop` is asked before each batch for the exit code to
    /// stop with.
    ///
    /// # Errors
    /// If the device fails or `stop` says to stop.
    pub fn evaluate(
        &mut self,
        loader: &Loader,
        stop: &dyn Fn() -> Option<u8>,
        mut each: impl FnMut(Evaluated) -> Result<()>,
    ) -> Result<()> {
        self.written = None;
        for batch in 0..loader.batches() {
            if let Some(exit_code) = stop() {
                return Err(Error::Interrupted { exit_code });
            }
            let slices = loader.fill(batch, &mut self.image, &mut self.target, &mut self.weight);
            self.network.write_batch(&self.evaluation_step, &self.image, &self.target, &self.weight)?;
            let losses = self.network.evaluate(&self.evaluation_step)?;
            self.network.prediction(&self.evaluation_step, &mut self.probabilities)?;
            let pixels = self.image.len() / self.weight.len();
            let rows = self.probabilities.chunks_exact(pixels).zip(self.target.chunks_exact(pixels));
            for ((&slice, &loss), (probabilities, target)) in slices.iter().zip(&losses.samples).zip(rows) {
                each(Evaluated { slice, loss, probabilities, target })?;
            }
        }
        Ok(())
    }
}
