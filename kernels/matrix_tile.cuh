// A tile of a matrix product in fp32: a block adds a[row][inner] b[inner][column] into sums that its threads hold in
// registers. Where the operands come from is the caller's: it loads them by quads (16 bytes), which run along the inner
// dimension or across it. Two buffers in shared memory: one is multiplied while the next one's quads are on their way.
#pragma once

#include "common.cuh"

// ---- sizes ------------------------------------------------------------------------------------------------------------

constexpr int TILE_THREADS = 128;  // 2 x 2 warps of 8 x 4 lanes: four blocks an SM at 128 registers a thread
constexpr int TILE_INNER = 8;      // of a step; channels are stored in multiples of 8, so that none is wasted

using Quad = Vector16<float>;

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

// ---- a tile in fp32 ---------------------------------------------------------------------------------------------------
// What a thread loads: quads along the inner dimension are of rows row_along(i) of a (and columns column_along(i) of b),
// elements inner_along() on; quads across it of element inner_across(), rows row_across(i) on (and columns
// column_across(i) on). What it sums: rows row(i), columns column(j) to column(j) + 3. tensor_tile.cuh has others.

// A thread holds 4 row_quads x 4 column_quads sums.
template <int row_quads, int column_quads> struct Tile {
  static constexpr int rows = 64 * row_quads, columns = 32 * column_quads;
  static constexpr int inner = TILE_INNER;                // of a step: two quads
  static constexpr int a_quads = row_quads, b_quads = 1;  // that a thread loads
  static constexpr int column_step = 64;                  // from one of its columns of b to the next
  // Two quads stored across 16 lines meet all 32 banks; rows stay aligned to 16 bytes.
  static constexpr int padding = 4;

  using Sums = float[4 * row_quads][4 * column_quads];

  struct alignas(16) Operands {
    float a[inner][rows + padding];
    float b[inner][columns + padding];
  };

  static __device__ __forceinline__ int row_along(int i) { return static_cast<int>(threadIdx.x) / 2 + 64 * i; }
  static __device__ __forceinline__ int column_along(int i) { return row_along(i); }
  static __device__ __forceinline__ int inner_along() { return threadIdx.x % 2 * 4; }
  static __device__ __forceinline__ int row_across(int i) { return 4 * (static_cast<int>(threadIdx.x) % 16 + 16 * i); }
  static __device__ __forceinline__ int column_across(int i) { return row_across(i); }
  static __device__ __forceinline__ int inner_across() { return threadIdx.x / 16; }

  template <bool along> static __device__ __forceinline__ void store_a(Operands& to, const Quad (&a)[a_quads]) {
#pragma unroll
    for (int i = 0; i < a_quads; ++i) {
      if constexpr (along) {
#pragma unroll
        for (int j = 0; j < 4; ++j) to.a[inner_along() + j][row_along(i)] = a[i][j];
      } else {
        store16(&to.a[inner_across()][row_across(i)], a[i]);
      }
    }
  }

  template <bool along> static __device__ __forceinline__ void store_b(Operands& to, const Quad (&b)[b_quads]) {
    if constexpr (along) {
#pragma unroll
      for (int j = 0; j < 4; ++j) to.b[inner_along() + j][column_along(0)] = b[0][j];
    } else {
      store16(&to.b[inner_across()][column_across(0)], b[0]);
    }
  }

  // Lanes that differ in bit 1 alone share their rows, lanes that differ in bit 0 alone their columns: a 16-byte load
  // from shared memory then serves two quarters of a warp at once.
  static __device__ __forceinline__ int row(int i) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    return warp / 2 * (rows / 2) + 4 * (lane % 2 + lane / 8 * 2) + i / 4 * 32 + i % 4;
  }

  static __device__ __forceinline__ int column(int j) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    return warp % 2 * (columns / 2) + 4 * (lane / 2 % 4) + 16 * j;
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const Operands& from) {
#pragma unroll
    for (int k = 0; k < inner; ++k) {
      Quad a[row_quads], b[column_quads];
#pragma unroll
      for (int i = 0; i < row_quads; ++i) a[i] = load16(&from.a[k][row(4 * i)]);
#pragma unroll
      for (int j = 0; j < column_quads; ++j) b[j] = load16(&from.b[k][column(j)]);
#pragma unroll
      for (int i = 0; i < 4 * row_quads; ++i)
#pragma unroll
        for (int j = 0; j < 4 * column_quads; ++j) sums[i][j] = fmaf(a[i / 4][i % 4], b[j / 4][j % 4], sums[i][j]);
    }
  }
};

using Tile128x64 = Tile<2, 2>;  // 64 sums a thread, 16 multiply-adds for each 16-byte load from shared memory
using Tile128x32 = Tile<2, 1>;  // for 32 columns and fewer: 10.7
using Tile64x32 = Tile<1, 1>;   // for small products, which would leave SMs idle: 8

// ---- the product ------------------------------------------------------------------------------------------------------

// Whether this thread loads quads of b, which may have fewer columns than the block could load.
template <class T, bool along> __device__ __forceinline__ bool loads_b() {
  return (along ? T::column_along(0) : T::column_across(0)) < T::columns;
}

// Whether a step may reach beyond channels that come by TILE_INNER.
template <class T> __device__ __forceinline__ constexpr bool reaches_beyond() { return T::inner > TILE_INNER; }

template <class T, bool a_along, bool b_along>
__device__ __forceinline__ void store_operands(typename T::Operands& to, const Quad (&a)[T::a_quads],
                                               const Quad (&b)[T::b_quads]) {
  T::template store_a<a_along>(to, a);
  if (loads_b<T, b_along>()) T::template store_b<b_along>(to, b);
}

// Adds `steps` steps of the inner dimension to the sums. `load(a, b)` loads the quads of the next step: zeros where
// there is nothing. All threads of the block have to call it.
template <class T, bool a_along, bool b_along, class Load>
__device__ __forceinline__ void accumulate(typename T::Sums& sums, int steps, Load load) {
  __shared__ typename T::Operands operands[2];
  Quad a[T::a_quads], b[T::b_quads];
  load(a, b);
  store_operands<T, a_along, b_along>(operands[0], a, b);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    if (more) load(a, b);
    T::multiply(sums, operands[step % 2]);
    if (more) store_operands<T, a_along, b_along>(operands[(step + 1) % 2], a, b);
    __syncthreads();
  }
}

// Calls `write(row, column, quad)` for each four sums of a row, counted within the tile.
template <class T, class Write>
__device__ __forceinline__ void for_each_quad(const typename T::Sums& sums, Write write) {
  constexpr int row_count = sizeof(sums) / sizeof(sums[0]), quad_count = sizeof(sums[0]) / sizeof(Quad);
#pragma unroll
  for (int i = 0; i < row_count; ++i)
#pragma unroll
    for (int j = 0; j < quad_count; ++j) {
      const Quad quad = {{sums[i][4 * j], sums[i][4 * j + 1], sums[i][4 * j + 2], sums[i][4 * j + 3]}};
      write(T::row(i), T::column(j), quad);
    }
}
