//! A run's last look at its training masks: the suspects, and pictures of the first of them.

use super::adl::displacement;
use super::run::{Observer, Run};
use super::suspects::{Review, Suspect, Unmarked, write_list};
use crate::Result;
use crate::data::file::{remove_all, write_atomically};
use crate::data::{Geometry, Volume};
use crate::preprocessing::is_foreground;
use crate::report::{DISPLAY_WINDOW, overlay};
use std::io::Write;

impl Run<'_> {
    /// Ranks the training masks by how likely they are wrong, seen with the weights as they are. Writes
    /// `suspects.csv`, `unmarked.csv`, and a picture of each of the first suspects into the folder `suspects`, named
    /// by rank, case and slice.
    ///
    /// # Errors
    /// If the device fails, a file cannot be written, or the observer stops it.
    pub fn review(&mut self, observer: &dyn Observer) -> Result<Review> {
        let review = self.look(observer)?;
        write_list(&self.folder.path().join(Suspect::FILE), &Suspect::COLUMNS, &review.suspects)?;
        write_list(&self.folder.path().join("unmarked.csv"), &Unmarked::COLUMNS, &review.unmarked)?;
        self.picture(&review.suspects[..review.suspects.len().min(Suspect::PICTURED)], observer)?;
        Ok(review)
    }

    fn look(&mut self, observer: &dyn Observer) -> Result<Review> {
        let loader = self.loader(&self.split.train, 0, false);
        let (set, denoiser, records) = (self.set, &self.denoiser, &self.state.learners[0].records);
        let mut review = Review::default();
        self.learners[0].evaluate(&loader, &|| observer.stop(), |evaluated| {
            let slice = &set.slices[evaluated.slice];
            let count = |values: &[f32]| values.iter().filter(|&&value| is_foreground(value)).count() as u64;
            let (case, predicted_pixels) = (set.cases[slice.case].clone(), count(evaluated.probabilities));
            match slice.has_foreground {
                true => review.suspects.push(Suspect {
                    case,
                    slice: slice.index,
                    score: displacement(&evaluated, set.size).into(),
                    dice: 1.0 - f64::from(evaluated.loss),
                    pixels: count(evaluated.target),
                    predicted_pixels,
                    times_left_out: records.times_left_out[denoiser.position(evaluated.slice)],
                }),
                false => review.unmarked.push(Unmarked { case, slice: slice.index, predicted_pixels }),
            }
            Ok(())
        })?;
        review.sort();
        Ok(review)
    }

    /// Pictures of suspects: the given mask as the reference, the prediction over it.
    fn picture(&mut self, suspects: &[Suspect], observer: &dyn Observer) -> Result<()> {
        let (set, size, window) = (self.set, self.settings.size, self.settings.window);
        let place = |suspect: &Suspect| {
            let is_it = |&slice: &usize| {
                let slice = &set.slices[slice];
                slice.index == suspect.slice && set.cases[slice.case] == suspect.case
            };
            self.split.train.iter().copied().find(is_it).expect("suspects are training slices")
        };
        let slices: Vec<usize> = suspects.iter().map(place).collect();
        let loader = self.loader(&slices, 0, false);
        let folder = self.folder.suspects();
        // Of a review before this one, if the run went on with other settings.
        remove_all(&folder, ".png")?;
        // The network's grid, a millimetre a pixel.
        let geometry = Geometry::axis_aligned([size, size, 1], [1.0; 3]);
        let mut pictures = suspects.iter().enumerate();
        self.learners[0].evaluate(&loader, &|| observer.stop(), |evaluated| {
            let slice = &set.slices[evaluated.slice];
            let (rank, suspect) = pictures.next().expect("a slice for each suspect");
            let mask = |values: &[f32]| {
                Volume::new(geometry.clone(), values.iter().map(|&value| u8::from(is_foreground(value))).collect())
            };
            let image = Volume::new(geometry.clone(), slice.image.to_vec())?;
            let (given, predicted) = (mask(evaluated.target)?, mask(evaluated.probabilities)?);
            let grey = DISPLAY_WINDOW.map(|hounsfield| window.apply(hounsfield));
            let picture = overlay(&image, Some(&given), Some(&predicted), 0, grey)?;
            write_atomically(&folder.join(suspect.picture(rank)), |file| file.write_all(&picture))
        })
    }
}
