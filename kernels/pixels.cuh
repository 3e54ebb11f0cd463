// How kernels without tensor cores go over a tensor. Threads along x take groups of `width` neighbouring channels (as
// many as 16 bytes have, or 1), threads along y take pixels, so that a thread's channels are the same for all its pixels
// and nothing has to be divided. The host's side of it is src/device/cuda/grid.rs.
#pragma once

#include "common.cuh"

#include <cstring>
#include <type_traits>

constexpr int THREADS = 256;          // of a block, at most: enough to fill every GPU's multiprocessors with few blocks
constexpr int PIXELS_PER_THREAD = 4;  // enough work to pay for a thread's start, and loads under way at once
constexpr int CHUNKS_PER_THREAD = 8;  // of those that are merged

// ---- a group of channels ----------------------------------------------------------------------------------------------
// Floats, whatever they are stored in.

template <int width> struct Group {
  float values[width];
  __device__ __forceinline__ float& operator[](int index) { return values[index]; }
  __device__ __forceinline__ const float& operator[](int index) const { return values[index]; }
};

// The same as it is stored: what a thread keeps while loads are under way, in half of the registers where T has 16 bits.
template <int width, class T> struct alignas(width == 1 ? sizeof(T) : 16) Stored {
  T values[width];
};

// Channels that a thread takes at once: 16 bytes of T.
template <class T> constexpr int WIDE = 16 / sizeof(T);

// Whether a launch's `width` is WIDE<T>. Tensors of 16-bit elements always allow it, so that no other code is made.
template <class T> __device__ __forceinline__ bool is_wide(int width) { return sizeof(T) == 2 || width > 1; }

// 1 channel, or a multiple of 16 bytes of them.
template <int width, class T> __device__ __forceinline__ Stored<width, T> load_stored(const T* address) {
  Stored<width, T> stored;
  if constexpr (width == 1) {
    stored.values[0] = *address;
  } else {
    static_assert(width % WIDE<T> == 0, "a group is whole 16-byte accesses");
#pragma unroll
    for (int first = 0; first < width; first += WIDE<T>)
      *reinterpret_cast<uint4*>(stored.values + first) = *reinterpret_cast<const uint4*>(address + first);
  }
  return stored;
}

template <int width, class T> __device__ __forceinline__ Group<width> floats(const Stored<width, T>& stored) {
  Group<width> group;
#pragma unroll
  for (int k = 0; k < width; ++k) group[k] = to_float(stored.values[k]);
  return group;
}

template <int width, class T> __device__ __forceinline__ Group<width> load(const T* address) {
  return floats(load_stored<width>(address));
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
template <int width, class T> struct StoredPair {
  Stored<width, T> a, b;
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

// Calls use(p, load(p)) for p = first, first + step, ... up to `end`, in order; `at_once` loads first, so that they are
// under way at once. Of the last ones some may be left: they load the last pixel again, rather than wait one by one.
// Kernels declare their pointers without __restrict__: with it the compiler moves each load down to its use.
template <int at_once, class Load, class Use>
__device__ __forceinline__ void for_each_step(unsigned first, unsigned end, unsigned step, Load load, Use use) {
  for (unsigned p = first; p < end; p += at_once * step) {
    decltype(load(0)) loaded[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) loaded[i] = load(static_cast<int>(min(p + i * step, end - 1)));
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (p + i * step < end) use(static_cast<int>(p + i * step), loaded[i]);
  }
}

// Calls use(p, load(p)) for the thread's pixels among `pixels`, whatever the grid.
template <class Load, class Use> __device__ __forceinline__ void for_each_pixel(int pixels, Load load, Use use) {
  for_each_step<PIXELS_PER_THREAD>(blockIdx.x * blockDim.y + threadIdx.y, pixels, gridDim.x * blockDim.y, load, use);
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
      pixels, [&](int p) { return load_stored<width>(a + p * a_stride + c); },
      [&](int p, const Stored<width, T>& stored) {
        Group<width> x = floats(stored);
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
        return StoredPair<width, T>{load_stored<width>(a + p * a_stride + c), load_stored<width>(b + p * b_stride + c)};
      },
      [&](int p, const StoredPair<width, T>& pair) {
        Group<width> x = floats(pair.a);
        const Group<width> y = floats(pair.b);
#pragma unroll
        for (int k = 0; k < width; ++k) x[k] = function(x[k], y[k]);
        store(out + p * out_stride + c, x);
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

// Calls use(p, load(p)) for the thread's pixels of a chunk, p counted in its sample, in order.
template <class Load, class Use> __device__ __forceinline__ void for_each_in_chunk(Chunk chunk, Load load, Use use) {
  for_each_step<PIXELS_PER_THREAD>(chunk.start + threadIdx.y, chunk.end, blockDim.y, load, use);
}

// Calls use(index, load(index)) for the thread's share of the chunks' results, in order.
template <class Load, class Use> __device__ __forceinline__ void for_each_chunk(int chunks, Load load, Use use) {
  for_each_step<CHUNKS_PER_THREAD>(threadIdx.y, chunks, blockDim.y, load, use);
}

// Combines what the threads with the same channels hold, in a fixed order; those with threadIdx.y == 0 get the result.
// All threads of the block have to call it. What a thread gives away lies in shared memory word by word, the words of
// neighbouring threads side by side: they are in different banks.
template <class T, class Combine> __device__ __forceinline__ T reduce_rows(T value, Combine combine) {
  using Word = std::conditional_t<sizeof(T) % sizeof(uint4) == 0, uint4, unsigned>;
  constexpr int WORDS = sizeof(T) / sizeof(Word);
  __shared__ Word partial[WORDS][THREADS];
  const unsigned own = threadIdx.y * blockDim.x + threadIdx.x;
  Word words[WORDS];
  __syncthreads();  // an earlier call's results have been read
  for (unsigned rows = blockDim.y; rows > 1;) {
    const unsigned half = (rows + 1) / 2;
    if (threadIdx.y >= half && threadIdx.y < rows) {
      memcpy(words, &value, sizeof(T));
#pragma unroll
      for (int i = 0; i < WORDS; ++i) partial[i][own] = words[i];
    }
    __syncthreads();
    if (threadIdx.y + half < rows) {
      T other;
#pragma unroll
      for (int i = 0; i < WORDS; ++i) words[i] = partial[i][own + half * blockDim.x];
      memcpy(&other, words, sizeof(T));
      value = combine(value, other);
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

// Calls body(p) for the pixels, whatever the grid, PIXELS_PER_THREAD of them at once: as often for each thread of a block.
// Where there are fewer, the last pixel comes again.
template <class Body> __device__ __forceinline__ void for_each_pixel_together(int pixels, Body body) {
  const unsigned step = gridDim.x * blockDim.y, end = pixels;
  for (unsigned first = blockIdx.x * blockDim.y; first < end; first += PIXELS_PER_THREAD * step) {
    int p[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) p[i] = static_cast<int>(min(first + threadIdx.y + i * step, end - 1));
    body(p);
  }
}
