//! The one inner loop behind every convolution: a small tile of a matrix product whose operands
//! are read where they lie, so that no columns are ever written.
//!
//! `out[row][column] = sum over terms t and k of a[a_t + row a_row + k a_step] * b[b_t + k b_step + column]`
//!
//! In a forward convolution the rows are neighbouring pixels, the terms are the kernel's taps and k runs
//! over the input channels; in a weight gradient the rows are input channels, the terms are
//! image rows and k runs over their pixels. Columns are output channels in both.

use super::Real;
use super::operand::{Span, SpanMut};
use super::simd::{Portable, Simd};
use super::winograd::{
    InputLine, Line, OutputGradientLine, OutputLine, Transformation, Transforms, WeightGradientLine, WeightsLine,
    transform,
};

/// Columns of a tile are at most this many vectors.
const VECTORS: usize = 2;

/// A product of any number of rows. Starts, rows and steps count elements of the spans.
pub struct Product<'a, T> {
    pub a: Span<'a, T>,
    pub a_start: usize,
    pub a_row: usize,
    pub a_step: usize,
    pub b: Span<'a, T>,
    pub b_start: usize,
    pub b_step: usize,
    /// Where each term starts, relative to `a_start` and to `b_start`.
    pub terms: &'a [(usize, usize)],
    /// How far k runs in each term.
    pub depth: usize,
    pub out_start: usize,
    pub out_row: usize,
    pub rows: usize,
    /// At most [`TileKernels::max_columns`].
    pub columns: usize,
    pub start: Start<'a, T>,
    /// Negative results become zero.
    pub relu: bool,
}

/// What the sums start from.
#[derive(Clone, Copy)]
pub enum Start<'a, T> {
    Zero,
    /// What stands in the output.
    Out,
    /// One value per column.
    Bias(&'a [T]),
}

/// A [`Product`] whose accesses were checked.
struct Tile<'a, T> {
    a: *const T,
    a_row: usize,
    a_step: usize,
    b: *const T,
    b_step: usize,
    terms: &'a [(usize, usize)],
    depth: usize,
    out: *mut T,
    out_row: usize,
    columns: usize,
    start: Start<'a, T>,
    relu: bool,
}

/// # Safety
/// Every element that the tile's fields describe must be readable (`a`, `b`, bias) or
/// writable and not otherwise accessed (`out`), and the processor must have `S`'s instruction set.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const WIDTH: usize>(t: &Tile<S::Scalar>) {
    debug_assert!(t.columns <= WIDTH * S::LANES && t.columns > (WIDTH - 1) * S::LANES);
    let lanes = |v: usize| if v + 1 < WIDTH { S::LANES } else { t.columns - (WIDTH - 1) * S::LANES };
    // SAFETY: the caller's contract; every access below is to elements the tile describes.
    unsafe {
        let mut sums = [[S::splat(<S::Scalar as Real>::ZERO); WIDTH]; ROWS];
        match t.start {
            Start::Zero => {}
            Start::Out => {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = S::load(t.out.add(row * t.out_row + v * S::LANES), lanes(v));
                    }
                }
            }
            Start::Bias(bias) => {
                for v in 0..WIDTH {
                    let value = S::load(bias.as_ptr().add(v * S::LANES), lanes(v));
                    sums.iter_mut().for_each(|row| row[v] = value);
                }
            }
        }
        for &(a_start, b_start) in t.terms {
            let mut a = t.a.add(a_start);
            let mut b = t.b.add(b_start);
            for _ in 0..t.depth {
                let mut columns = [S::splat(<S::Scalar as Real>::ZERO); WIDTH];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = S::load(b.add(v * S::LANES), lanes(v));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = S::splat(*a.add(row * t.a_row));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = S::multiply_add(value, columns[v], *sum);
                    }
                }
                a = a.add(t.a_step);
                b = b.add(t.b_step);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let value = if t.relu { S::max(sum, S::splat(<S::Scalar as Real>::ZERO)) } else { sum };
                S::store(t.out.add(row * t.out_row + v * S::LANES), value, lanes(v));
            }
        }
    }
}

/// A tile function of fixed rows and width.
type TileFunction<T> = unsafe fn(&Tile<T>);

/// The tile functions and transforms of one instruction set.
pub struct TileKernels<T: 'static> {
    pub name: &'static str,
    /// Lanes of a vector.
    lanes: usize,
    /// Rows, and the function for one and for two vectors of columns; most rows first, one row last.
    functions: &'static [(usize, [TileFunction<T>; VECTORS])],
    transforms: Transforms<T>,
}

impl<T: Real> TileKernels<T> {
    /// The most columns a tile can have.
    pub fn max_columns(&self) -> usize {
        VECTORS * self.lanes
    }

    /// The most rows a tile can have.
    pub fn max_rows(&self) -> usize {
        self.functions[0].0
    }

    /// Writes the product to `out`, in as few tiles as the instruction set allows.
    ///
    /// # Panics
    /// If the product reaches beyond its spans, which is a bug.
    pub fn run(&self, out: &mut SpanMut<T>, p: &Product<T>) {
        if p.rows == 0 || p.columns == 0 {
            return;
        }
        p.check(out.len);
        assert!(p.columns <= self.max_columns(), "a product of {} columns is too wide for a tile", p.columns);
        let width = p.columns.div_ceil(self.lanes) - 1;
        let mut done = 0;
        for &(step, functions) in self.functions {
            while p.rows - done >= step {
                // SAFETY: `check` holds for the rows from `done` on; a table is only there for an
                // instruction set that the processor has.
                unsafe {
                    functions[width](&Tile {
                        a: p.a.pointer.add(p.a_start + done * p.a_row),
                        a_row: p.a_row,
                        a_step: p.a_step,
                        b: p.b.pointer.add(p.b_start),
                        b_step: p.b_step,
                        terms: p.terms,
                        depth: p.depth,
                        out: out.pointer.add(p.out_start + done * p.out_row),
                        out_row: p.out_row,
                        columns: p.columns,
                        start: p.start,
                        relu: p.relu,
                    });
                }
                done += step;
            }
        }
    }

    /// Transforms a square of vectors of `source` to one of `target`.
    ///
    /// # Panics
    /// If it reaches beyond the spans, which is a bug.
    pub fn transform(&self, source: Span<T>, target: &mut SpanMut<T>, t: &Transformation<T>) {
        t.check(&source, target);
        // SAFETY: `check` holds; a table is only there for an instruction set that the processor has.
        unsafe { self.transforms.function(t.transform)(source.pointer, target.pointer, t) }
    }
}

impl<'a, T> Product<'a, T> {
    /// Of matrices that are stored densely, row by row.
    pub fn plain(a: &'a [T], b: &'a [T], [rows, columns, depth]: [usize; 3]) -> Self {
        Product {
            a: Span::from(a),
            a_start: 0,
            a_row: depth,
            a_step: 1,
            b: Span::from(b),
            b_start: 0,
            b_step: columns,
            terms: &[(0, 0)],
            depth,
            out_start: 0,
            out_row: columns,
            rows,
            columns,
            start: Start::Zero,
            relu: false,
        }
    }

    /// Asserts that everything the product reads and writes lies inside its spans.
    fn check(&self, out: usize) {
        let last = (self.depth.max(1) - 1, self.rows - 1, self.columns - 1);
        let (a_term, b_term) = self.terms.iter().fold((0, 0), |(a, b), &(x, y)| (x.max(a), y.max(b)));
        if !self.terms.is_empty() && self.depth > 0 {
            assert!(self.a_start + a_term + last.1 * self.a_row + last.0 * self.a_step < self.a.len);
            assert!(self.b_start + b_term + last.0 * self.b_step + last.2 < self.b.len);
        }
        assert!(self.out_start + last.1 * self.out_row + last.2 < out);
        if let Start::Bias(bias) = self.start {
            assert!(last.2 < bias.len());
        }
    }
}

/// A table of tile functions, compiled for the named target features.
macro_rules! tile_kernels {
    ($name:ident, $label:literal, $simd:ty, $scalar:ty, [$($feature:literal)?], [$($rows:literal),+]) => {
        static $name: TileKernels<$scalar> = {
            $(#[target_feature(enable = $feature)])?
            unsafe fn run<const ROWS: usize, const WIDTH: usize>(t: &Tile<$scalar>) {
                // SAFETY: the caller's contract.
                unsafe { tile::<$simd, ROWS, WIDTH>(t) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn square<L: Line<$simd, FROM, TO>, const FROM: usize, const TO: usize>(
                source: *const $scalar,
                target: *mut $scalar,
                t: &Transformation<$scalar>,
            ) {
                // SAFETY: the caller's contract.
                unsafe { transform::<$simd, L, FROM, TO>(source, target, t) }
            }
            TileKernels {
                name: $label,
                lanes: <$simd as Simd>::LANES,
                functions: &[$(($rows, [run::<$rows, 1>, run::<$rows, 2>])),+],
                transforms: Transforms {
                    input: square::<InputLine, 6, 6>,
                    weights: square::<WeightsLine, 3, 6>,
                    output: square::<OutputLine, 6, 4>,
                    output_gradient: square::<OutputGradientLine, 4, 6>,
                    weight_gradient: square::<WeightGradientLine, 6, 3>,
                },
            }
        };
    };
}

// Rows: two vectors of sums a row, with the columns and one splat beside them, fill 32 registers or 16.
tile_kernels!(PORTABLE_F32, "portable", Portable<f32>, f32, [], [4, 2, 1]);
tile_kernels!(PORTABLE_F64, "portable", Portable<f64>, f64, [], [4, 2, 1]);
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::simd::x86::*;
    use super::*;
    tile_kernels!(AVX2_F32, "AVX2", Avx2F32, f32, ["avx2,fma"], [6, 4, 2, 1]);
    tile_kernels!(AVX2_F64, "AVX2", Avx2F64, f64, ["avx2,fma"], [6, 4, 2, 1]);
    tile_kernels!(AVX512_F32, "AVX-512", Avx512F32, f32, ["avx512f"], [12, 8, 4, 2, 1]);
    tile_kernels!(AVX512_F64, "AVX-512", Avx512F64, f64, ["avx512f"], [12, 8, 4, 2, 1]);

    pub(super) fn f32(set: InstructionSet) -> &'static TileKernels<f32> {
        match set {
            InstructionSet::Avx512 => &AVX512_F32,
            InstructionSet::Avx2 => &AVX2_F32,
            InstructionSet::Portable => &PORTABLE_F32,
        }
    }

    pub(super) fn f64(set: InstructionSet) -> &'static TileKernels<f64> {
        match set {
            InstructionSet::Avx512 => &AVX512_F64,
            InstructionSet::Avx2 => &AVX2_F64,
            InstructionSet::Portable => &PORTABLE_F64,
        }
    }
}

/// The instruction sets that tile kernels are compiled for, the best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    Portable,
    Avx2,
    Avx512,
}

impl InstructionSet {
    /// The best that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return InstructionSet::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return InstructionSet::Avx2;
            }
        }
        InstructionSet::Portable
    }
}

/// The `f32` tile kernels of `set`, which the processor must have.
pub fn kernels_f32(set: InstructionSet) -> &'static TileKernels<f32> {
    assert!(set <= InstructionSet::best(), "this processor lacks {set:?}");
    #[cfg(target_arch = "x86_64")]
    return x86::f32(set);
    #[cfg(not(target_arch = "x86_64"))]
    &PORTABLE_F32
}

/// The `f64` tile kernels of `set`, which the processor must have.
pub fn kernels_f64(set: InstructionSet) -> &'static TileKernels<f64> {
    assert!(set <= InstructionSet::best(), "this processor lacks {set:?}");
    #[cfg(target_arch = "x86_64")]
    return x86::f64(set);
    #[cfg(not(target_arch = "x86_64"))]
    &PORTABLE_F64
}
