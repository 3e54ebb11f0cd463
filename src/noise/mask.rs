//! Masks to be corrupted: the foreground, cut out of its grid so that thousands fit into memory.

use crate::metrics::distance::distances;

/// A mask that is not empty: a slice (a grid one voxel deep) or a volume.
#[derive(Debug, Clone)]
pub struct Mask {
    /// Voxels of the whole grid along x, y and z.
    grid: [usize; 3],
    /// Millimetres between voxels.
    spacing: [f64; 3],
    /// The smallest box with all of the foreground.
    cut: Window,
    count: usize,
}

/// A box of voxels, which may reach out of the grid.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// The grid's index of the box's first voxel.
    origin: [isize; 3],
    pub shape: [usize; 3],
    /// x fastest, then y, then z.
    pub foreground: Vec<bool>,
}

impl Window {
    /// A box of background.
    fn empty(origin: [isize; 3], shape: [usize; 3]) -> Self {
        Window { origin, shape, foreground: vec![false; shape.iter().product()] }
    }

    /// Whether a voxel of the box, or outside it, is foreground.
    pub fn is_foreground(&self, place: [isize; 3]) -> bool {
        let is_inside = place.iter().zip(self.shape).all(|(&place, length)| (0..length as isize).contains(&place));
        is_inside && self.foreground[self.row(place[1] as usize, place[2] as usize) + place[0] as usize]
    }

    /// Where the row of voxels (y, z) begins.
    fn row(&self, y: usize, z: usize) -> usize {
        (z * self.shape[1] + y) * self.shape[0]
    }
}

impl Mask {
    /// The mask of the voxels (indices into a grid of `shape`, x fastest, then y, then z, `spacing` millimetres
    /// apart) that are foreground; nothing if none is.
    pub fn new(shape: [usize; 3], spacing: [f64; 3], is_foreground: impl Fn(usize) -> bool) -> Option<Self> {
        let [width, height, depth] = shape;
        let (mut low, mut high) = (shape, [0; 3]);
        let mut count = 0;
        for voxel in (0..width * height * depth).filter(|&voxel| is_foreground(voxel)) {
            let place = [voxel % width, voxel / width % height, voxel / (width * height)];
            for axis in 0..3 {
                low[axis] = low[axis].min(place[axis]);
                high[axis] = high[axis].max(place[axis] + 1);
            }
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let size = std::array::from_fn(|axis| high[axis] - low[axis]);
        let mut cut = Window::empty(low.map(|low| low as isize), size);
        for z in 0..size[2] {
            for y in 0..size[1] {
                let from = ((low[2] + z) * height + low[1] + y) * width + low[0];
                let start = cut.row(y, z);
                let row = &mut cut.foreground[start..][..size[0]];
                row.iter_mut().enumerate().for_each(|(x, voxel)| *voxel = is_foreground(from + x));
            }
        }
        Some(Mask { grid: shape, spacing, cut, count })
    }

    /// Voxels of foreground, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The axes along which the mask extends: x and y of a slice, all three of a volume.
    pub(super) fn axes(&self) -> std::ops::Range<usize> {
        0..if self.grid[2] > 1 { 3 } else { 2 }
    }

    /// Millimetres between voxels along x, y and z.
    pub(super) fn spacing(&self) -> [f64; 3] {
        self.spacing
    }

    /// The spacing along the axis of the most closely spaced voxels.
    pub(super) fn finest_spacing(&self) -> f64 {
        self.spacing[self.axes()].iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Millimetres, square millimetres or cubic ones that a voxel fills.
    pub(super) fn voxel_size(&self) -> f64 {
        self.spacing[self.axes()].iter().product()
    }

    /// The foreground with `margin` millimetres around it, as far as the grid reaches.
    pub(super) fn window(&self, margin: f64) -> Window {
        let mut low = self.cut.origin;
        let mut high: [isize; 3] = std::array::from_fn(|axis| low[axis] + self.cut.shape[axis] as isize);
        for axis in self.axes() {
            let voxels = (margin / self.spacing[axis]).ceil().min(self.grid[axis] as f64) as isize;
            low[axis] = (low[axis] - voxels).max(0);
            high[axis] = (high[axis] + voxels).min(self.grid[axis] as isize);
        }
        self.cut_out(low, high)
    }

    /// The foreground with one voxel of background all around it, even where the grid ends.
    pub(super) fn framed(&self) -> Window {
        let mut low = self.cut.origin;
        let mut high: [isize; 3] = std::array::from_fn(|axis| low[axis] + self.cut.shape[axis] as isize);
        for axis in self.axes() {
            (low[axis], high[axis]) = (low[axis] - 1, high[axis] + 1);
        }
        self.cut_out(low, high)
    }

    /// The box from `low` to before `high`, which has all of the foreground.
    fn cut_out(&self, low: [isize; 3], high: [isize; 3]) -> Window {
        let mut window = Window::empty(low, std::array::from_fn(|axis| (high[axis] - low[axis]) as usize));
        let offset: [usize; 3] = std::array::from_fn(|axis| (self.cut.origin[axis] - low[axis]) as usize);
        let [width, height, depth] = self.cut.shape;
        for z in 0..depth {
            for y in 0..height {
                let start = window.row(y + offset[1], z + offset[2]) + offset[0];
                window.foreground[start..][..width]
                    .copy_from_slice(&self.cut.foreground[self.cut.row(y, z)..][..width]);
            }
        }
        window
    }

    /// The indices into the whole grid, rising, of the voxels in which `foreground` (of the voxels of `window`)
    /// differs from the mask.
    pub(super) fn flipped(&self, window: &Window, foreground: &[bool]) -> Vec<usize> {
        let [width, height, _] = window.shape;
        let differs = (0..foreground.len()).filter(|&voxel| foreground[voxel] != window.foreground[voxel]);
        differs
            .map(|voxel| {
                let place = [voxel % width, voxel / width % height, voxel / (width * height)];
                let [x, y, z] = std::array::from_fn(|axis| (window.origin[axis] + place[axis] as isize) as usize);
                (z * self.grid[1] + y) * self.grid[0] + x
            })
            .collect()
    }

    /// For each voxel of `window` on the side `of_foreground` how many millimetres away the nearest voxel of the
    /// other side is; 0 for voxels of the other side, infinite where that side is empty.
    pub(super) fn depths(&self, window: &Window, of_foreground: bool) -> Vec<f64> {
        let flags: Vec<u8> =
            window.foreground.iter().map(|&foreground| 1 + u8::from(foreground == of_foreground)).collect();
        let mut found = distances(&flags, window.shape, self.spacing, 1, 2).into_iter();
        let mut depths = vec![0.0; flags.len()];
        let [width, height, depth] = window.shape;
        for z in 0..depth {
            for x in 0..width {
                for y in 0..height {
                    let voxel = window.row(y, z) + x;
                    if flags[voxel] == 2 {
                        depths[voxel] = found.next().unwrap_or(f64::INFINITY);
                    }
                }
            }
        }
        depths
    }
}
