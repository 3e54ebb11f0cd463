// How kernels without tensor cores go over a tensor. Threads along x take groups of `width` neighbouring channels (as
// many as 16 bytes have, or 1), threads along y take pixels, so that a thread's channels are the same for all its pixels
// and nothing has to be divided. The host's side of it is src/device/cuda/grid.rs.
#pragma once

#include "common.cuh"

constexpr int THREADS = 256;          // of a block, at most: enough to fill every GPU's multiprocessors with few blocks
constexpr int PIXELS_PER_THREAD = 4;  // enough work to pay for a thread's start, and loads under way at once

// ---- a group of channels ----------------------------------------------------------------------------------------------
// Floats, whatever they are stored in.

template <int width> struct Group {
  float values[width];
  __device__ __forceinline__ float& operator[](int index) { return values[index]; }
  __device__ __forceinline__ const float& operator[](int index) const { return values[index]; }
};

// Channels that a thread takes at once: 16 bytes of T.
template <class T> constexpr int WIDE = 16 / sizeof(T);

// Whether a launch's `width` is WIDE<T>. Tensors of 16-bit elements always allow it, so that no other code is made.
template <class T> __device__ __forceinline__ bool is_wide(int width) { return sizeof(T) == 2 || width > 1; }

// 1 channel, or a multiple of 16 bytes of them.
template <int width, class T> __device__ __forceinline__ Group<width> load(const T* address) {
  Group<width> group;
  if constexpr (width == 1) {
    group.values[0] = to_float(*address);
  } else {
    static_assert(width % WIDE<T> == 0, "a group is whole 16-byte accesses");
#pragma unroll
    for (int first = 0; first < width; first += WIDE<T>) {
      const Vector16<T> all = load16(address + first);
#pragma unroll
      for (int k = 0; k < WIDE<T>; ++k) group.values[first + k] = to_float(all[k]);
    }
  }
  return group;
}

template <int width, class T> __device__ __forceinline__ void store(T* address, const Group<width>& group) {
  if constexpr (width == 1) {
    *address = from_float<T>(group[0]);
  } else {
#pragma unroll
    for (int first = 0; first < width; first += WIDE<T>) {
      Vector16<T> all;
#pragma unroll
      for (int k = 0; k < WIDE<T>; ++k) all[k] = from_float<T>(group[first + k]);
      store16(address + first, all);
    }
  }
}

// The groups of two tensors at one place.
template <int width> struct GroupPair {
  Group<width> a, b;
};

// ---- a thread's place -------------------------------------------------------------------------------------------------

// The first of the thread's channels; threads beyond the last channel have nothing to do.
template <int width> __device__ __forceinline__ int first_channel() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * width;
}

// Calls body(p) for the thread's pixels among `pixels`, whatever the grid.
template <class Body> __device__ __forceinline__ void for_each_pixel(int pixels, Body body) {
  const unsigned step = gridDim.x * blockDim.y;
  for (unsigned p = blockIdx.x * blockDim.y + threadIdx.y; p < static_cast<unsigned>(pixels); p += step)
    body(static_cast<int>(p));
}

// Calls use(p, load(p)) likewise, the loads of several pixels first, so that they are under way at once. Kernels declare
// their pointers without __restrict__: with it the compiler moves each load down to its use.
template <class Load, class Use> __device__ __forceinline__ void for_each_pixel(int pixels, Load load, Use use) {
  const unsigned step = gridDim.x * blockDim.y, end = pixels;
  unsigned p = blockIdx.x * blockDim.y + threadIdx.y;
  for (; p + (PIXELS_PER_THREAD - 1) * step < end; p += PIXELS_PER_THREAD * step) {
    decltype(load(0)) loaded[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) loaded[i] = load(static_cast<int>(p + i * step));
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) use(static_cast<int>(p + i * step), loaded[i]);
  }
  for (; p < end; p += step) use(static_cast<int>(p), load(static_cast<int>(p)));
}

// ---- element by element -----------------------------------------------------------------------------------------------
// The operands have one shape, [pixels, channels], and a stride each; `out` may be one of the others.

// out = function(a)
template <int width, class T, class Function>
__device__ __forceinline__ void map_groups(T* out, const T* a, int pixels, int channels, int out_stride, int a_stride,
                                           Function function) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(
      pixels, [&](int p) { return load<width>(a + p * a_stride + c); },
      [&](int p, Group<width> x) {
#pragma unroll
        for (int k = 0; k < width; ++k) x[k] = function(x[k]);
        store(out + p * out_stride + c, x);
      });
}

template <class T, class Function>
__device__ __forceinline__ void map(T* out, const T* a, int pixels, int channels, int out_stride, int a_stride,
                                    int width, Function function) {
  if (is_wide<T>(width)) map_groups<WIDE<T>>(out, a, pixels, channels, out_stride, a_stride, function);
  else map_groups<1>(out, a, pixels, channels, out_stride, a_stride, function);
}

// out = function(a, b)
template <int width, class T, class Function>
__device__ __forceinline__ void zip_groups(T* out, const T* a, const T* b, int pixels, int channels, int out_stride,
                                           int a_stride, int b_stride, Function function) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(
      pixels,
      [&](int p) {
        return GroupPair<width>{load<width>(a + p * a_stride + c), load<width>(b + p * b_stride + c)};
      },
      [&](int p, const GroupPair<width>& pair) {
        Group<width> result;
#pragma unroll
        for (int k = 0; k < width; ++k) result[k] = function(pair.a[k], pair.b[k]);
        store(out + p * out_stride + c, result);
      });
}

template <class T, class Function>
__device__ __forceinline__ void zip(T* out, const T* a, const T* b, int pixels, int channels, int out_stride,
                                    int a_stride, int b_stride, int width, Function function) {
  if (is_wide<T>(width))
    zip_groups<WIDE<T>>(out, a, b, pixels, channels, out_stride, a_stride, b_stride, function);
  else zip_groups<1>(out, a, b, pixels, channels, out_stride, a_stride, b_stride, function);
}

// ---- reductions over pixels -------------------------------------------------------------------------------------------
// A block reduces a chunk of pixels (block x) of a sample (block z); a second kernel then reduces the chunks' results.

// The pixels of the block's chunk, counted in its sample.
struct Chunk {
  int start, end;
};

__device__ __forceinline__ Chunk chunk_of(int index, int pixels, int chunk_pixels) {
  const int start = index * chunk_pixels;
  return {start, min(start + chunk_pixels, pixels)};
}

// Calls use(p, load(p)) for the thread's pixels of a chunk, p counted in its sample, in order; the loads of several pixels
// first, so that they are under way at once.
template <class Load, class Use> __device__ __forceinline__ void for_each_in_chunk(Chunk chunk, Load load, Use use) {
  const int step = blockDim.y;
  int p = chunk.start + threadIdx.y;
  for (; p + (PIXELS_PER_THREAD - 1) * step < chunk.end; p += PIXELS_PER_THREAD * step) {
    decltype(load(0)) loaded[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) loaded[i] = load(p + i * step);
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) use(p + i * step, loaded[i]);
  }
  for (; p < chunk.end; p += step) use(p, load(p));
}

// Combines what the threads with the same channels hold, in a fixed order; those with threadIdx.y == 0 get the result.
// All threads of the block have to call it.
template <class T, class Combine> __device__ __forceinline__ T reduce_rows(T value, Combine combine) {
  __shared__ T partial[THREADS];
  T* own = partial + threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // an earlier call's results have been read
  *own = value;
  for (unsigned rows = blockDim.y; rows > 1;) {
    const unsigned half = (rows + 1) / 2;
    __syncthreads();
    if (threadIdx.y + half < rows) {
      value = combine(value, own[half * blockDim.x]);
      *own = value;
    }
    rows = half;
  }
  return value;
}

// ---- reductions over channels -----------------------------------------------------------------------------------------
// The blockDim.x (a power of two, at most 32) neighbouring threads of a pixel share its channels.

// Combines what the threads of a pixel hold; all get the result. All lanes of the warp have to call it.
template <class Combine> __device__ __forceinline__ float reduce_lanes(float value, Combine combine) {
  for (int distance = blockDim.x / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
  return value;
}

// Calls body(p, inside) for the pixels, whatever the grid: as often for each thread of a block. Where `inside` is false,
// p is the last pixel and nothing must be written.
template <class Body> __device__ __forceinline__ void for_each_pixel_together(int pixels, Body body) {
  const unsigned step = gridDim.x * blockDim.y;
  for (unsigned first = blockIdx.x * blockDim.y; first < static_cast<unsigned>(pixels); first += step) {
    const unsigned p = first + threadIdx.y;
    const bool inside = p < static_cast<unsigned>(pixels);
    body(inside ? static_cast<int>(p) : pixels - 1, inside);
  }
}
