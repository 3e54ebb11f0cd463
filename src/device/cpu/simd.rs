//! Vectors of `f32` and `f64` for tiles and their transforms: AVX-512, AVX2 or portable arrays, chosen at run time.
//!
//! Only what convolutions need stands here; every other op leaves vectorising to the compiler.

use super::Real;

/// A vector type of one instruction set.
///
/// # Safety
/// The functions may only be called where the processor has the instruction set,
/// from a function compiled for it (`#[target_feature]`), so that they are inlined.
pub unsafe trait Simd: Copy {
    type Scalar: Real;
    type Vector: Copy;
    const LANES: usize;

    unsafe fn splat(value: Self::Scalar) -> Self::Vector;
    /// The first `count <= LANES` elements at `from`; the others are zero and are not read.
    unsafe fn load(from: *const Self::Scalar, count: usize) -> Self::Vector;
    /// Stores the first `count <= LANES` elements to `to`.
    unsafe fn store(to: *mut Self::Scalar, vector: Self::Vector, count: usize);
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn multiply(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
}

/// Plain arrays: any processor; the compiler finds what vectors there are.
#[derive(Clone, Copy)]
pub struct Portable<T>(std::marker::PhantomData<T>);

const PORTABLE_LANES: usize = 4;

// SAFETY: plain arithmetic on arrays, reading and writing `count` elements alone.
unsafe impl<T: Real> Simd for Portable<T> {
    type Scalar = T;
    type Vector = [T; PORTABLE_LANES];
    const LANES: usize = PORTABLE_LANES;

    #[inline(always)]
    unsafe fn splat(value: T) -> Self::Vector {
        [value; PORTABLE_LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const T, count: usize) -> Self::Vector {
        // SAFETY: the caller vouches for `count` elements at `from`.
        std::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { T::ZERO })
    }

    #[inline(always)]
    unsafe fn store(to: *mut T, vector: Self::Vector, count: usize) {
        for (lane, value) in vector.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` elements at `to`.
            unsafe { *to.add(lane) = value };
        }
    }

    #[inline(always)]
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    macro_rules! avx512 {
        ($name:ident, $scalar:ty, $vector:ty, $lanes:literal, $mask:ty, $splat:ident, $load:ident, $store:ident,
         $max:ident, $add:ident, $subtract:ident, $multiply:ident, $multiply_add:ident) => {
            #[derive(Clone, Copy)]
            pub struct $name;

            // SAFETY: the trait's contract: AVX-512F is there, and `count` elements are the caller's to touch.
            unsafe impl Simd for $name {
                type Scalar = $scalar;
                type Vector = $vector;
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn splat(value: $scalar) -> $vector {
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $scalar, count: usize) -> $vector {
                    unsafe { $load(((1u32 << count) - 1) as $mask, from) }
                }
                #[inline(always)]
                unsafe fn store(to: *mut $scalar, vector: $vector, count: usize) {
                    unsafe { $store(to, ((1u32 << count) - 1) as $mask, vector) }
                }
                #[inline(always)]
                unsafe fn max(a: $vector, b: $vector) -> $vector {
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                unsafe fn add(a: $vector, b: $vector) -> $vector {
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn subtract(a: $vector, b: $vector) -> $vector {
                    unsafe { $subtract(a, b) }
                }
                #[inline(always)]
                unsafe fn multiply(a: $vector, b: $vector) -> $vector {
                    unsafe { $multiply(a, b) }
                }
                #[inline(always)]
                unsafe fn multiply_add(a: $vector, b: $vector, c: $vector) -> $vector {
                    unsafe { $multiply_add(a, b, c) }
                }
            }
        };
    }

    avx512!(
        Avx512F32,
        f32,
        __m512,
        16,
        __mmask16,
        _mm512_set1_ps,
        _mm512_maskz_loadu_ps,
        _mm512_mask_storeu_ps,
        _mm512_max_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps
    );
    avx512!(
        Avx512F64,
        f64,
        __m512d,
        8,
        __mmask8,
        _mm512_set1_pd,
        _mm512_maskz_loadu_pd,
        _mm512_mask_storeu_pd,
        _mm512_max_pd,
        _mm512_add_pd,
        _mm512_sub_pd,
        _mm512_mul_pd,
        _mm512_fmadd_pd
    );

    macro_rules! avx2 {
        ($name:ident, $scalar:ty, $vector:ty, $lanes:literal, $integer:ty, $splat:ident, $load:ident, $load_whole:ident,
         $store:ident, $store_whole:ident,
         $max:ident, $add:ident, $subtract:ident, $multiply:ident, $multiply_add:ident) => {
            #[derive(Clone, Copy)]
            pub struct $name;

            impl $name {
                /// All bits set in the first `count` lanes.
                #[inline(always)]
                unsafe fn mask(count: usize) -> __m256i {
                    const WINDOW: [$integer; 2 * $lanes] = {
                        let mut window = [0; 2 * $lanes];
                        let mut lane = 0;
                        while lane < $lanes {
                            window[lane] = -1;
                            lane += 1;
                        }
                        window
                    };
                    // SAFETY: `count <= LANES`, so the load stays inside the window.
                    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add($lanes - count).cast()) }
                }
            }

            // SAFETY: the trait's contract: AVX2 and FMA are there, and `count` elements are the caller's to touch.
            unsafe impl Simd for $name {
                type Scalar = $scalar;
                type Vector = $vector;
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn splat(value: $scalar) -> $vector {
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $scalar, count: usize) -> $vector {
                    // Masks are slow on some processors, and mostly there is a whole vector.
                    unsafe {
                        match count {
                            $lanes => $load_whole(from),
                            _ => $load(from, Self::mask(count)),
                        }
                    }
                }
                #[inline(always)]
                unsafe fn store(to: *mut $scalar, vector: $vector, count: usize) {
                    unsafe {
                        match count {
                            $lanes => $store_whole(to, vector),
                            _ => $store(to, Self::mask(count), vector),
                        }
                    }
                }
                #[inline(always)]
                unsafe fn max(a: $vector, b: $vector) -> $vector {
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                unsafe fn add(a: $vector, b: $vector) -> $vector {
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn subtract(a: $vector, b: $vector) -> $vector {
                    unsafe { $subtract(a, b) }
                }
                #[inline(always)]
                unsafe fn multiply(a: $vector, b: $vector) -> $vector {
                    unsafe { $multiply(a, b) }
                }
                #[inline(always)]
                unsafe fn multiply_add(a: $vector, b: $vector, c: $vector) -> $vector {
                    unsafe { $multiply_add(a, b, c) }
                }
            }
        };
    }

    avx2!(
        Avx2F32,
        f32,
        __m256,
        8,
        i32,
        _mm256_set1_ps,
        _mm256_maskload_ps,
        _mm256_loadu_ps,
        _mm256_maskstore_ps,
        _mm256_storeu_ps,
        _mm256_max_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps
    );
    avx2!(
        Avx2F64,
        f64,
        __m256d,
        4,
        i64,
        _mm256_set1_pd,
        _mm256_maskload_pd,
        _mm256_loadu_pd,
        _mm256_maskstore_pd,
        _mm256_storeu_pd,
        _mm256_max_pd,
        _mm256_add_pd,
        _mm256_sub_pd,
        _mm256_mul_pd,
        _mm256_fmadd_pd
    );
}
