//! From a patient to voxels: sampling, point spread function and noise.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::anatomy::Patient;
use super::shapes::Point;
use super::tissue::Section;
use crate::data::Geometry;

/// Samples in a voxel: near bones, each at a height of its own, so that thin plates of bone that
/// lie level are not missed; and elsewhere, all at one height, for soft tissue is alike from one
/// slice to the next.
const SAMPLES: [usize; 2] = [12, 4];

/// The voxels of a scan.
pub struct Grid {
    size: usize,
    slices: usize,
    /// Millimetres between voxels in the plane, and between slices.
    spacing: f32,
    thickness: f32,
    /// Height of the middle of the first slice.
    bottom: f32,
}

impl Grid {
    /// A grid between the middles of L5 and T9; `position` in [0, 1] says how high, if there is room.
    pub fn new(patient: &Patient, size: usize, slices: usize, position: f32) -> Self {
        let [low, high] = [0, 8].map(|index: usize| patient.vertebrae[index].centre[2]);
        let thickness = (3.0f32).min((high - low) / slices as f32);
        let room = high - low - thickness * slices as f32;
        Grid {
            size,
            slices,
            spacing: patient.scanner.field_of_view / size as f32,
            thickness,
            bottom: low + position * room + 0.5 * thickness,
        }
    }

    pub fn geometry(&self) -> Geometry {
        let spacing = [self.spacing, self.spacing, self.thickness].map(f64::from);
        let mut geometry = Geometry::axis_aligned([self.size, self.size, self.slices], spacing);
        let middle = -0.5 * (self.size as f64 - 1.0) * spacing[0];
        for (row, origin) in geometry.affine.iter_mut().zip([middle, middle, f64::from(self.bottom)]) {
            row[3] = origin;
        }
        geometry
    }

    /// Distance of voxel `index` (and parts of it) from the middle of the plane.
    fn position(&self, index: f32) -> f32 {
        (index - 0.5 * (self.size as f32 - 1.0)) * self.spacing
    }
}

/// Paints the tissues of slice `z`, and the mask of its vertebrae.
pub fn slice(patient: &Patient, grid: &Grid, z: usize, image: &mut [f32], mask: &mut [u8]) {
    let scanner = &patient.scanner;
    let height = grid.bottom + z as f32 * grid.thickness;
    let section = Section::new(patient, height, grid.thickness);
    let (sin, cos) = scanner.turn.sin_cos();
    let at = |x: f32, y: f32, up: f32| -> Point {
        let [x, y] = [grid.position(x), grid.position(y)];
        [cos * x - sin * y + scanner.shift[0], sin * x + cos * y + scanner.shift[1], height + up * grid.thickness]
    };
    let [near_bone, elsewhere] = SAMPLES.map(offsets);
    // Half the diagonal of a voxel, and a little for distances that are not exact.
    let reach = 0.75 * (2.0 * grid.spacing * grid.spacing + grid.thickness * grid.thickness).sqrt();
    for (index, (image, mask)) in image.iter_mut().zip(mask).enumerate() {
        let [x, y] = [(index % grid.size) as f32, (index / grid.size) as f32];
        let middle = at(x, y, 0.0);
        let texture = section.texture(middle);
        let bone = section.bone_distance(middle) < reach;
        let offsets = if bone { &near_bone } else { &elsewhere };
        let (mut sum, mut inside) = (0.0, 0);
        for [across, along, up] in offsets {
            let p = at(x + across, y + along, *up);
            let (value, vertebra) =
                if bone { section.sample(p, &texture) } else { (section.sample_soft(p, &texture), false) };
            sum += value;
            inside += usize::from(vertebra);
        }
        *image = sum / offsets.len() as f32;
        *mask = u8::from(2 * inside >= offsets.len());
    }
}

/// `count` points in a voxel, from its middle, in parts of its edges: over and over the middles of
/// its four quarters in the plane, at heights that rise evenly (if there is more than one round).
fn offsets(count: usize) -> Vec<Point> {
    let height = |index: usize| if count > 4 { (index as f32 + 0.5) / count as f32 - 0.5 } else { 0.0 };
    let quarter = |bit: usize| if bit == 0 { -0.25 } else { 0.25 };
    (0..count).map(|index| [quarter(index & 1), quarter(index & 2), height(index)]).collect()
}

/// Makes a slice look scanned: blurred, darker in the middle, with noise and streaks, rounded.
pub fn scan(patient: &Patient, grid: &Grid, rng: &mut ChaCha8Rng, image: &mut [f32]) {
    let scanner = &patient.scanner;
    let size = grid.size;
    let blur = gaussian(scanner.blur / grid.spacing);
    convolve(image, size, &blur, &blur);
    // Reconstruction sharpens, so that noise has no low frequencies: white noise at two blurs.
    let [narrow, wide] = [0.45, 1.3].map(|sigma: f32| gaussian(sigma * 2.0 / grid.spacing));
    let white: Vec<f32> = white_noise(rng, image.len());
    let [mut noise, mut low] = [white.clone(), white];
    convolve(&mut noise, size, &narrow, &narrow);
    convolve(&mut low, size, &wide, &wide);
    noise.iter_mut().zip(&low).for_each(|(noise, low)| *noise -= 0.7 * low);
    let mut streaks = white_noise(rng, image.len());
    let [short, long] = [0.8, 12.0].map(|sigma: f32| gaussian(sigma * 2.0 / grid.spacing));
    convolve(&mut streaks, size, &long, &short);
    scale_to(&mut noise, scanner.noise);
    scale_to(&mut streaks, scanner.streaks);
    for (index, image) in image.iter_mut().enumerate() {
        let [x, y] = [index % size, index / size].map(|i| grid.position(i as f32) * 2.0 / scanner.field_of_view);
        let middle = (1.0 - 0.8 * (x * x + y * y)).max(0.1);
        let body = if *image > -300.0 { 1.0 } else { 0.5 };
        let value = *image - body * scanner.cupping * middle + (0.55 + 0.6 * middle) * (noise[index] + streaks[index]);
        *image = value.round().clamp(-1024.0, 3071.0);
    }
}

/// Noise of variance 1/3, nearly normal: each value the sum of four uniform ones.
fn white_noise(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut value = || {
        let bits = rng.next_u64();
        (0..4).map(|part| (bits >> (16 * part)) as u16 as f32).sum::<f32>() / 65_535.0 - 2.0
    };
    (0..count).map(|_| value()).collect()
}

/// Scales `values` to the standard deviation `target`.
fn scale_to(values: &mut [f32], target: f32) {
    let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
    let factor = target / square.sqrt().max(1e-6);
    values.iter_mut().for_each(|value| *value *= factor);
}

/// The right half of a normalised Gaussian kernel, its middle first; `sigma` in voxels.
fn gaussian(sigma: f32) -> Vec<f32> {
    let reach = (3.0 * sigma).ceil().max(1.0) as usize;
    let half: Vec<f32> = (0..=reach).map(|i| (-0.5 * (i as f32 / sigma).powi(2)).exp()).collect();
    let sum = 2.0 * half.iter().sum::<f32>() - half[0];
    half.iter().map(|value| value / sum).collect()
}

/// Convolves a square image with symmetric kernels along x and along y; the border is repeated.
fn convolve(image: &mut [f32], size: usize, along_x: &[f32], along_y: &[f32]) {
    let mut rows = vec![0.0; image.len()];
    for (source, target) in image.chunks(size).zip(rows.chunks_mut(size)) {
        for (x, target) in target.iter_mut().enumerate() {
            let pair = |i: usize| source[x.saturating_sub(i)] + source[(x + i).min(size - 1)];
            let sides: f32 = along_x.iter().enumerate().skip(1).map(|(i, weight)| weight * pair(i)).sum();
            *target = along_x[0] * source[x] + sides;
        }
    }
    for (y, target) in image.chunks_mut(size).enumerate() {
        target.copy_from_slice(&rows[y * size..(y + 1) * size]);
        target.iter_mut().for_each(|value| *value *= along_y[0]);
        for (i, weight) in along_y.iter().enumerate().skip(1) {
            for other in [y.saturating_sub(i), (y + i).min(size - 1)] {
                for (target, value) in target.iter_mut().zip(&rows[other * size..(other + 1) * size]) {
                    *target += weight * value;
                }
            }
        }
    }
}
