//! Two masks on one grid, cropped to what matters, with their boundaries marked: what [`surface`]
//! and [`boundary`] work on.
//!
//! [`surface`]: super::surface
//! [`boundary`]: super::boundary

use std::ops::Range;

use rayon::prelude::*;

/// The flag of a voxel of the reference mask, G in the paper.
pub const REFERENCE: u8 = 1;
/// The flag of a voxel of the predicted mask, M in the paper.
pub const PREDICTION: u8 = 2;
/// The flag of a voxel on the reference's boundary.
pub const REFERENCE_BOUNDARY: u8 = 4;
/// The flag of a voxel on the prediction's boundary.
pub const PREDICTION_BOUNDARY: u8 = 8;

/// Two masks within their joint bounding box; outside of it both are background.
pub struct MaskPair {
    /// Voxels of the bounding box along x, y and z; all 0 if both masks are empty.
    pub shape: [usize; 3],
    /// The flags of each voxel in the bounding box, x fastest, then y, then z.
    pub flags: Vec<u8>,
}

impl MaskPair {
    /// The pair of two masks that fill `shape` [x, y, z]. A voxel is on its mask's boundary if one
    /// of its face neighbours, 4 in a volume of one slice, else 6, is background or outside.
    pub fn new(prediction: &[bool], reference: &[bool], shape: [usize; 3]) -> Self {
        let prediction = Mask { voxels: prediction, shape };
        let reference = Mask { voxels: reference, shape };
        let Some([xs, ys, zs]) = bounding_box(prediction, reference) else {
            return MaskPair { shape: [0; 3], flags: Vec::new() };
        };
        let mut flags = vec![0; xs.len() * ys.len() * zs.len()];
        flags.par_chunks_mut(xs.len() * ys.len()).zip(zs.clone()).for_each(|(slice, z)| {
            for (row, y) in slice.chunks_mut(xs.len()).zip(ys.clone()) {
                prediction.mark(row, xs.start, y, z, [PREDICTION, PREDICTION_BOUNDARY]);
                reference.mark(row, xs.start, y, z, [REFERENCE, REFERENCE_BOUNDARY]);
            }
        });
        MaskPair { shape: [xs.len(), ys.len(), zs.len()], flags }
    }

    /// Whether any voxel has `flag`.
    pub fn has(&self, flag: u8) -> bool {
        self.flags.iter().any(|flags| flags & flag != 0)
    }
}

#[derive(Clone, Copy)]
struct Mask<'a> {
    voxels: &'a [bool],
    shape: [usize; 3],
}

impl<'a> Mask<'a> {
    fn row(self, y: usize, z: usize) -> &'a [bool] {
        let [columns, rows, _] = self.shape;
        &self.voxels[(z * rows + y) * columns..][..columns]
    }

    /// Adds the flags of the voxels from `start` on in row `y` of slice `z`.
    fn mark(self, flags: &mut [u8], start: usize, y: usize, z: usize, [inside, boundary]: [u8; 2]) {
        let [columns, rows, slices] = self.shape;
        let row = self.row(y, z);
        let beside = [
            y.checked_sub(1).map(|y| self.row(y, z)),
            (y + 1 < rows).then(|| self.row(y + 1, z)),
            z.checked_sub(1).map(|z| self.row(y, z)),
            (z + 1 < slices).then(|| self.row(y, z + 1)),
        ];
        let beside = if slices == 1 { &beside[..2] } else { &beside[..] };
        for (x, flags) in (start..columns).zip(flags) {
            if !row[x] {
                continue;
            }
            let enclosed = x > 0
                && x + 1 < columns
                && row[x - 1]
                && row[x + 1]
                && beside.iter().all(|neighbours| neighbours.is_some_and(|neighbours| neighbours[x]));
            *flags |= if enclosed { inside } else { inside | boundary };
        }
    }
}

/// The smallest box that holds the foreground of both masks, if there is any.
fn bounding_box(first: Mask, second: Mask) -> Option<[Range<usize>; 3]> {
    let [_, rows, slices] = first.shape;
    (0..slices)
        .into_par_iter()
        .filter_map(|z| {
            let extents = (0..rows).filter_map(|y| {
                let xs = join(extent(first.row(y, z)), extent(second.row(y, z)), hull)?;
                Some([xs, y..y + 1, z..z + 1])
            });
            extents.reduce(join_boxes)
        })
        .reduce_with(join_boxes)
}

/// From the first to past the last foreground voxel of a row, if there is any.
fn extent(row: &[bool]) -> Option<Range<usize>> {
    // Most rows are empty: this fold, unlike a search, looks at many voxels at once.
    if !row.iter().fold(false, |any, &voxel| any | voxel) {
        return None;
    }
    let start = row.iter().position(|&voxel| voxel)?;
    let end = row.iter().rposition(|&voxel| voxel)? + 1;
    Some(start..end)
}

fn join<T>(first: Option<T>, second: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (first, second) {
        (Some(first), Some(second)) => Some(both(first, second)),
        (first, second) => first.or(second),
    }
}

fn join_boxes(first: [Range<usize>; 3], second: [Range<usize>; 3]) -> [Range<usize>; 3] {
    let ([ax, ay, az], [bx, by, bz]) = (first, second);
    [hull(ax, bx), hull(ay, by), hull(az, bz)]
}

fn hull(first: Range<usize>, second: Range<usize>) -> Range<usize> {
    first.start.min(second.start)..first.end.max(second.end)
}
