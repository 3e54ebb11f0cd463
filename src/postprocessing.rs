//! What may be done to a predicted mask after the network: keeping its largest component, filling its holes.

use crate::data::Volume;

/// Keeps the largest component of a mask, in voxels, and clears the others. Voxels that share a face, an edge or
/// a corner are of one component; of two as large, the one that comes first in memory is kept.
pub fn keep_largest_component(mask: &mut Volume<u8>) {
    let mut runs = Runs::of(mask, |voxel| voxel != 0);
    runs.connect(true);
    let mut voxels = vec![0u64; runs.runs.len()];
    for run in 0..runs.runs.len() {
        let root = runs.root(run);
        voxels[root] += u64::from(runs.runs[run].end - runs.runs[run].start);
    }
    // A component's root is its first run, and the first of equals is wanted.
    let Some(largest) = (0..voxels.len()).rev().max_by_key(|&run| voxels[run]) else { return };
    runs.fill_where(mask, 0, |root| root != largest);
}

/// Fills what of the background the foreground encloses: no path over the voxels' faces leads from there to
/// the volume's border. In a volume of one slice that is a slice's border, else all six sides.
pub fn fill_holes(mask: &mut Volume<u8>) {
    let mut runs = Runs::of(mask, |voxel| voxel == 0);
    runs.connect(false);
    let [width, height, depth] = mask.geometry.shape;
    let mut open = vec![false; runs.runs.len()];
    let at_end = |place: usize, size: usize| size > 1 && (place == 0 || place == size - 1);
    for row in 0..height * depth {
        let at_border = at_end(row % height, height) || at_end(row / height, depth);
        for run in runs.rows[row]..runs.rows[row + 1] {
            let Run { start, end, .. } = runs.runs[run];
            if at_border || width > 1 && (start == 0 || end as usize == width) {
                let root = runs.root(run);
                open[root] = true;
            }
        }
    }
    runs.fill_where(mask, 1, |root| !open[root]);
}

/// Neighbouring voxels of a row that are all wanted.
struct Run {
    /// Along x, the end excluded.
    start: u32,
    end: u32,
    /// An earlier run of the same component, or this one if it is the first.
    parent: u32,
}

/// The runs of a volume, row after row, and which of them are connected: far fewer than voxels.
struct Runs {
    shape: [usize; 3],
    runs: Vec<Run>,
    /// The first run of each row, and at the end their number.
    rows: Vec<usize>,
}

impl Runs {
    /// The runs of wanted voxels, none connected yet.
    fn of(mask: &Volume<u8>, wanted: impl Fn(u8) -> bool) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        let mut rows = vec![0];
        for row in mask.voxels.chunks_exact(mask.geometry.shape[0]) {
            let mut x = 0;
            for stretch in row.chunk_by(|&a, &b| wanted(a) == wanted(b)) {
                let end = x + stretch.len() as u32;
                if wanted(stretch[0]) {
                    runs.push(Run { start: x, end, parent: runs.len() as u32 });
                }
                x = end;
            }
            rows.push(runs.len());
        }
        Runs { shape: mask.geometry.shape, runs, rows }
    }

    /// Connects the runs that touch: over faces, or over edges and corners too.
    fn connect(&mut self, diagonally: bool) {
        let [_, height, depth] = self.shape;
        for z in 0..depth {
            for y in 0..height {
                let row = z * height + y;
                if y > 0 {
                    self.connect_rows(row - 1, row, diagonally);
                }
                if z == 0 {
                    continue;
                }
                self.connect_rows(row - height, row, diagonally);
                if diagonally && y > 0 {
                    self.connect_rows(row - height - 1, row, true);
                }
                if diagonally && y + 1 < height {
                    self.connect_rows(row - height + 1, row, true);
                }
            }
        }
    }

    fn connect_rows(&mut self, one: usize, other: usize, diagonally: bool) {
        let reach = u32::from(diagonally);
        let (mut a, mut b) = (self.rows[one], self.rows[other]);
        while a < self.rows[one + 1] && b < self.rows[other + 1] {
            let (first, second) = (&self.runs[a], &self.runs[b]);
            if first.start < second.end + reach && second.start < first.end + reach {
                self.join(a, b);
            }
            // What ends first cannot touch anything further on.
            if self.runs[a].end < self.runs[b].end { a += 1 } else { b += 1 }
        }
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.runs[a.max(b)].parent = a.min(b) as u32;
    }

    /// The first run of a run's component.
    fn root(&mut self, mut run: usize) -> usize {
        while self.runs[run].parent as usize != run {
            let above = self.runs[run].parent as usize;
            self.runs[run].parent = self.runs[above].parent;
            run = above;
        }
        run
    }

    /// Gives `value` to the voxels of the components whose first run is `chosen`.
    fn fill_where(&mut self, mask: &mut Volume<u8>, value: u8, chosen: impl Fn(usize) -> bool) {
        let width = self.shape[0];
        for row in 0..self.rows.len() - 1 {
            for run in self.rows[row]..self.rows[row + 1] {
                if chosen(self.root(run)) {
                    let Run { start, end, .. } = self.runs[run];
                    mask.voxels[row * width + start as usize..row * width + end as usize].fill(value);
                }
            }
        }
    }
}
