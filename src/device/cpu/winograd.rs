//! The transforms of Winograd's convolution F(4 x 4, 3 x 3), over vectors of channels.
//!
//! Along one axis, four outputs of a correlation with three weights are a polynomial product. Its factors are evaluated
//! at 0, `±NEAR`, `±FAR` and infinity, multiplied point by point, and interpolated; with both axes, 36 products do what
//! otherwise takes 144. The points are those of small rounding errors: about twice those of the plain sum in f32.

use super::Real;
use super::operand::{Span, SpanMut};
use super::simd::Simd;

/// Output pixels along a side of a tile.
pub const OUTPUTS: usize = 4;
/// Input pixels along a side of a tile, and points along an axis.
pub const INPUTS: usize = 6;
/// Products of a tile.
pub const POINTS: usize = INPUTS * INPUTS;

const NEAR: f64 = 0.625;
const FAR: f64 = 1.5;
const NEAR_2: f64 = NEAR * NEAR;
const FAR_2: f64 = FAR * FAR;
/// The inverses of what the interpolation polynomials are at 0, at `±NEAR` and at `±FAR`.
const AT_ZERO: f64 = 1.0 / (NEAR_2 * FAR_2);
const AT_NEAR: f64 = 0.5 / (NEAR_2 * (NEAR_2 - FAR_2));
const AT_FAR: f64 = 0.5 / (FAR_2 * (FAR_2 - NEAR_2));

/// Which transform: from one square of vectors to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// 6 x 6 input pixels to points.
    Input,
    /// 3 x 3 weights to points.
    Weights,
    /// Points to 4 x 4 output pixels.
    Output,
    /// The gradient of 4 x 4 output pixels to that of points.
    OutputGradient,
    /// The gradient of points to that of 3 x 3 weights.
    WeightGradient,
}

impl Transform {
    /// The sides of the squares.
    fn sides(self) -> (usize, usize) {
        match self {
            Transform::Input => (INPUTS, INPUTS),
            Transform::Weights => (3, INPUTS),
            Transform::Output => (INPUTS, OUTPUTS),
            Transform::OutputGradient => (OUTPUTS, INPUTS),
            Transform::WeightGradient => (INPUTS, 3),
        }
    }
}

/// Where a square of vectors of channels lies in a span: its first element, and the elements from one row and from one
/// column to the next. Outside of rows and columns `from` to (exclusively) `to` it is zero, is not read or written, and
/// may lie outside of the span.
#[derive(Debug, Clone, Copy)]
pub struct Square {
    pub start: isize,
    pub row: usize,
    pub column: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
}

impl Square {
    /// All of a square of at most [`INPUTS`] rows and columns.
    pub fn whole(start: usize, row: usize, column: usize) -> Self {
        Square { start: start as isize, row, column, from: [0; 2], to: [INPUTS; 2] }
    }

    /// The 6 x 6 points of a tile, `point` elements apart.
    pub fn points(start: usize, point: usize) -> Self {
        Square::whole(start, INPUTS * point, point)
    }

    /// Asserts that a square of this side lies inside a span of `len` elements.
    fn check(&self, side: usize, channels: usize, len: usize) {
        let last = [self.to[0].min(side), self.to[1].min(side)];
        if self.from[0] < last[0] && self.from[1] < last[1] {
            let at = |[row, column]: [usize; 2]| self.start + (row * self.row + column * self.column) as isize;
            assert!(at(self.from) >= 0, "a square starts inside its span");
            let end = at([last[0] - 1, last[1] - 1]) as usize + channels;
            assert!(end <= len, "a square ends inside its span");
        }
    }

    /// Whether nothing of a square of this side lies outside.
    fn is_whole(&self, side: usize) -> bool {
        self.from == [0; 2] && self.to[0] >= side && self.to[1] >= side
    }

    fn contains(&self, row: usize, column: usize) -> bool {
        self.from[0] <= row && row < self.to[0] && self.from[1] <= column && column < self.to[1]
    }
}

/// A transform of some channels.
pub struct Transformation<'a, T> {
    pub transform: Transform,
    pub from: Square,
    pub to: Square,
    pub channels: usize,
    /// Added to every pixel, one value per channel.
    pub bias: Option<&'a [T]>,
    /// Negative results become zero.
    pub relu: bool,
}

impl<T> Transformation<'_, T> {
    pub(super) fn check(&self, source: &Span<T>, target: &SpanMut<T>) {
        let (from, to) = self.transform.sides();
        self.from.check(from, self.channels, source.len);
        self.to.check(to, self.channels, target.len);
        assert!(self.bias.is_none_or(|bias| bias.len() >= self.channels));
    }
}

/// A function that computes one transform.
pub(super) type TransformFunction<T> = unsafe fn(*const T, *mut T, &Transformation<T>);

/// The transforms of one instruction set.
pub(super) struct Transforms<T: 'static> {
    pub input: TransformFunction<T>,
    pub weights: TransformFunction<T>,
    pub output: TransformFunction<T>,
    pub output_gradient: TransformFunction<T>,
    pub weight_gradient: TransformFunction<T>,
}

impl<T> Transforms<T> {
    pub fn function(&self, transform: Transform) -> TransformFunction<T> {
        match transform {
            Transform::Input => self.input,
            Transform::Weights => self.weights,
            Transform::Output => self.output,
            Transform::OutputGradient => self.output_gradient,
            Transform::WeightGradient => self.weight_gradient,
        }
    }
}

/// A transform along one axis.
///
/// # Safety
/// As of [`Simd`].
pub(super) unsafe trait Line<S: Simd, const FROM: usize, const TO: usize> {
    unsafe fn line(x: [S::Vector; FROM]) -> [S::Vector; TO];
}

/// # Safety
/// Every element that the transformation describes must be readable or writable and not otherwise accessed, and the
/// processor must have `S`'s instruction set.
#[inline(always)]
pub(super) unsafe fn transform<S: Simd, L: Line<S, FROM, TO>, const FROM: usize, const TO: usize>(
    source: *const S::Scalar,
    target: *mut S::Scalar,
    t: &Transformation<S::Scalar>,
) {
    let whole = t.from.is_whole(FROM) && t.to.is_whole(TO);
    for channel in (0..t.channels).step_by(S::LANES) {
        let lanes = S::LANES.min(t.channels - channel);
        // SAFETY: the caller's contract.
        unsafe {
            if whole && lanes == S::LANES {
                vector::<S, L, FROM, TO, true>(source, target, t, channel, S::LANES);
            } else {
                vector::<S, L, FROM, TO, false>(source, target, t, channel, lanes);
            }
        }
    }
}

/// Transforms a vector of `lanes` channels; where both squares are `WHOLE`, without asking of each element.
///
/// # Safety
/// As of [`transform`].
#[inline(always)]
unsafe fn vector<S: Simd, L: Line<S, FROM, TO>, const FROM: usize, const TO: usize, const WHOLE: bool>(
    source: *const S::Scalar,
    target: *mut S::Scalar,
    t: &Transformation<S::Scalar>,
    channel: usize,
    lanes: usize,
) {
    let source = source.wrapping_offset(t.from.start).wrapping_add(channel);
    let target = target.wrapping_offset(t.to.start).wrapping_add(channel);
    // SAFETY: the caller's contract; every access below is to elements that the transformation describes.
    unsafe {
        let zero = S::splat(<S::Scalar as Real>::ZERO);
        // Row by row, so that what the second pass reads lies together.
        let mut half = [[zero; FROM]; TO];
        for column in 0..FROM {
            let mut values = [zero; FROM];
            for (row, value) in values.iter_mut().enumerate() {
                if WHOLE || t.from.contains(row, column) {
                    *value = S::load(source.wrapping_add(row * t.from.row + column * t.from.column), lanes);
                }
            }
            half.iter_mut().zip(L::line(values)).for_each(|(row, value)| row[column] = value);
        }
        let bias = match t.bias {
            Some(bias) => S::load(bias.as_ptr().add(channel), lanes),
            None => zero,
        };
        for (row, &half) in half.iter().enumerate() {
            for (column, value) in L::line(half).into_iter().enumerate() {
                if WHOLE || t.to.contains(row, column) {
                    let value = S::add(value, bias);
                    let value = if t.relu { S::max(value, zero) } else { value };
                    S::store(target.wrapping_add(row * t.to.row + column * t.to.column), value, lanes);
                }
            }
        }
    }
}

/// [`Transform::Input`]
pub(super) struct InputLine;
/// [`Transform::Weights`]
pub(super) struct WeightsLine;
/// [`Transform::Output`]
pub(super) struct OutputLine;
/// [`Transform::OutputGradient`]
pub(super) struct OutputGradientLine;
/// [`Transform::WeightGradient`]
pub(super) struct WeightGradientLine;

#[inline(always)]
unsafe fn constant<S: Simd>(value: f64) -> S::Vector {
    // SAFETY: the caller's contract.
    unsafe { S::splat(<S::Scalar as Real>::from_f64(value)) }
}

/// `a + factor * b`
#[inline(always)]
unsafe fn plus<S: Simd>(a: S::Vector, factor: f64, b: S::Vector) -> S::Vector {
    // SAFETY: the caller's contract.
    unsafe { S::multiply_add(constant::<S>(factor), b, a) }
}

/// `even ± point * odd`
#[inline(always)]
unsafe fn both<S: Simd>(even: S::Vector, point: f64, odd: S::Vector) -> [S::Vector; 2] {
    // SAFETY: the caller's contract.
    unsafe { [plus::<S>(even, point, odd), plus::<S>(even, -point, odd)] }
}

// SAFETY: arithmetic alone.
unsafe impl<S: Simd> Line<S, INPUTS, INPUTS> for InputLine {
    #[inline(always)]
    unsafe fn line(x: [S::Vector; INPUTS]) -> [S::Vector; INPUTS] {
        unsafe {
            // x^4 - (near^2 + far^2) x^2 + near^2 far^2, for the even and for the odd elements.
            let zero = plus::<S>(plus::<S>(x[4], -NEAR_2 - FAR_2, x[2]), NEAR_2 * FAR_2, x[0]);
            let infinity = plus::<S>(plus::<S>(x[5], -NEAR_2 - FAR_2, x[3]), NEAR_2 * FAR_2, x[1]);
            let [a, b] = both::<S>(plus::<S>(x[4], -FAR_2, x[2]), NEAR, plus::<S>(x[3], -FAR_2, x[1]));
            let [c, d] = both::<S>(plus::<S>(x[4], -NEAR_2, x[2]), FAR, plus::<S>(x[3], -NEAR_2, x[1]));
            [zero, a, b, c, d, infinity]
        }
    }
}

// SAFETY: arithmetic alone.
unsafe impl<S: Simd> Line<S, 3, INPUTS> for WeightsLine {
    #[inline(always)]
    unsafe fn line(x: [S::Vector; 3]) -> [S::Vector; INPUTS] {
        unsafe {
            let near = S::multiply(constant::<S>(AT_NEAR), plus::<S>(x[0], NEAR_2, x[2]));
            let far = S::multiply(constant::<S>(AT_FAR), plus::<S>(x[0], FAR_2, x[2]));
            let [a, b] = both::<S>(near, AT_NEAR * NEAR, x[1]);
            let [c, d] = both::<S>(far, AT_FAR * FAR, x[1]);
            [S::multiply(constant::<S>(AT_ZERO), x[0]), a, b, c, d, x[2]]
        }
    }
}

// SAFETY: arithmetic alone.
unsafe impl<S: Simd> Line<S, INPUTS, OUTPUTS> for OutputLine {
    #[inline(always)]
    unsafe fn line(x: [S::Vector; INPUTS]) -> [S::Vector; OUTPUTS] {
        unsafe {
            let (near, far) = (S::add(x[1], x[2]), S::add(x[3], x[4]));
            let (near_odd, far_odd) = (S::subtract(x[1], x[2]), S::subtract(x[3], x[4]));
            [
                S::add(x[0], S::add(near, far)),
                plus::<S>(S::multiply(constant::<S>(FAR), far_odd), NEAR, near_odd),
                plus::<S>(S::multiply(constant::<S>(FAR_2), far), NEAR_2, near),
                plus::<S>(plus::<S>(x[5], FAR_2 * FAR, far_odd), NEAR_2 * NEAR, near_odd),
            ]
        }
    }
}

// SAFETY: arithmetic alone.
unsafe impl<S: Simd> Line<S, OUTPUTS, INPUTS> for OutputGradientLine {
    #[inline(always)]
    unsafe fn line(x: [S::Vector; OUTPUTS]) -> [S::Vector; INPUTS] {
        unsafe {
            let [a, b] = both::<S>(plus::<S>(x[0], NEAR_2, x[2]), NEAR, plus::<S>(x[1], NEAR_2, x[3]));
            let [c, d] = both::<S>(plus::<S>(x[0], FAR_2, x[2]), FAR, plus::<S>(x[1], FAR_2, x[3]));
            [x[0], a, b, c, d, x[3]]
        }
    }
}

// SAFETY: arithmetic alone.
unsafe impl<S: Simd> Line<S, INPUTS, 3> for WeightGradientLine {
    #[inline(always)]
    unsafe fn line(x: [S::Vector; INPUTS]) -> [S::Vector; 3] {
        unsafe {
            let near = S::multiply(constant::<S>(AT_NEAR), S::add(x[1], x[2]));
            let far = S::multiply(constant::<S>(AT_FAR), S::add(x[3], x[4]));
            let near_odd = S::multiply(constant::<S>(AT_NEAR * NEAR), S::subtract(x[1], x[2]));
            [
                plus::<S>(S::add(near, far), AT_ZERO, x[0]),
                plus::<S>(near_odd, AT_FAR * FAR, S::subtract(x[3], x[4])),
                plus::<S>(plus::<S>(x[5], FAR_2, far), NEAR_2, near),
            ]
        }
    }
}
