//! Slices brought to the square that the network sees, and its probabilities brought back.

use super::Geometry;
use crate::Result;
use crate::preprocessing::{HounsfieldWindow, check_size};

/// How the slices of a volume are fitted into a square of `size` x `size` pixels, and taken out again.
///
/// The slice's true shape in millimetres is kept: it is scaled until it touches two sides of the
/// square, and centred. Along an axis that shrinks each new pixel is the mean of the area it covers;
/// along one that grows, neighbours are interpolated linearly.
#[derive(Debug, Clone)]
pub struct Fit {
    size: usize,
    /// Width and height of the slices.
    grid: [usize; 2],
    /// The part of the square that they fill, and where it begins.
    content: [usize; 2],
    offset: [usize; 2],
    forward: [Resampling; 2],
    back: [Resampling; 2],
}

impl Fit {
    /// The fit of the axial slices of a volume in RAS order.
    ///
    /// # Errors
    /// If `size` is not a multiple of 16.
    pub fn new(geometry: &Geometry, size: usize) -> Result<Self> {
        check_size(size)?;
        let grid = [geometry.shape[0], geometry.shape[1]];
        let spacing = geometry.spacing();
        let extent = [grid[0] as f64 * spacing[0], grid[1] as f64 * spacing[1]];
        let scale = size as f64 / extent[0].max(extent[1]);
        let content = extent.map(|extent| ((extent * scale).round() as usize).clamp(1, size));
        Ok(Fit {
            size,
            grid,
            content,
            offset: content.map(|content| (size - content) / 2),
            forward: std::array::from_fn(|axis| Resampling::new(grid[axis], content[axis])),
            back: std::array::from_fn(|axis| Resampling::new(content[axis], grid[axis])),
        })
    }

    /// An image slice (Hounsfield units) as the network sees it: windowed, resized, air around it.
    pub fn image(&self, slice: &[f32], window: HounsfieldWindow) -> Vec<f32> {
        let windowed: Vec<f32> = slice.iter().map(|&hounsfield| window.apply(hounsfield)).collect();
        self.padded(&resample(&windowed, self.grid, &self.forward), window.air())
    }

    /// A mask slice in the same place: foreground where it fills at least half of the pixel.
    pub fn mask(&self, slice: &[u8]) -> Vec<u8> {
        let share: Vec<f32> = slice.iter().map(|&voxel| f32::from(u8::from(voxel != 0))).collect();
        let resized = self.padded(&resample(&share, self.grid, &self.forward), 0.0);
        resized.into_iter().map(|share| u8::from(share >= 0.5)).collect()
    }

    /// The network's probabilities, `size * size`, on the slice's own grid.
    pub fn restore(&self, probabilities: &[f32]) -> Vec<f32> {
        let [x, y] = self.offset;
        let rows = probabilities.chunks_exact(self.size).skip(y).take(self.content[1]);
        let content: Vec<f32> = rows.flat_map(|row| row[x..x + self.content[0]].iter().copied()).collect();
        resample(&content, self.content, &self.back)
    }

    fn padded(&self, content: &[f32], background: f32) -> Vec<f32> {
        let mut square = vec![background; self.size * self.size];
        let [x, y] = self.offset;
        for (row, values) in content.chunks_exact(self.content[0]).enumerate() {
            let start = (y + row) * self.size + x;
            square[start..start + values.len()].copy_from_slice(values);
        }
        square
    }
}

/// Resizing along one axis: for each new pixel the old ones it is made of, and their shares.
#[derive(Debug, Clone)]
struct Resampling {
    /// First old pixel and the shares of it and its successors, which sum to 1.
    pixels: Vec<(usize, Vec<f32>)>,
}

impl Resampling {
    fn new(old: usize, new: usize) -> Self {
        let ratio = old as f64 / new as f64;
        let pixel = |i: usize| {
            if new < old {
                // The interval that the new pixel covers, in old pixels.
                let (start, end) = (i as f64 * ratio, ((i + 1) as f64 * ratio).min(old as f64));
                let (first, last) = (start as usize, (end.ceil() as usize).min(old));
                let share = |j: usize| ((end.min((j + 1) as f64) - start.max(j as f64)) / (end - start)) as f32;
                (first, (first..last).map(share).collect())
            } else {
                let centre = ((i as f64 + 0.5) * ratio - 0.5).clamp(0.0, (old - 1) as f64);
                let first = (centre as usize).min(old.saturating_sub(2));
                let share = (centre - first as f64) as f32;
                (first, if share > 0.0 { vec![1.0 - share, share] } else { vec![1.0] })
            }
        };
        Resampling { pixels: (0..new).map(pixel).collect() }
    }
}

/// An image of `width` x `height` resized along x, then along y.
fn resample(image: &[f32], [width, height]: [usize; 2], [along_x, along_y]: &[Resampling; 2]) -> Vec<f32> {
    let new_width = along_x.pixels.len();
    let mut rows = Vec::with_capacity(new_width * height);
    for row in image.chunks_exact(width) {
        rows.extend(
            along_x.pixels.iter().map(|(first, shares)| {
                row[*first..].iter().zip(shares).map(|(value, share)| value * share).sum::<f32>()
            }),
        );
    }
    let mut resized = vec![0.0; new_width * along_y.pixels.len()];
    for (target, (first, shares)) in resized.chunks_exact_mut(new_width).zip(&along_y.pixels) {
        for (row, share) in rows.chunks_exact(new_width).skip(*first).zip(shares) {
            target.iter_mut().zip(row).for_each(|(target, value)| *target += share * value);
        }
    }
    resized
}
