//! Inference on whole volumes: slice by slice in RAS order, and back on the scan's own grid.

use crate::data::dataset::check_finite;
use crate::data::{Fit, Reorientation, Volume};
use crate::device::Device;
use crate::model::weights::WeightsFile;
use crate::model::{Mode, Network, Step};
use crate::preprocessing::{Preprocessing, is_foreground};
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

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
        self.each_voxel(path, image, progress, |probability| probability)
    }

    /// 1 where the probability is that of foreground, else 0; in a quarter of the memory.
    ///
    /// # Errors
    /// As [`Predictor::probabilities`].
    pub fn mask(&mut self, path: &Path, image: &Volume<f32>, progress: impl Fn(usize)) -> Result<Volume<u8>> {
        self.each_voxel(path, image, progress, |probability| u8::from(is_foreground(probability)))
    }

    /// What `convert` makes of each voxel's probability. Besides the image and the result a few slices are held.
    fn each_voxel<T: Copy + Default>(
        &mut self,
        path: &Path,
        image: &Volume<f32>,
        progress: impl Fn(usize),
        convert: impl Fn(f32) -> T,
    ) -> Result<Volume<T>> {
        check_finite(path, image)?;
        let reorientation = Reorientation::to_ras_from(&image.geometry);
        let Preprocessing { size, window } = self.preprocessing;
        let fit = Fit::new(reorientation.ras(), size)?;
        let pixels = size * size;
        let mut result = Volume::new(image.geometry.clone(), vec![T::default(); image.voxels.len()])?;
        let depth = reorientation.ras().shape[2];
        for first in (0..depth).step_by(BATCH) {
            let count = BATCH.min(depth - first);
            self.image.par_chunks_exact_mut(pixels).enumerate().for_each(|(slice, pixels)| {
                // A last batch that is not full repeats its last slice.
                let slice = reorientation.ras_slice(image, first + slice.min(count - 1));
                pixels.copy_from_slice(&fit.image(&slice, window));
            });
            // Target and weight only matter for losses, which nobody reads here.
            self.network.write_batch(&self.step, &self.image, &self.image, &[0.0; BATCH])?;
            self.network.evaluate(&self.step)?;
            self.network.prediction(&self.step, &mut self.probabilities)?;
            for (slice, found) in self.probabilities.chunks_exact(pixels).take(count).enumerate() {
                let found: Vec<T> = fit.restore(found).into_iter().map(&convert).collect();
                reorientation.set_ras_slice(&mut result, first + slice, &found);
            }
            progress(count);
        }
        Ok(result)
    }
}

/// 1 where a probability is that of foreground, else 0.
pub fn mask(probabilities: &Volume<f32>) -> Volume<u8> {
    let voxels = probabilities.voxels.iter().map(|&probability| u8::from(is_foreground(probability))).collect();
    Volume { geometry: probabilities.geometry.clone(), voxels }
}
