//! A scan in memory: voxels on a grid, and where the grid lies in the patient.

use crate::{Error, Result};

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

    /// The voxels of axial slice `z`, row by row (y), x fastest.
    pub fn slice(&self, z: usize) -> &[T] {
        let area = self.geometry.shape[0] * self.geometry.shape[1];
        &self.voxels[z * area..(z + 1) * area]
    }
}
