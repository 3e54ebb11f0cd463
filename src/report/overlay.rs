//! Pictures of axial slices with the contours of masks, as PNG.
//!
//! They look as radiologists look: from the feet, the front up, the patient's right on the left, millimetres as
//! long across as down. The reference's contour is a wide line and the prediction's a thin one on top of it, so that
//! both are seen where they agree; what only one of them covers is tinted in its colour.

use super::palette::{self, Colour};
use crate::data::{Geometry, Volume};
use crate::{Error, Result};

/// Hounsfield units that are black and white: soft tissue and bone both show.
pub const DISPLAY_WINDOW: [f32; 2] = [-200.0, 400.0];

/// The longer side of a picture is at least this many pixels, so that single voxels can be seen,
const SMALLEST: f64 = 384.0;
/// and at most this many.
const LARGEST: f64 = 1024.0;

/// Pixels between the slices of a montage, and their grey.
const GAP: usize = 4;
const GAP_GREY: u8 = 72;

/// Widths of the contours, in pixels.
const REFERENCE_WIDTH: f32 = 4.0;
const PREDICTION_WIDTH: f32 = 2.0;

/// How much a tint covers.
const TINT: f32 = 0.3;

/// The picture of axial slice `z` of an image in Hounsfield units, with the contours (where not 0) of a reference
/// mask and of a prediction. `window` are the Hounsfield units of black and white, see [`DISPLAY_WINDOW`].
/// All volumes are in RAS order (see [`crate::data::Reorientation`]) and on one grid. Returns a PNG's bytes.
///
/// # Errors
/// If the volumes are not in RAS order or not on one grid, there is no slice `z`, or the window is empty.
pub fn overlay(
    image: &Volume<f32>,
    reference: Option<&Volume<u8>>,
    prediction: Option<&Volume<u8>>,
    z: usize,
    window: [f32; 2],
) -> Result<Vec<u8>> {
    Layers::new(image, reference, prediction, window)?.draw(z)?.png()
}

/// Several slices as in [`overlay`] in one picture, row by row from the upper left.
///
/// # Errors
/// As [`overlay`], and if there are no slices.
pub fn montage(
    image: &Volume<f32>,
    reference: Option<&Volume<u8>>,
    prediction: Option<&Volume<u8>>,
    slices: &[usize],
    window: [f32; 2],
) -> Result<Vec<u8>> {
    let layers = Layers::new(image, reference, prediction, window)?;
    if slices.is_empty() {
        return Err(Error::Invalid("a montage of no slices: name at least one".into()));
    }
    let columns = (slices.len() as f64).sqrt().ceil() as usize;
    let rows = slices.len().div_ceil(columns);
    let [width, height] = layers.frame.size();
    let mut whole = Picture::grey(columns * (width + GAP) - GAP, rows * (height + GAP) - GAP, GAP_GREY);
    for (place, &z) in slices.iter().enumerate() {
        whole.paste(&layers.draw(z)?, place % columns * (width + GAP), place / columns * (height + GAP));
    }
    whole.png()
}

/// An image and its masks, checked to fit together.
struct Layers<'a> {
    image: &'a Volume<f32>,
    reference: Option<&'a Volume<u8>>,
    prediction: Option<&'a Volume<u8>>,
    window: [f32; 2],
    frame: Frame,
}

impl<'a> Layers<'a> {
    fn new(
        image: &'a Volume<f32>,
        reference: Option<&'a Volume<u8>>,
        prediction: Option<&'a Volume<u8>>,
        window: [f32; 2],
    ) -> Result<Self> {
        let orientation = image.geometry.orientation();
        if orientation != "RAS" {
            return Err(Error::Invalid(format!("a picture of an image in {orientation} order: bring it to RAS order")));
        }
        if image.voxels.is_empty() {
            return Err(Error::Invalid("a picture of an image without voxels".into()));
        }
        for (name, mask) in [("reference mask", reference), ("predicted mask", prediction)] {
            if let Some(message) = mask.and_then(|mask| image.geometry.difference(&mask.geometry, ["image", name])) {
                return Err(Error::Invalid(format!("{message}: give a mask of this image")));
            }
        }
        let [low, high] = window;
        if !(low < high && (high - low).is_finite()) {
            return Err(Error::Invalid(format!(
                "display window {low} to {high}: the lower end must be below the upper one"
            )));
        }
        Ok(Layers { image, reference, prediction, window, frame: Frame::new(&image.geometry) })
    }

    fn draw(&self, z: usize) -> Result<Picture> {
        let depth = self.image.geometry.shape[2];
        if z >= depth {
            return Err(Error::Invalid(format!("a picture of slice {z}: slices run from 0 to {}", depth - 1)));
        }
        let [low, high] = self.window;
        let image = self.image.slice(z);
        let grey = self.frame.interpolate(|voxel| ((image[voxel] - low) / (high - low)).clamp(0.0, 1.0) * 255.0);
        let [width, height] = self.frame.size();
        let mut picture = Picture { width, height, pixels: grey.into_iter().map(|grey| [grey as u8; 3]).collect() };
        let coverage = |mask: Option<&Volume<u8>>| match mask {
            Some(mask) => {
                let mask = mask.slice(z);
                self.frame.interpolate(|voxel| if mask[voxel] == 0 { 0.0 } else { 1.0 })
            }
            None => vec![0.0; width * height],
        };
        let (reference, prediction) = (coverage(self.reference), coverage(self.prediction));
        picture.tint(&reference, &prediction, palette::REFERENCE);
        picture.tint(&prediction, &reference, palette::PREDICTION);
        picture.contour(&reference, palette::REFERENCE, REFERENCE_WIDTH);
        picture.contour(&prediction, palette::PREDICTION, PREDICTION_WIDTH);
        Ok(picture)
    }
}

/// Where the pixels of a picture lie between the voxels of a slice.
struct Frame {
    row_length: usize,
    /// For each column of pixels the two nearest voxels along x, and how far it is from the first to the second.
    columns: Vec<(usize, usize, f32)>,
    /// The same for each row of pixels along y.
    rows: Vec<(usize, usize, f32)>,
}

impl Frame {
    fn new(geometry: &Geometry) -> Self {
        let [nx, ny, _] = geometry.shape;
        let [sx, sy, _] = geometry.spacing();
        // The longer side at one pixel for each of the closer voxels, or a whole multiple of it.
        let [across, down] = [nx as f64 * sx, ny as f64 * sy];
        let longer = across.max(down);
        let natural = (longer / sx.min(sy)).max(1.0);
        let pixels = (natural * (SMALLEST / natural).ceil()).min(LARGEST);
        let side = |length: f64| ((length / longer * pixels).round() as usize).clamp(1, LARGEST as usize);
        // Right is on the left and front is up: both axes run backwards.
        Frame { row_length: nx, columns: backwards(nx, side(across)), rows: backwards(ny, side(down)) }
    }

    /// Width and height in pixels.
    fn size(&self) -> [usize; 2] {
        [self.columns.len(), self.rows.len()]
    }

    /// Every pixel, row by row, from the values of the four voxels around it.
    fn interpolate(&self, value: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut pixels = Vec::with_capacity(self.columns.len() * self.rows.len());
        for &(near, far, down) in &self.rows {
            let (near, far) = (near * self.row_length, far * self.row_length);
            pixels.extend(self.columns.iter().map(|&(left, right, across)| {
                let mix = |row| value(row + left) * (1.0 - across) + value(row + right) * across;
                mix(near) * (1.0 - down) + mix(far) * down
            }));
        }
        pixels
    }
}

/// The voxels on both sides of each of `pixels` pixels that cover `voxels` voxels from the last to the first.
fn backwards(voxels: usize, pixels: usize) -> Vec<(usize, usize, f32)> {
    let last = voxels.saturating_sub(1);
    let place = |pixel: usize| {
        let from_end = (pixel as f64 + 0.5) / pixels as f64 * voxels as f64 - 0.5;
        let position = (last as f64 - from_end).clamp(0.0, last as f64);
        (position as usize, (position as usize + 1).min(last), position.fract() as f32)
    };
    (0..pixels).map(place).collect()
}

/// Red, green and blue, row by row.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn grey(width: usize, height: usize, grey: u8) -> Self {
        Picture { width, height, pixels: vec![[grey; 3]; width * height] }
    }

    /// Tints where `inside` covers a pixel and `outside` does not.
    fn tint(&mut self, inside: &[f32], outside: &[f32], colour: Colour) {
        for (pixel, (inside, outside)) in self.pixels.iter_mut().zip(inside.iter().zip(outside)) {
            if *inside >= 0.5 && *outside < 0.5 {
                blend(pixel, colour, TINT);
            }
        }
    }

    /// Draws the line where `coverage` crosses one half, `line_width` pixels wide, with smooth edges.
    fn contour(&mut self, coverage: &[f32], colour: Colour, line_width: f32) {
        let reach = line_width / 2.0 + 0.5;
        let mut distance = vec![f32::INFINITY; self.pixels.len()];
        for (x, y) in self.crossings(coverage) {
            let columns = (x - reach).ceil().max(0.0) as usize..=((x + reach) as usize).min(self.width - 1);
            let rows = (y - reach).ceil().max(0.0) as usize..=((y + reach) as usize).min(self.height - 1);
            for row in rows {
                for column in columns.clone() {
                    let nearest = &mut distance[row * self.width + column];
                    *nearest = nearest.min((column as f32 - x).hypot(row as f32 - y));
                }
            }
        }
        for (pixel, distance) in self.pixels.iter_mut().zip(distance) {
            blend(pixel, colour, (reach - distance).clamp(0.0, 1.0));
        }
    }

    /// The points between neighbouring pixels where `coverage` is one half.
    fn crossings(&self, coverage: &[f32]) -> Vec<(f32, f32)> {
        let mut points = Vec::new();
        for y in 0..self.height {
            for x in 0..self.width {
                let here = coverage[y * self.width + x];
                let crossed = |there: f32| ((here < 0.5) != (there < 0.5)).then(|| (0.5 - here) / (there - here));
                if let Some(share) = (x + 1 < self.width).then(|| coverage[y * self.width + x + 1]).and_then(crossed) {
                    points.push((x as f32 + share, y as f32));
                }
                if let Some(share) = (y + 1 < self.height).then(|| coverage[(y + 1) * self.width + x]).and_then(crossed)
                {
                    points.push((x as f32, y as f32 + share));
                }
            }
        }
        points
    }

    fn paste(&mut self, other: &Picture, left: usize, top: usize) {
        for (row, pixels) in other.pixels.chunks_exact(other.width).enumerate() {
            let start = (top + row) * self.width + left;
            self.pixels[start..start + other.width].copy_from_slice(pixels);
        }
    }

    fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(self.pixels.as_flattened())?;
            writer.finish()
        });
        match written {
            Ok(()) => Ok(bytes),
            Err(error) => Err(Error::Invalid(format!("a picture of {} x {} pixels: {error}", self.width, self.height))),
        }
    }
}

/// Covers a pixel with a colour; `alpha` 1 hides what was there.
fn blend(pixel: &mut [u8; 3], colour: Colour, alpha: f32) {
    for (value, colour) in pixel.iter_mut().zip(colour.bright) {
        *value = (f32::from(*value) * (1.0 - alpha) + f32::from(colour) * alpha).round() as u8;
    }
}
