//! Inference on whole volumes: slice by slice in RAS order, and back on the scan's own grid.

use crate::data::dataset::check_finite;
use crate::data::{Fit, Reorientation, Volume};
use crate::device::Device;
use crate::model::weights::{Preprocessing, WeightsFile};
use crate::model::{Mode, Network, Step};
use crate::{Error, Result};
use std::path::Path;

/// Probabilities from here on are foreground.
pub const THRESHOLD: f32 = 0.5;

/// Slices that go through the network at once.
const BATCH: usize = 8;

/// A network with its weights, ready for volumes.
pub struct Predictor {
    network: Network<f32>,
    step: Step,
    preprocessing: Preprocessing,
    image: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Predictor {
    /// Loads a weights file that training wrote.
    ///
    /// # Errors
    /// If it cannot be read or is not one, or the device has no room.
    pub fn open(weights: &Path, device: Box<dyn Device<f32>>) -> Result<Self> {
        let bytes = std::fs::read(weights).map_err(Error::io(weights))?;
        let file = WeightsFile::new(weights, &bytes)?;
        let preprocessing = file.preprocessing()?;
        let mut network = Network::new(file.model()?, device)?;
        file.load(&mut network)?;
        let step = network.load(Mode::Evaluate, BATCH, [preprocessing.size; 2])?;
        let elements = BATCH * preprocessing.size * preprocessing.size;
        Ok(Predictor { network, step, preprocessing, image: vec![0.0; elements], probabilities: vec![0.0; elements] })
    }

    pub fn network(&self) -> &Network<f32> {
        &self.network
    }

    /// The foreground probability of every voxel, on the image's own grid; `progress` is told how many more
    /// slices are done.
    ///
    /// # Errors
    /// If a voxel is not a number (`path` says of which file), or the device fails.
    pub fn probabilities(&mut self, path: &Path, image: &Volume<f32>, progress: impl Fn(usize)) -> Result<Volume<f32>> {
        check_finite(path, image)?;
        let reorientation = Reorientation::to_ras_from(&image.geometry);
        let ras = reorientation.to_ras(image)?;
        let Preprocessing { size, window } = self.preprocessing;
        let fit = Fit::new(&ras.geometry, size)?;
        let pixels = size * size;
        let mut voxels = Vec::with_capacity(ras.voxels.len());
        let depth = ras.geometry.shape[2];
        for first in (0..depth).step_by(BATCH) {
            let count = BATCH.min(depth - first);
            for (slice, pixels) in self.image.chunks_exact_mut(pixels).enumerate() {
                // A last batch that is not full repeats its last slice.
                pixels.copy_from_slice(&fit.image(ras.slice(first + slice.min(count - 1)), window));
            }
            // Target and weight only matter for losses, which nobody reads here.
            self.network.write_batch(&self.step, &self.image, &self.image, &[0.0; BATCH])?;
            self.network.evaluate(&self.step)?;
            self.network.prediction(&self.step, &mut self.probabilities)?;
            for slice in self.probabilities.chunks_exact(pixels).take(count) {
                voxels.extend(fit.restore(slice));
            }
            progress(count);
        }
        reorientation.to_stored(&Volume::new(ras.geometry, voxels)?)
    }
}

/// 1 where a probability is at least [`THRESHOLD`], else 0.
pub fn mask(probabilities: &Volume<f32>) -> Volume<u8> {
    let voxels = probabilities.voxels.iter().map(|&probability| u8::from(probability >= THRESHOLD)).collect();
    Volume { geometry: probabilities.geometry.clone(), voxels }
}
