//! How many blocks and threads a kernel is launched with; the kernels' side of it is `kernels/pixels.cuh`.

use super::Operand;
use crate::device::kernels::common::WARP_SIZE;
use crate::device::kernels::pixels::{CHUNKS_PER_THREAD, PIXELS_PER_THREAD, THREADS};
use crate::tensor::CHANNEL_ALIGNMENT;
use serde::Serialize;

/// The blocks of a launch, and the threads of a block, along x, y and z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Grid {
    pub blocks: [usize; 3],
    pub threads: [usize; 3],
}

impl Grid {
    /// Blocks along three axes, of `threads` threads in a row.
    pub fn new(blocks: [usize; 3], threads: usize) -> Self {
        Grid { blocks, threads: [threads, 1, 1] }
    }

    /// Threads for `count` elements, one each, in blocks of `threads`.
    pub fn over(count: usize, threads: usize) -> Self {
        Grid::new([count.div_ceil(threads), 1, 1], threads)
    }
}

/// Channels of a block that merges chunks: few, so that each thread has few chunks, and loads them all at once.
const MERGE_COLUMNS: usize = 4;

/// How threads share pixels and channels: along x, groups of `width` channels; along y, pixels. Threads and blocks
/// along x cover all channels; along y, threads are as many as a block has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelGrid {
    /// Channels that a thread works on at once: what 16 bytes have (4, or 8 of 16 bits), or 1.
    pub width: usize,
    columns: usize,
    rows: usize,
    /// Blocks that cover all channels.
    column_blocks: usize,
}

impl PixelGrid {
    /// For operands with these many stored channels, 16 bytes of the smallest elements at once if all of them allow it.
    pub fn new<'a>(channels: usize, operands: impl IntoIterator<Item = &'a Operand<'a>>) -> Self {
        let (mut width, mut aligned) = (4, true);
        for operand in operands {
            width = width.max(operand.wide());
            aligned &= operand.is_aligned();
        }
        aligned &= channels.is_multiple_of(width);
        assert!(aligned || width == 4, "tensors of 16-bit elements are aligned, and so are the vectors beside them");
        Self::with_width(channels, if aligned { width } else { 1 })
    }

    /// A channel at a time.
    pub fn single(channels: usize) -> Self {
        Self::with_width(channels, 1)
    }

    /// Eight channels at a time: those of a byte of bits.
    pub fn eights(channels: usize) -> Self {
        Self::with_width(channels, CHANNEL_ALIGNMENT)
    }

    /// For merging chunks: many threads share the chunks of each channel.
    pub fn merging(channels: usize) -> Self {
        let columns = channels.min(MERGE_COLUMNS);
        PixelGrid { width: 1, columns, rows: THREADS / columns, column_blocks: channels.div_ceil(columns) }
    }

    fn with_width(channels: usize, width: usize) -> Self {
        let groups = channels.div_ceil(width);
        let column_blocks = groups.div_ceil(THREADS);
        let columns = groups.div_ceil(column_blocks);
        PixelGrid { width, columns, rows: (THREADS / columns).max(1), column_blocks }
    }

    /// Blocks that go over `pixels` pixels of each of `samples` samples.
    pub fn over(&self, pixels: usize, samples: usize) -> Grid {
        self.with_blocks(pixels.div_ceil(self.rows * PIXELS_PER_THREAD), samples)
    }

    /// Chunks of the pixels of each of `samples` samples. Smaller ones would not keep a block's threads busy.
    pub fn chunks(&self, pixels: usize, samples: usize) -> Chunks {
        self.chunks_up_to(Chunks::most(pixels, samples), pixels)
    }

    /// Chunks of the pixels of a sample, at most so many.
    pub fn chunks_up_to(&self, most: usize, pixels: usize) -> Chunks {
        let size = pixels.div_ceil(most).next_multiple_of(self.rows);
        let size = size.max(self.rows * PIXELS_PER_THREAD);
        Chunks { pixels: size, count: pixels.div_ceil(size) }
    }

    /// `blocks` blocks for each sample.
    pub fn with_blocks(&self, blocks: usize, samples: usize) -> Grid {
        Grid { blocks: [blocks, self.column_blocks, samples], threads: [self.columns, self.rows, 1] }
    }
}

/// How threads share the channels of a pixel that are reduced: neighbouring lanes along x, pixels along y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneGrid {
    /// As [`PixelGrid::width`].
    pub width: usize,
    lanes: usize,
}

impl LaneGrid {
    /// As [`PixelGrid::new`].
    pub fn new<'a>(channels: usize, operands: impl IntoIterator<Item = &'a Operand<'a>>) -> Self {
        let width = PixelGrid::new(channels, operands).width;
        LaneGrid { width, lanes: channels.div_ceil(width).next_power_of_two().min(WARP_SIZE) }
    }

    /// Blocks that go over `pixels` pixels of each of `samples` samples.
    pub fn over(&self, pixels: usize, samples: usize) -> Grid {
        let rows = THREADS / self.lanes;
        Grid { blocks: [pixels.div_ceil(rows * PIXELS_PER_THREAD), 1, samples], threads: [self.lanes, rows, 1] }
    }
}

/// Operands of one shape, element by element.
#[derive(Debug, Clone)]
pub struct Elements {
    pixels: usize,
    channels: usize,
    strides: Vec<usize>,
    grid: PixelGrid,
}

impl Elements {
    pub fn new(operands: &[Operand]) -> Self {
        let first = &operands[0];
        assert!(operands.iter().all(|operand| operand.shape == first.shape), "element-wise operands have one shape");
        let (elements, wide) = (first.shape.elements(), first.wide());
        if operands.iter().all(|operand| operand.is_dense() && operand.pointer.is_aligned())
            && elements.is_multiple_of(wide)
        {
            // Where all lie densely, any split into pixels will do; this one always allows 16 bytes at once.
            let grid = PixelGrid::with_width(wide, wide);
            return Elements { pixels: elements / wide, channels: wide, strides: vec![wide; operands.len()], grid };
        }
        let strides = operands.iter().map(|operand| operand.stride).collect();
        let grid = PixelGrid::new(first.channels(), operands);
        Elements { pixels: first.positions(), channels: first.channels(), strides, grid }
    }

    /// The kernel's sizes: pixels, channels, the stride of each operand, and the channels a thread works on at once.
    pub fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        [self.pixels, self.channels].into_iter().chain(self.strides.iter().copied()).chain([self.grid.width])
    }

    pub fn grid(&self) -> Grid {
        self.grid.over(self.pixels, 1)
    }
}

/// Pixels in chunks, each reduced by one block; then the chunks' results are, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Pixels of a chunk; the last may have fewer.
    pub pixels: usize,
    pub count: usize,
}

/// At most so many chunks: they fill a GPU, four to a multiprocessor, and are merged with one wait for memory.
const CHUNKS: usize = CHUNKS_PER_THREAD * THREADS / MERGE_COLUMNS;

impl Chunks {
    /// The most there are of each sample, whatever the grid.
    pub fn most(pixels: usize, samples: usize) -> usize {
        (CHUNKS / samples.max(1)).clamp(1, pixels.div_ceil(PIXELS_PER_THREAD).max(1))
    }
}
