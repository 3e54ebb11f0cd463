// What the convolutions on tensor cores share: patches of images, and products of 16-bit elements with sums in fp32.
//
// The implicit matrix product moves no pixel twice for its taps: a block loads a patch of pixels with its border once, by
// asynchronous copies, and each of the kernel's taps reads it at another offset. A warp's products have 16 rows: a row of
// 16 pixels of the patch. Pixels in shared memory lie an odd number of 16 bytes apart, so that ldmatrix meets each bank
// once at any offset, as a swizzle would have it, and all addresses in the inner loop are constants.
#pragma once

#include <cstring>

#include "common.cuh"
#include "tensor_core.cuh"

// ---- sizes ------------------------------------------------------------------------------------------------------------

constexpr int TENSOR_THREADS = 128;
constexpr int WARPS = TENSOR_THREADS / WARP_SIZE;
constexpr int PATCH_WIDTH = 16;  // an mma's rows
constexpr int PIECE = 8;         // elements of 16 bytes
constexpr int MMA_DEPTH = 16;    // an mma's inner dimension
constexpr int LINE_BYTES = 128;  // that caches hold together

__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef ELEMENT_bf16
  mma_m16n8k16_bf16(sums, a, b);
#else
  mma_m16n8k16_f16(sums, a, b);
#endif
}

// Two elements of 1, side by side.
#ifdef ELEMENT_bf16
constexpr unsigned TWO_ONES = 0x3f803f80;
#else
constexpr unsigned TWO_ONES = 0x3c003c00;
#endif

// Two neighbours, rounded; `to` is a multiple of 4 bytes.
__device__ __forceinline__ void store_pair(Element* to, float first, float second) {
#ifdef ELEMENT_bf16
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(first, second);
#else
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(first, second);
#endif
}

// Two elements side by side, and their values.
__device__ __forceinline__ unsigned pair_of(float first, float second) {
  unsigned pair;
  store_pair(reinterpret_cast<Element*>(&pair), first, second);
  return pair;
}

__device__ __forceinline__ float2 values_of(unsigned pair) {
  Element two[2];
  memcpy(two, &pair, sizeof two);
  return make_float2(to_float(two[0]), to_float(two[1]));
}

// Eight channels of a pixel, in pairs.
using Piece = Vector16<unsigned>;

__device__ __forceinline__ Piece load_piece(const Element* address) {
  return load16(reinterpret_cast<const unsigned*>(address));
}

__device__ __forceinline__ void store_piece(Element* address, const Piece& piece) {
  store16(reinterpret_cast<unsigned*>(address), piece);
}

// Which of its channels are above zero.
__device__ __forceinline__ Bits positive_bits(const Piece& piece) {
  static_assert(PIECE == CHANNELS_PER_BYTE, "a piece's bits are a byte");
  unsigned bits = 0;  // of each pair's two, the second is 16 bits above the first
#pragma unroll
  for (int i = 0; i < Piece::size; ++i) bits |= positive_masks<Element>(piece[i]) & 0x10001u << 2 * i;
  return static_cast<Bits>(bits | bits >> 15);
}

// Makes those channels zero that have no bit.
__device__ __forceinline__ void keep_positive(Piece& piece, unsigned bits) {
  const unsigned spread = bits | bits << 15;  // likewise
#pragma unroll
  for (int i = 0; i < Piece::size; ++i) {
    const unsigned signs = spread << (15 - 2 * i);
    piece[i] &= sign_masks<1, 3>(signs, signs);
  }
}

// Images are [n, height, width]; planes of a volume count as images.
struct Image {
  int height, width;
};

// A kernel whose stride is its size: each pixel of the small image is as many as this of the large one.
struct Window {
  int height, width;
};

// The first pixel of the large image that a pixel of the small one is.
__device__ __forceinline__ int large_pixel(const Image& small, const Window& window, int image, int y, int x) {
  return ((image * small.height + y) * window.height * small.width + x) * window.width;
}

// How many pixels further on a tap of the window is.
__device__ __forceinline__ int window_offset(const Image& small, const Window& window, int tap) {
  return tap / window.width * small.width * window.width + tap % window.width;
}

// Where a patch begins.
struct Patch {
  int image, y, x;

  __device__ __forceinline__ Patch(int index, int rows, int columns, const Image& size) {
    const int across = (size.width + columns - 1) / columns, down = (size.height + rows - 1) / rows;
    const int row = index / across;
    x = (index - row * across) * columns;
    image = row / down;
    y = (row - image * down) * rows;
  }

  // The next one.
  __device__ __forceinline__ void advance(int rows, const Image& size) {
    x += PATCH_WIDTH;
    if (x < size.width) return;
    x = 0;
    y += rows;
    if (y < size.height) return;
    y = 0;
    ++image;
  }
};

__device__ __forceinline__ bool is_inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}
