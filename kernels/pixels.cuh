// How kernels without tensor cores go over a tensor. Threads along x take groups of `width` neighbouring channels (4,
// one 16-byte access, or 1), threads along y take pixels, so that a thread's channels are the same for all its pixels
// and nothing has to be divided. The host's side of it is src/device/cuda/grid.rs.
#pragma once

#include "common.cuh"

constexpr int THREADS = 256;          // of a block, at most: enough to fill every GPU's multiprocessors with few blocks
constexpr int PIXELS_PER_THREAD = 4;  // enough work to pay for a thread's start, and loads under way at once

// ---- a group of channels ----------------------------------------------------------------------------------------------

template <int width> struct Group {
  float values[width];
  __device__ __forceinline__ float& operator[](int index) { return values[index]; }
  __device__ __forceinline__ const float& operator[](int index) const { return values[index]; }
};

template <int width> __device__ __forceinline__ Group<width> load(const float* address) {
  Group<width> group;
  if constexpr (width == 4) {
    const float4 all = *reinterpret_cast<const float4*>(address);
    group.values[0] = all.x, group.values[1] = all.y, group.values[2] = all.z, group.values[3] = all.w;
  } else {
    group.values[0] = *address;
  }
  return group;
}

template <int width> __device__ __forceinline__ void store(float* address, const Group<width>& group) {
  if constexpr (width == 4) {
    *reinterpret_cast<float4*>(address) = make_float4(group[0], group[1], group[2], group[3]);
  } else {
    *address = group[0];
  }
}

// ---- a thread's place -------------------------------------------------------------------------------------------------

// The first of the thread's channels; threads beyond the last channel have nothing to do.
template <int width> __device__ __forceinline__ int first_channel() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * width;
}

// Calls body(p) for the thread's pixels among `pixels`, whatever the grid.
template <class Body> __device__ __forceinline__ void for_each_pixel(int pixels, Body body) {
  const unsigned step = gridDim.x * blockDim.y;
#pragma unroll 4
  for (unsigned p = blockIdx.x * blockDim.y + threadIdx.y; p < static_cast<unsigned>(pixels); p += step)
    body(static_cast<int>(p));
}
