// A tile of a matrix product on tensor cores in tf32: as matrix_tile.cuh has it in fp32, of operands in fp32 that are
// rounded when they are stored in shared memory; sums are in fp32. From sm_80 on.
#pragma once

#include "matrix_tile.cuh"
#include "tensor_core.cuh"

__device__ __forceinline__ float round_to_tf32(float value) { return __uint_as_float(float_to_tf32(value)); }

__device__ __forceinline__ Quad round_to_tf32(const Quad& quad) {
  return {{round_to_tf32(quad[0]), round_to_tf32(quad[1]), round_to_tf32(quad[2]), round_to_tf32(quad[3])}};
}

// Shared memory has what a lane needs for an mma side by side, in the order of its registers: two rows of a, each with
// two elements of the inner dimension; a column of b with four, for two mma. Which of the 16 elements of a step are in
// one mma is of no matter, and neither is which columns of a warp are: a lane has four elements side by side, and its
// sums are quads.
template <int row_quads, int column_quads> struct TensorTile {
  static constexpr int rows = 64 * row_quads, columns = 32 * column_quads;
  static constexpr int inner = 16;  // of a step, which is over sooner than one in fp32: four quads
  static constexpr int a_quads = 2 * row_quads, b_quads = column_quads;
  static constexpr int column_step = 32;
  // The paddings let 16-byte loads, and what is stored across, meet all 32 banks.
  static constexpr int pair_pitch = 2 * inner + 4, group_pitch = 4 * inner + 8;

  using Sums = float[4 * row_quads][4 * column_quads];

  struct alignas(16) Operands {
    float a[rows / 2][pair_pitch];      // of two rows: [inner][row]
    float b[columns / 4][group_pitch];  // of four columns: [column][inner]
  };

  static __device__ __forceinline__ int thread() { return threadIdx.x; }
  static __device__ __forceinline__ int row_along(int i) { return 2 * (thread() / 4 + i / 2 * 32) + i % 2; }
  static __device__ __forceinline__ int column_along(int i) { return thread() / 4 + column_step * i; }
  static __device__ __forceinline__ int inner_along() { return thread() % 4 * 4; }
  static __device__ __forceinline__ int quad_across(int i) { return thread() % 4 + thread() / 64 * 4 + 8 * i; }
  static __device__ __forceinline__ int row_across(int i) { return 4 * quad_across(i); }
  static __device__ __forceinline__ int column_across(int i) { return 4 * quad_across(i); }
  static __device__ __forceinline__ int inner_across() { return thread() / 4 % inner; }

  template <bool along> static __device__ __forceinline__ void store_a(Operands& to, const Quad (&a)[a_quads]) {
    if constexpr (along) {
#pragma unroll
      for (int i = 0; i < a_quads; i += 2) {
        const Quad first = round_to_tf32(a[i]), second = round_to_tf32(a[i + 1]);
        float* pair = &to.a[thread() / 4 + i / 2 * 32][2 * inner_along()];
        store16(pair, Quad{{first[0], second[0], first[1], second[1]}});
        store16(pair + 4, Quad{{first[2], second[2], first[3], second[3]}});
      }
    } else {
#pragma unroll
      for (int i = 0; i < a_quads; ++i) {
        const Quad quad = round_to_tf32(a[i]);
        float(*pairs)[pair_pitch] = &to.a[2 * quad_across(i)];
        *reinterpret_cast<float2*>(&pairs[0][2 * inner_across()]) = {quad[0], quad[1]};
        *reinterpret_cast<float2*>(&pairs[1][2 * inner_across()]) = {quad[2], quad[3]};
      }
    }
  }

  template <bool along> static __device__ __forceinline__ void store_b(Operands& to, const Quad (&b)[b_quads]) {
#pragma unroll
    for (int i = 0; i < b_quads; ++i) {
      const Quad quad = round_to_tf32(b[i]);
      if constexpr (along) {
        store16(&to.b[thread() / 16 + i * 8][thread() / 4 % 4 * inner + inner_along()], quad);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) to.b[quad_across(i)][j * inner + inner_across()] = quad[j];
      }
    }
  }

  static __device__ __forceinline__ int warp_row() { return thread() / WARP_SIZE / 2 * (rows / 2); }
  static __device__ __forceinline__ int warp_column() { return thread() / WARP_SIZE % 2 * (columns / 2); }
  static __device__ __forceinline__ int lane_row() { return thread() % WARP_SIZE / 4; }
  static __device__ __forceinline__ int lane_inner() { return thread() % 4; }

  static __device__ __forceinline__ int row(int i) { return warp_row() + 2 * lane_row() + i / 2 * 16 + i % 2; }
  static __device__ __forceinline__ int column(int j) { return warp_column() + 4 * lane_inner() + 16 * j; }

  static __device__ __forceinline__ void multiply(Sums& sums, const Operands& from) {
    uint4 b[2 * column_quads];  // for both mma of a step
#pragma unroll
    for (int n = 0; n < 2 * column_quads; ++n) {
      const int group = warp_column() / 4 + lane_row() / 2 + n / 2 * 4, column = lane_row() % 2 + n % 2 * 2;
      b[n] = *reinterpret_cast<const uint4*>(&from.b[group][column * inner + 4 * lane_inner()]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < 4 * row_quads; m += 2) {
        const float* pair = from.a[warp_row() / 2 + lane_row() + m / 2 * 8];
        const auto a = *reinterpret_cast<const uint4*>(pair + 8 * lane_inner() + 4 * half);
#pragma unroll
        for (int n = 0; n < 2 * column_quads; ++n) {
          float d[4] = {sums[m][2 * n], sums[m][2 * n + 1], sums[m + 1][2 * n], sums[m + 1][2 * n + 1]};
          if (half == 0) mma_m16n8k8_tf32(d, {a.x, a.y, a.z, a.w}, {b[n].x, b[n].y});
          else mma_m16n8k8_tf32(d, {a.x, a.y, a.z, a.w}, {b[n].z, b[n].w});
          sums[m][2 * n] = d[0], sums[m][2 * n + 1] = d[1], sums[m + 1][2 * n] = d[2], sums[m + 1][2 * n + 1] = d[3];
        }
      }
  }
};

using TensorTile128x64 = TensorTile<2, 2>;  // 2.7 mma for each 16-byte load from shared memory
using TensorTile128x32 = TensorTile<2, 1>;  // for 32 columns and fewer: 1.6
using TensorTile64x32 = TensorTile<1, 1>;   // for small products: 1.3
