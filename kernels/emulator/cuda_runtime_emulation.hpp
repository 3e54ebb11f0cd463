// What a .cu file sees instead of CUDA's own headers when the host's C++ compiler compiles it: the language extensions
// and the device functions that the kernels use. Grown as kernels need it.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "kernel_table.hpp"
#include "threads.hpp"
#include "vector_types.hpp"

// ---- language ---------------------------------------------------------------------------------------------------------

#define CUDA_EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __restrict__ __restrict
// One copy an OS thread, and an OS thread runs one block at a time. The launch fills it with NaN before each block.
#define __shared__ thread_local

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block->index)
#define blockDim (emulator::current->block->dimension)
#define gridDim (emulator::current->block->grid)
#define warpSize 32

#define EMULATED_TEXT(text) #text
#define EMULATED_LINE(line) EMULATED_TEXT(line)
#define __syncthreads() emulator::barrier("__syncthreads, " __FILE__ ":" EMULATED_LINE(__LINE__))

#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : emulator::fail(CUDA_ERROR_ASSERT, "assertion failed: %s, %s:%d", #condition, __FILE__, __LINE__))
inline void __trap() { emulator::fail(CUDA_ERROR_ILLEGAL_INSTRUCTION, "__trap()"); }

// ---- warps ------------------------------------------------------------------------------------------------------------

namespace emulator {

// A shuffle: each lane takes the value of lane `source`; from a lane outside the mask it gets NaN bytes.
template <class T> inline T take_from_lane(const char* operation, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= lane_slot_bytes);
  T taken;
  memset(static_cast<void*>(&taken), 0xFF, sizeof taken);
  meet(operation, mask, &value, sizeof value, combine_nothing, [&](auto lanes) {
    if (mask >> source & 1) memcpy(static_cast<void*>(&taken), lanes[source], sizeof taken);
  });
  return taken;
}

inline int lane() { return static_cast<int>(current->lane); }

}  // namespace emulator

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int first = emulator::lane() & ~(width - 1);
  return emulator::take_from_lane("__shfl_sync", mask, value, first | (source & (width - 1)));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emulator::lane(), source = lane - static_cast<int>(delta);
  return emulator::take_from_lane("__shfl_up_sync", mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emulator::lane(), source = lane + static_cast<int>(delta);
  return emulator::take_from_lane("__shfl_down_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  int lane = emulator::lane(), source = lane ^ lane_mask;
  return emulator::take_from_lane("__shfl_xor_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}

inline void __syncwarp(unsigned mask = ~0u) {
  emulator::meet("__syncwarp", mask, nullptr, 0, emulator::combine_nothing, emulator::combine_nothing);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned char vote = predicate != 0;
  unsigned ballot = 0;
  emulator::meet("__ballot_sync", mask, &vote, 1, emulator::combine_nothing, [&](auto lanes) {
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) ballot |= static_cast<unsigned>(lanes[lane][0]) << lane;
  });
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// ---- memory -----------------------------------------------------------------------------------------------------------

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

inline int atomicAdd(int* address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline float atomicAdd(float* address, float value) {
  float old, sum;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do sum = old + value;
  while (!__atomic_compare_exchange(address, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T> inline T atomicMax(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
template <class T> inline T atomicMin(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
template <class T> inline T atomicCAS(T* address, T expected, T value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T> inline T atomicExch(T* address, T value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}

template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }

// ---- arithmetic -------------------------------------------------------------------------------------------------------

using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
// As fminf and fmaxf: of a number and a NaN the number. Written out, since those would be calls.
inline float min(float a, float b) { return a <= b || b != b ? a : b; }
inline float max(float a, float b) { return a >= b || b != b ? a : b; }
inline double min(double a, double b) { return a <= b || b != b ? a : b; }
inline double max(double a, double b) { return a >= b || b != b ? a : b; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

inline int __float_as_int(float value) {
  int bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(__float_as_int(value)); }
inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned long long>(a) * b >> 32; }
