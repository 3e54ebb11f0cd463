// What every kernel file includes first: how a kernel is declared, shared memory, 16-byte accesses and reductions.
//
// The same .cu files are compiled twice: by nvcc for the GPU, and by the host's C++ compiler for the emulator
// (kernels/emulator/), which then defines CUDA_EMULATOR.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// ---- elements ---------------------------------------------------------------------------------------------------------
// A file that says `Element`, which is what activations and their gradients are stored in, is compiled once for each:
// the build defines which, and the kernels' names end in it. Arithmetic is in float.

#if defined(ELEMENT_f32)
using Element = float;
#define ELEMENT_NAME(name) name##_f32
#elif defined(ELEMENT_bf16)
using Element = __nv_bfloat16;
#define ELEMENT_NAME(name) name##_bf16
#elif defined(ELEMENT_f16)
using Element = __half;
#define ELEMENT_NAME(name) name##_f16
#else
#define ELEMENT_NAME(name) name
#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

// To the nearest, ties to even.
template <class T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <> __device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }

// Within what T can hold. In the forward pass, where batch norm follows, a sum that fp16 cannot hold does no harm as the
// largest that it can; gradients have to overflow, so that the loss scale is lowered. NaN stays.
template <class T> __device__ __forceinline__ float saturate(float value) { return value; }
template <> __device__ __forceinline__ float saturate<__half>(float value) {
  constexpr float most = 65504.0f;
  return value > most ? most : value < -most ? -most : value;
}

// ---- bits -------------------------------------------------------------------------------------------------------------
// Of eight neighbouring channels, whether each is above zero: the first in the lowest bit.

using Bits = unsigned char;
constexpr int CHANNELS_PER_BYTE = 8;

template <class Values> __device__ __forceinline__ Bits positive_bits(const Values& values) {
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < CHANNELS_PER_BYTE; ++k) bits |= static_cast<unsigned>(to_float(values[k]) > 0.0f) << k;
  return static_cast<Bits>(bits);
}

// Makes those of the first `count` values zero that have no bit.
template <int count, class Values> __device__ __forceinline__ void keep_positive(Values& values, unsigned bits) {
#pragma unroll
  for (int k = 0; k < count; ++k)
    if (!(bits >> k & 1)) values[k] = 0.0f;
}

// ---- kernels ----------------------------------------------------------------------------------------------------------
// KERNEL(name)(parameters) { body }. The build finds these declarations and makes a Rust constant of each name.
// KERNEL_WITH_THREADS says the block size, which lets the compiler use more registers; a larger block is refused.

#define KERNEL_WITH_THREADS(name, threads) KERNEL_OF_SYMBOL(ELEMENT_NAME(name), threads)
#define KERNEL_OF_SYMBOL(symbol, threads) KERNEL_SYMBOL(symbol, threads)

#ifdef CUDA_EMULATOR
#define KERNEL(name) KERNEL_WITH_THREADS(name, 1024)
#define KERNEL_SYMBOL(symbol, threads)                                \
  static constexpr unsigned emulated_max_threads_of_##symbol = threads; \
  extern "C" void symbol
#else
#define KERNEL_PLAIN(symbol) extern "C" __global__ void symbol
#define KERNEL(name) KERNEL_PLAIN(ELEMENT_NAME(name))
#define KERNEL_SYMBOL(symbol, threads) extern "C" __global__ void __launch_bounds__(threads) symbol
#endif

// DYNAMIC_SHARED(float, tile); declares `float* tile`, the block's dynamic shared memory, aligned to 128 bytes.
#ifdef CUDA_EMULATOR
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::current->block->dynamic_shared)
#else
extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(dynamic_shared_memory)
#endif

// ---- 16-byte accesses -------------------------------------------------------------------------------------------------

// 16 bytes of T, which one instruction loads or stores: 4 floats, or 8 half or bf16.
template <typename T> struct alignas(16) Vector16 {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
  __device__ __forceinline__ T& operator[](int index) { return values[index]; }
  __device__ __forceinline__ const T& operator[](int index) const { return values[index]; }
};

__device__ __forceinline__ bool is_aligned16(const void* address) {
  return reinterpret_cast<size_t>(address) % 16 == 0;
}

// `address` must be a multiple of 16 bytes.
template <typename T> __device__ __forceinline__ Vector16<T> load16(const T* address) {
  Vector16<T> vector;
  *reinterpret_cast<uint4*>(&vector) = *reinterpret_cast<const uint4*>(address);
  return vector;
}

template <typename T> __device__ __forceinline__ void store16(T* address, const Vector16<T>& vector) {
  *reinterpret_cast<uint4*>(address) = *reinterpret_cast<const uint4*>(&vector);
}

// ---- reductions -------------------------------------------------------------------------------------------------------
// In a fixed order, so that equal inputs give equal bits. All 32 lanes, or all threads of the block, have to call them;
// all get the result.

constexpr int WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

template <typename T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
}

template <typename T> __device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
    value = max(value, __shfl_xor_sync(ALL_LANES, value, distance));
  return value;
}

// The block is one-dimensional, a multiple of 32 threads. The first barrier protects the partial results of an earlier
// call, the second one publishes this call's.
template <typename T> __device__ __forceinline__ T block_sum(T value) {
  __shared__ T partial[WARP_SIZE];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = value;
  __syncthreads();
  T total = partial[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / WARP_SIZE; ++warp) total += partial[warp];
  return total;
}

template <typename T> __device__ __forceinline__ T block_max(T value) {
  __shared__ T partial[WARP_SIZE];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = value;
  __syncthreads();
  T largest = partial[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / WARP_SIZE; ++warp) largest = max(largest, partial[warp]);
  return largest;
}
