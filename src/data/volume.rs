//! A scan in memory: voxels on a grid, and where the grid lies in the patient.

use crate::{Error, Result};
use ndarray::{ArrayBase, ArrayView3, ArrayViewMut3, Axis, Ix3, RawData};
use rayon::prelude::*;

/// How far, in voxels, the corners of two grids may lie apart and still be the same grid:
/// more than rounding in single-precision headers and quaternions, less than can be seen.
const SAME_GRID: f64 = 0.1;

/// Degrees off the patient's axes, or off a right angle, that are worth a note.
const NOTED_DEGREES: f64 = 1.0;

/// Where a grid of voxels lies in the patient.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Voxels along x, y and z; x varies fastest in memory.
    pub shape: [usize; 3],
    /// From voxel indices to RAS+ millimetres (rows x, y, z, and 0 0 0 1).
    pub affine: [[f64; 4]; 4],
}

impl Geometry {
    /// An axis-aligned RAS+ grid of `shape` voxels, `spacing` millimetres apart.
    pub fn axis_aligned(shape: [usize; 3], spacing: [f64; 3]) -> Self {
        let mut affine = [[0.0; 4]; 4];
        for axis in 0..3 {
            affine[axis][axis] = spacing[axis];
        }
        affine[3][3] = 1.0;
        Geometry { shape, affine }
    }

    /// Millimetres between neighbouring voxels along x, y and z: the column norms of the affine.
    pub fn spacing(&self) -> [f64; 3] {
        std::array::from_fn(|axis| (0..3).map(|row| self.affine[row][axis].powi(2)).sum::<f64>().sqrt())
    }

    /// Voxels in the grid.
    pub fn voxel_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where the centre of voxel `index` (which may lie between voxels) is, in RAS+ millimetres.
    pub fn position(&self, index: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|row| {
            let [x, y, z, origin] = self.affine[row];
            x * index[0] + y * index[1] + z * index[2] + origin
        })
    }

    /// The direction in which each voxel axis runs, as nibabel's `aff2axcodes` names it: "RAS"
    /// says that x runs to the right, y to the front (anterior) and z to the top (superior).
    pub fn orientation(&self) -> String {
        let axes = self.closest_axes();
        axes.iter()
            .map(|&(row, forward)| ["LR", "PA", "IS"][row].chars().nth(usize::from(forward)).unwrap_or('?'))
            .collect()
    }

    /// What a person should know of a grid that does not lie along the patient's axes.
    pub(crate) fn note(&self) -> Option<String> {
        let spacing = self.spacing();
        let direction = |axis: usize| [0, 1, 2].map(|row| self.affine[row][axis] / spacing[axis]);
        let degrees = |cosine: f64| cosine.clamp(-1.0, 1.0).acos().to_degrees();
        let product = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let turned =
            self.closest_axes().into_iter().enumerate().map(|(axis, (row, _))| degrees(direction(axis)[row].abs()));
        let turned = turned.fold(0.0, f64::max);
        let pairs = [(0, 1), (0, 2), (1, 2)];
        let sheared = pairs.map(|(a, b)| (degrees(product(direction(a), direction(b))) - 90.0).abs());
        let sheared = sheared.into_iter().fold(0.0, f64::max);
        let slices = "slices are taken along the stored axes nearest to the patient's, as they are";
        if sheared > NOTED_DEGREES {
            Some(format!("is sheared: its axes are up to {sheared:.1} degrees off a right angle; {slices}"))
        } else if turned > NOTED_DEGREES {
            Some(format!("is oblique: its axes lie up to {turned:.1} degrees off the patient's; {slices}"))
        } else {
            None
        }
    }

    /// For each voxel axis the patient axis (row of the affine) nearest to it, and whether it runs
    /// along it or against it; no patient axis twice.
    ///
    /// Follows nibabel's `io_orientation`: the rotation closest to the affine decides, the most
    /// clearly aligned axis chooses first, and a tie falls to the lower index.
    fn closest_axes(&self) -> [(usize, bool); 3] {
        let spacing = self.spacing();
        let directions = std::array::from_fn(|row| {
            std::array::from_fn(|axis| self.affine[row][axis] / if spacing[axis] > 0.0 { spacing[axis] } else { 1.0 })
        });
        let rotation = closest_rotation(directions);
        let strength = |axis: usize| rotation.iter().map(|row| row[axis].abs()).fold(0.0, f64::max);
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));

        let mut axes = [(0, true); 3];
        let mut free = [true; 3];
        for axis in order {
            let mut best = None;
            for row in 0..3 {
                if free[row] && best.is_none_or(|b: usize| rotation[row][axis].abs() > rotation[b][axis].abs()) {
                    best = Some(row);
                }
            }
            let row = best.unwrap_or(axis);
            free[row] = false;
            axes[axis] = (row, rotation[row][axis] >= 0.0);
        }
        axes
    }

    /// What distinguishes this grid from `other`, for a person; nothing if their shapes agree and
    /// no corner lies more than a tenth of a voxel from its counterpart. `names` are what the two
    /// are called in the message.
    pub fn difference(&self, other: &Geometry, names: [&str; 2]) -> Option<String> {
        let [name, other_name] = names;
        if self.shape != other.shape {
            return Some(format!(
                "the {name} has {} voxels and the {other_name} {}",
                shape_text(self.shape),
                shape_text(other.shape)
            ));
        }
        let mut farthest = 0.0f64;
        for corner in 0..8usize {
            let index =
                std::array::from_fn(|axis| if corner >> axis & 1 == 1 { (self.shape[axis] - 1) as f64 } else { 0.0 });
            let (a, b) = (self.position(index), other.position(index));
            let distance = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            farthest = if distance.is_nan() { f64::INFINITY } else { farthest.max(distance) };
        }
        let smallest = self.spacing().into_iter().fold(f64::INFINITY, f64::min);
        if farthest <= SAME_GRID * smallest {
            return None;
        }
        Some(format!(
            "the {name} and the {other_name} lie up to {farthest:.3} mm apart: affine {} against {}",
            affine_text(&self.affine),
            affine_text(&other.affine)
        ))
    }
}

/// An affine to left-posterior-superior millimetres (ITK's and DICOM's) as one to right-anterior-superior, or back.
pub(crate) fn between_lps_and_ras(mut affine: [[f64; 4]; 4]) -> [[f64; 4]; 4] {
    affine[..2].iter_mut().flatten().for_each(|value| *value = -*value);
    // -0.0 is 0.0.
    affine.iter_mut().flatten().for_each(|value| *value += 0.0);
    affine
}

/// "512 x 512 x 20".
pub(crate) fn shape_text(shape: [usize; 3]) -> String {
    let [x, y, z] = shape;
    format!("{x} x {y} x {z}")
}

/// The three rows that say something, "[-1 0 0 90; 0 1 0 -120; 0 0 2 30]".
fn affine_text(affine: &[[f64; 4]; 4]) -> String {
    let rows = affine[..3].iter().map(|row| {
        // Four decimals, without the zeros that say nothing; adding 0 turns -0 into 0.
        row.map(|value| format!("{}", (value * 1e4).round() / 1e4 + 0.0)).join(" ")
    });
    format!("[{}]", rows.collect::<Vec<_>>().join("; "))
}

/// The rotation (or rotation and mirroring) nearest to an invertible matrix: the orthogonal factor
/// of its polar decomposition, by Newton's iteration `R <- (R + R^-T) / 2`.
pub(crate) fn closest_rotation(mut matrix: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    for _ in 0..60 {
        let Some(inverse) = inverted(&matrix) else { return matrix };
        let mut change = 0.0f64;
        let mut next = matrix;
        for row in 0..3 {
            for column in 0..3 {
                next[row][column] = 0.5 * (matrix[row][column] + inverse[column][row]);
                change = change.max((next[row][column] - matrix[row][column]).abs());
            }
        }
        matrix = next;
        if change < 1e-15 {
            break;
        }
    }
    matrix
}

/// The determinant of a 3 x 3 matrix.
pub(crate) fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    (0..3).map(|column| m[0][column] * cofactor(m, 0, column)).sum()
}

fn cofactor(m: &[[f64; 3]; 3], row: usize, column: usize) -> f64 {
    let (r1, r2, c1, c2) = ((row + 1) % 3, (row + 2) % 3, (column + 1) % 3, (column + 2) % 3);
    m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
}

/// The inverse of a 3 x 3 matrix, if it has one that numbers can hold.
fn inverted(m: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let determinant = determinant(m);
    (determinant != 0.0 && (1.0 / determinant).is_finite())
        .then(|| std::array::from_fn(|row| std::array::from_fn(|column| cofactor(m, column, row) / determinant)))
}

/// Voxels of type `T` on a grid: `f32` Hounsfield units for an image, `i32` labels for a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    pub geometry: Geometry,
    /// `shape[0] * shape[1] * shape[2]` values, x fastest, then y, then z.
    pub voxels: Vec<T>,
}

impl<T> Volume<T> {
    /// A volume of `voxels` on `geometry`.
    ///
    /// # Errors
    /// If the number of voxels is not the grid's.
    pub fn new(geometry: Geometry, voxels: Vec<T>) -> Result<Self> {
        if voxels.len() != geometry.voxel_count() {
            let [x, y, z] = geometry.shape;
            return Err(Error::Invalid(format!(
                "a volume of {x} x {y} x {z} voxels was given {} values",
                voxels.len()
            )));
        }
        Ok(Volume { geometry, voxels })
    }

    /// The voxels with axes z, y, x.
    pub fn view(&self) -> ArrayView3<'_, T> {
        let [x, y, z] = self.geometry.shape;
        ArrayView3::from_shape((z, y, x), &self.voxels).expect("a volume has as many voxels as its shape")
    }

    /// As [`Volume::view`], to write to.
    pub fn view_mut(&mut self) -> ArrayViewMut3<'_, T> {
        let [x, y, z] = self.geometry.shape;
        ArrayViewMut3::from_shape((z, y, x), &mut self.voxels).expect("a volume has as many voxels as its shape")
    }

    /// The voxels of axial slice `z`, row by row (y), x fastest.
    pub fn slice(&self, z: usize) -> &[T] {
        let area = self.geometry.shape[0] * self.geometry.shape[1];
        &self.voxels[z * area..(z + 1) * area]
    }
}

impl<T: Copy + Default + Send + Sync> Volume<T> {
    /// This volume on another grid: each new voxel is the old one nearest to its centre, or the default (0)
    /// where that lies outside.
    pub fn nearest(&self, grid: &Geometry) -> Volume<T> {
        let matrix = std::array::from_fn(|row| std::array::from_fn(|column| self.geometry.affine[row][column]));
        let [width, height, depth] = grid.shape;
        let mut voxels = vec![T::default(); width * height * depth];
        // A flat grid has no nearest voxel anywhere.
        let inverse = inverted(&matrix).unwrap_or([[f64::NAN; 3]; 3]);
        let voxel = |x: usize, y: usize, z: usize| {
            let position = grid.position([x as f64, y as f64, z as f64]);
            let mut index = [0; 3];
            for axis in 0..3 {
                let offset = |row: usize| inverse[axis][row] * (position[row] - self.geometry.affine[row][3]);
                let nearest = (0..3).map(offset).sum::<f64>().round();
                if !(0.0..self.geometry.shape[axis] as f64).contains(&nearest) {
                    return None;
                }
                index[axis] = nearest as usize;
            }
            let [x, y, z] = index;
            Some(self.voxels[(z * self.geometry.shape[1] + y) * self.geometry.shape[0] + x])
        };
        voxels.par_chunks_mut(width * height).enumerate().for_each(|(z, slice)| {
            for (y, row) in slice.chunks_mut(width).enumerate() {
                row.iter_mut().enumerate().for_each(|(x, target)| *target = voxel(x, y, z).unwrap_or_default());
            }
        });
        Volume { geometry: grid.clone(), voxels }
    }
}

/// The way from a stored grid to the same voxels in RAS order, and back.
///
/// Axes are exchanged and turned round; no voxel is interpolated, so `to_stored(to_ras(v)) == v`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reorientation {
    stored: Geometry,
    ras: Geometry,
    /// For each RAS axis the stored axis that lies along it, and whether it runs the same way.
    source: [(usize, bool); 3],
}

impl Reorientation {
    /// The reorientation of volumes on `stored` to the axis order nearest to RAS.
    pub fn to_ras_from(stored: &Geometry) -> Self {
        let mut source = [(0, true); 3];
        for (axis, (row, forward)) in stored.closest_axes().into_iter().enumerate() {
            source[row] = (axis, forward);
        }
        let mut ras = stored.clone();
        let mut first = [0.0; 3];
        for (axis, &(from, forward)) in source.iter().enumerate() {
            ras.shape[axis] = stored.shape[from];
            first[from] = if forward { 0.0 } else { (stored.shape[from] - 1) as f64 };
            for row in 0..3 {
                ras.affine[row][axis] = if forward { stored.affine[row][from] } else { -stored.affine[row][from] };
            }
        }
        let origin = stored.position(first);
        for (row, position) in origin.into_iter().enumerate() {
            ras.affine[row][3] = position;
        }
        Reorientation { stored: stored.clone(), ras, source }
    }

    /// The grid in RAS order.
    pub fn ras(&self) -> &Geometry {
        &self.ras
    }

    /// The stored axis along which axial slices follow each other.
    pub(crate) fn axial_axis(&self) -> usize {
        self.source[2].0
    }

    /// A volume on the stored grid, in RAS order.
    ///
    /// # Errors
    /// If the volume's shape is not the stored one.
    pub fn to_ras<T: Copy>(&self, volume: &Volume<T>) -> Result<Volume<T>> {
        self.check(volume, &self.stored)?;
        let voxels = self.in_ras_order(volume.view()).iter().copied().collect();
        Ok(Volume { geometry: self.ras.clone(), voxels })
    }

    /// Axial slice `z`, in RAS order, of a volume on the stored grid.
    ///
    /// # Panics
    /// If the volume's shape is not the stored one, or there is no such slice.
    pub fn ras_slice<T: Copy>(&self, volume: &Volume<T>, z: usize) -> Vec<T> {
        let view = self.in_ras_order(volume.view());
        let slice = view.index_axis(Axis(0), z);
        let mut voxels = Vec::with_capacity(slice.len());
        for row in slice.rows() {
            match row.to_slice() {
                Some(row) => voxels.extend_from_slice(row),
                None => voxels.extend(row.iter()),
            }
        }
        voxels
    }

    /// Some axial slices, one after the other, as a volume in RAS order: its spacing holds within a slice.
    ///
    /// # Panics
    /// As [`Reorientation::ras_slice`].
    pub fn ras_slices<T: Copy>(&self, volume: &Volume<T>, slices: &[usize]) -> Volume<T> {
        let [width, height, _] = self.ras().shape;
        let geometry = Geometry { shape: [width, height, slices.len()], ..self.ras().clone() };
        Volume { geometry, voxels: slices.iter().flat_map(|&z| self.ras_slice(volume, z)).collect() }
    }

    /// Replaces axial slice `z`, in RAS order, of a volume on the stored grid.
    ///
    /// # Panics
    /// If the volume's shape is not the stored one, there is no such slice, or `slice` has another size.
    pub fn set_ras_slice<T: Copy>(&self, volume: &mut Volume<T>, z: usize, slice: &[T]) {
        let mut view = self.in_ras_order(volume.view_mut());
        let mut target = view.index_axis_mut(Axis(0), z);
        assert_eq!(target.len(), slice.len(), "a slice has as many voxels as the grid says");
        target.iter_mut().zip(slice).for_each(|(target, &voxel)| *target = voxel);
    }

    /// A volume in RAS order put back, voxel for voxel, on the stored grid.
    ///
    /// # Errors
    /// If the volume's shape is not that of the RAS grid.
    pub fn to_stored<T: Copy>(&self, volume: &Volume<T>) -> Result<Volume<T>> {
        self.check(volume, &self.ras)?;
        let mut stored = Volume { geometry: self.stored.clone(), voxels: volume.voxels.clone() };
        self.in_ras_order(stored.view_mut()).assign(&volume.view());
        Ok(stored)
    }

    fn check<T>(&self, volume: &Volume<T>, expected: &Geometry) -> Result<()> {
        match volume.geometry.shape == expected.shape {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "a volume of {} voxels cannot be reoriented as one of {}",
                shape_text(volume.geometry.shape),
                shape_text(expected.shape)
            ))),
        }
    }

    /// A view of stored voxels as RAS order has them.
    fn in_ras_order<S: RawData>(&self, mut view: ArrayBase<S, Ix3>) -> ArrayBase<S, Ix3> {
        // Views have z first and x last.
        view = view.permuted_axes([2, 1, 0].map(|axis: usize| 2 - self.source[axis].0));
        for (axis, _) in self.source.iter().enumerate().filter(|(_, (_, forward))| !forward) {
            view.invert_axis(Axis(2 - axis));
        }
        view
    }
}
