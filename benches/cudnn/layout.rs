//! How tensors are stored: filled on the device from little that the host makes, and read in part.

use crate::timer::Timer;
use rarunet_cuda::device::kernels::Element;
use rarunet_cuda::tensor::Shape;

/// About so many values of a tensor are made; the rest repeats them.
const MADE: usize = 1 << 17;
/// So many of a result are compared at its beginning, and at its end.
const COMPARED: usize = 1 << 18;

/// Pixels that the host makes of a tensor: an odd number, so that an image's rows differ.
pub fn made_pixels(shape: &Shape) -> usize {
    ((MADE / shape.channels.count()) | 1).min(shape.positions())
}

/// Where a tensor's channels stand.
pub struct Side {
    pixels: usize,
    pub stored: usize,
    pub places: Vec<usize>,
}

impl Side {
    /// Of the channels alone, or padded as this crate stores them.
    pub fn new(shape: &Shape, padded: bool) -> Self {
        let (pixels, channels) = (shape.positions(), &shape.channels);
        match padded {
            true => Side { pixels, stored: channels.stored(), places: channels.stored_indices().collect() },
            false => Side { pixels, stored: channels.count(), places: (0..channels.count()).collect() },
        }
    }

    pub fn elements(&self) -> usize {
        self.pixels * self.stored
    }

    fn spread(&self, values: &[f32]) -> Vec<f32> {
        let mut stored = vec![0.0; values.len() / self.places.len() * self.stored];
        for (pixel, values) in stored.chunks_exact_mut(self.stored).zip(values.chunks_exact(self.places.len())) {
            self.places.iter().zip(values).for_each(|(&place, &value)| pixel[place] = value);
        }
        stored
    }

    /// Fills the tensor at an address with the values of its first pixels, again and again.
    ///
    /// # Safety
    /// The tensor must be there.
    pub unsafe fn fill(&self, timer: &Timer, element: Element, address: u64, values: &[f32]) -> Result<(), String> {
        let first = element.encode(&self.spread(values));
        let (mut done, all) = (first.len(), self.elements() * element.bytes());
        // SAFETY: all is within the tensor, and a copy is of no more than there is before it.
        unsafe {
            timer.write(address, &first)?;
            while done < all {
                let bytes = done.min(all - done);
                timer.copy(address + done as u64, address, bytes)?;
                done += bytes;
            }
        }
        Ok(())
    }

    /// The values of the tensor's first and last pixels.
    ///
    /// # Safety
    /// The tensor must be there.
    pub unsafe fn sample(&self, timer: &Timer, element: Element, address: u64) -> Result<Vec<f32>, String> {
        let all = self.pixels;
        let few = (COMPARED / self.places.len()).clamp(1, all.div_ceil(2));
        let mut values = Vec::new();
        for span in [0..few, few.max(all - few)..all].into_iter().filter(|span| !span.is_empty()) {
            let pixel = self.stored * element.bytes();
            let mut bytes = vec![0; span.len() * pixel];
            // SAFETY: the span is within the tensor.
            unsafe { timer.read(address + (span.start * pixel) as u64, &mut bytes) }?;
            for pixel in element.decode(&bytes).chunks_exact(self.stored) {
                values.extend(self.places.iter().map(|&place| pixel[place]));
            }
        }
        Ok(values)
    }
}

/// Where each of cuDNN's weights (the map's channels, taps, the image's channels) stands in
/// [`crate::case::Values`].
pub fn weight_places<'a>(taps: usize, image: &'a Side, map: &'a Side) -> impl Iterator<Item = (usize, usize)> + 'a {
    let (inputs, outputs) = (image.places.len(), map.places.len());
    (0..outputs).flat_map(move |output| {
        (0..taps).flat_map(move |tap| {
            (0..inputs).map(move |input| {
                let theirs = (map.places[output] * taps + tap) * image.stored + image.places[input];
                (theirs, (tap * inputs + input) * outputs + output)
            })
        })
    })
}
