// A tile of a matrix product in fp32: a block adds a[row][inner] b[inner][column] into sums that its threads hold in
// registers. Where the operands come from is the caller's: it loads them by quads (16 bytes), which run along the inner
// dimension or across it. Two buffers in shared memory: one is multiplied while the next one's quads are on their way.
#pragma once

#include "common.cuh"

// ---- sizes ------------------------------------------------------------------------------------------------------------

constexpr int TILE_THREADS = 128;  // 2 x 2 warps of 8 x 4 lanes: four blocks an SM at 128 registers a thread
constexpr int TILE_INNER = 8;      // a step: two quads; channels are stored in multiples of 8, so no step is wasted
constexpr int TILE_PADDING = 4;    // two quads stored across 16 lines meet all 32 banks; rows stay aligned to 16 bytes

using Quad = Vector16<float>;

// A thread holds 4 row_quads x 4 column_quads sums.
template <int row_quads_, int column_quads_> struct Tile {
  static constexpr int row_quads = row_quads_, column_quads = column_quads_;
  static constexpr int rows = 64 * row_quads, columns = 32 * column_quads;

  using Sums = float[4 * row_quads][4 * column_quads];

  struct alignas(16) Operands {
    float a[TILE_INNER][rows + TILE_PADDING];
    float b[TILE_INNER][columns + TILE_PADDING];
  };
};

using Tile128x64 = Tile<2, 2>;  // 64 sums a thread, 16 multiply-adds for each 16-byte load from shared memory
using Tile128x32 = Tile<2, 1>;  // for 32 columns and fewer: 10.7
using Tile64x32 = Tile<1, 1>;   // for small products, which would leave SMs idle: 8

// ---- quads ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ Quad zero_quad() { return Quad{{0.0f, 0.0f, 0.0f, 0.0f}}; }

// Four elements at a multiple of their size.
__device__ __forceinline__ Quad load_four(const float* address) { return load16(address); }

template <class T> __device__ __forceinline__ Quad load_four(const T* address) {
  const uint2 bits = *reinterpret_cast<const uint2*>(address);
  Quad quad;
#pragma unroll
  for (int j = 0; j < 4; ++j) quad[j] = to_float(reinterpret_cast<const T*>(&bits)[j]);
  return quad;
}

__device__ __forceinline__ void store_four(float* address, const Quad& quad) { store16(address, quad); }

template <class T> __device__ __forceinline__ void store_four(T* address, const Quad& quad) {
  uint2 bits;
#pragma unroll
  for (int j = 0; j < 4; ++j) reinterpret_cast<T*>(&bits)[j] = from_float<T>(quad[j]);
  *reinterpret_cast<uint2*>(address) = bits;
}

// The first `count` of four elements where they exist, then zeros. Aligned: all four.
template <bool aligned, class T> __device__ __forceinline__ Quad load_quad(const T* address, bool exists, int count) {
  if constexpr (aligned) {
    return exists ? load_four(address) : zero_quad();
  } else {
    Quad quad;
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] = exists && j < count ? to_float(address[j]) : 0.0f;
    return quad;
  }
}

// Stores the first `count` of four elements; aligned, all four.
template <bool aligned, class T> __device__ __forceinline__ void store_quad(T* address, const Quad& quad, int count) {
  if constexpr (aligned) {
    store_four(address, quad);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) address[j] = from_float<T>(quad[j]);
  }
}

// Channels by quads: each tap's (or pixel's) channels begin a new one.
__device__ __forceinline__ int whole_quads(int channels) { return (channels + 3) / 4 * 4; }

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// ---- what a thread loads ----------------------------------------------------------------------------------------------
// Quads along the inner dimension: rows line_along(i) of a (and column line_along(0) of b), elements inner_along() on.
// Quads across it: element inner_across(), rows quad_across(i) on (and columns quad_across(0) on).

__device__ __forceinline__ int line_along(int i) { return static_cast<int>(threadIdx.x) / 2 + 64 * i; }
__device__ __forceinline__ int inner_along() { return threadIdx.x % 2 * 4; }
__device__ __forceinline__ int inner_across() { return threadIdx.x / 16; }
__device__ __forceinline__ int quad_across(int i) { return 4 * (static_cast<int>(threadIdx.x) % 16 + 16 * i); }

// Whether this thread loads a quad of b, which has fewer columns than the block loads rows.
template <class T, bool along> __device__ __forceinline__ bool loads_b() {
  return (along ? line_along(0) : quad_across(0)) < T::columns;
}

template <class T, bool a_along, bool b_along>
__device__ __forceinline__ void store_operands(typename T::Operands& to, const Quad (&a)[T::row_quads], const Quad& b) {
#pragma unroll
  for (int i = 0; i < T::row_quads; ++i) {
    if constexpr (a_along) {
#pragma unroll
      for (int j = 0; j < 4; ++j) to.a[inner_along() + j][line_along(i)] = a[i][j];
    } else {
      store16(&to.a[inner_across()][quad_across(i)], a[i]);
    }
  }
  if (!loads_b<T, b_along>()) return;
  if constexpr (b_along) {
#pragma unroll
    for (int j = 0; j < 4; ++j) to.b[inner_along() + j][line_along(0)] = b[j];
  } else {
    store16(&to.b[inner_across()][quad_across(0)], b);
  }
}

// ---- what a thread sums -----------------------------------------------------------------------------------------------
// Lanes that differ in bit 1 alone share their rows, lanes that differ in bit 0 alone their columns: a 16-byte load
// from shared memory then serves two quarters of a warp at once.

template <class T> __device__ __forceinline__ int first_row() {
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  return warp / 2 * (T::rows / 2) + 4 * (lane % 2 + lane / 8 * 2);
}

template <class T> __device__ __forceinline__ int first_column() {
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  return warp % 2 * (T::columns / 2) + 4 * (lane / 2 % 4);
}

template <class T> __device__ __forceinline__ void multiply(typename T::Sums& sums, const typename T::Operands& from) {
#pragma unroll
  for (int k = 0; k < TILE_INNER; ++k) {
    Quad a[T::row_quads], b[T::column_quads];
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) a[i] = load16(&from.a[k][first_row<T>() + 32 * i]);
#pragma unroll
    for (int j = 0; j < T::column_quads; ++j) b[j] = load16(&from.b[k][first_column<T>() + 16 * j]);
#pragma unroll
    for (int i = 0; i < 4 * T::row_quads; ++i)
#pragma unroll
      for (int j = 0; j < 4 * T::column_quads; ++j) sums[i][j] = fmaf(a[i / 4][i % 4], b[j / 4][j % 4], sums[i][j]);
  }
}

// Adds `steps` steps of the inner dimension to the sums. `load(a, b)` loads the quads of the next step: zeros where
// there is nothing. All threads of the block have to call it.
template <class T, bool a_along, bool b_along, class Load>
__device__ __forceinline__ void accumulate(typename T::Sums& sums, int steps, Load load) {
  __shared__ typename T::Operands operands[2];
  Quad a[T::row_quads], b;
  load(a, b);
  store_operands<T, a_along, b_along>(operands[0], a, b);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    if (more) load(a, b);
    multiply<T>(sums, operands[step % 2]);
    if (more) store_operands<T, a_along, b_along>(operands[(step + 1) % 2], a, b);
    __syncthreads();
  }
}

// Calls `write(row, column, quad)` for each four sums of a row, counted within the tile.
template <class T, class Write>
__device__ __forceinline__ void for_each_quad(const typename T::Sums& sums, Write write) {
#pragma unroll
  for (int i = 0; i < 4 * T::row_quads; ++i)
#pragma unroll
    for (int j = 0; j < T::column_quads; ++j) {
      const Quad quad = {{sums[i][4 * j], sums[i][4 * j + 1], sums[i][4 * j + 2], sums[i][4 * j + 3]}};
      write(first_row<T>() + i / 4 * 32 + i % 4, first_column<T>() + 16 * j, quad);
    }
}
