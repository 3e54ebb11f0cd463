// Tensor cores and asynchronous copies: PTX on the device, kernels/emulator/tensor_core.hpp emulated. Inline PTX stands
// in this file alone. Operand layouts: PTX ISA, "Warp-level matrix instructions"; all 32 lanes take part.
//
// Registers hold two 16-bit elements (the lower half is the one of lower index) or one tf32 element.
//
//   function             needs    d += a b, with a row-major, b column-major
//   mma_m16n8k16_bf16    sm_80    16x8 fp32 += 16x16 bf16 * 16x8 bf16
//   mma_m16n8k16_f16     sm_75    16x8 fp32 += 16x16 fp16 * 16x8 fp16 (two k8 steps on sm_75)
//   mma_m16n8k8_f16      sm_75    16x8 fp32 += 16x8 fp16 * 8x8 fp16
//   mma_m16n8k8_tf32     sm_80    16x8 fp32 += 16x8 tf32 * 8x8 tf32
//   wgmma                sm_90a   64x128 fp32 += 64x16 * 16x128, bf16 or fp16, by 4 warps
//
// On an older device than a function needs it traps: the host chooses another kernel there.
#pragma once

#include <type_traits>

#include "common.cuh"

template <class Element> constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<__nv_bfloat16> = true;

// Whether there are warp groups' products; a file for these is compiled for all targets, but has code for such alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define HAVE_WARP_GROUPS 1
#else
#define HAVE_WARP_GROUPS 0
#endif

#ifdef CUDA_EMULATOR
#include "tensor_core.hpp"
#else

// ---- matrix products --------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], const unsigned (&a)[2], unsigned b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const unsigned low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]};
  mma_m16n8k8_f16(d, low, b[0]);
  mma_m16n8k8_f16(d, high, b[1]);
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// fp32 rounded to tf32, to nearest, ties away from zero. Without it the tensor core cuts the low bits off.
__device__ __forceinline__ unsigned float_to_tf32(float value) {
  unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  __trap();
#endif
  return bits;
}

// ---- barriers ---------------------------------------------------------------------------------------------------------

// __syncthreads() of a group of the block's threads alone, whole warps: of the first `threads`, the second ones, and so on, up
// to 15 groups.
template <int threads> __device__ __forceinline__ void group_barrier(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(threads) : "memory");
}

// ---- pairs of elements ------------------------------------------------------------------------------------------------

// A mask of 16 bits of `low`, and above it one of `high`: all ones where the highest bit of this byte is set.
template <int low_byte, int high_byte = low_byte>
__device__ __forceinline__ unsigned sign_masks(unsigned low, unsigned high) {
  constexpr unsigned replicate = 8, of_high = 4;  // prmt's selectors, one for each byte of the result
  unsigned masks;
  asm("prmt.b32 %0, %1, %2, %3;"
      : "=r"(masks)
      : "r"(low), "r"(high), "n"((replicate | low_byte) * 0x11 | (replicate | of_high | high_byte) * 0x1100));
  return masks;
}

// ---- loading operands from shared memory ------------------------------------------------------------------------------
// 8x8 matrices of 16-bit elements: lane 8 m + r gives the address of row r of matrix m (x2: lanes 0 to 15), a multiple
// of 16 bytes; r[m] is then this lane's two elements of matrix m, as the mma wants them. `_trans` transposes each.

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Stores four matrices that lanes hold so, each transposed. From sm_90 on.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif

// ---- products of warp groups ------------------------------------------------------------------------------------------
// The four warps of a block multiply together: each has 16 rows of a and of the sums in its registers, as for an mma
// (sums[n] is of columns 8 n to 8 n + 7), and b lies in shared memory: 8x8 matrices of 128 bytes, 8 of the inner dimension
// side by side, `inner_bytes` to the next 8 of it, `column_bytes` to the next 8 columns.
//
// The products run on their own. wgmma_see_shared comes between the writes to shared memory of a thread, asynchronous
// copies that it waited for among them, and the barrier before the products. wgmma_begin comes before some products,
// whose registers are left alone from then on, and wgmma_end makes them a group; wgmma_wait<n> waits until at most n groups
// are under way. Where other code changed the sums since the last products, wgmma_keep makes the compiler finish it.
#if HAVE_WARP_GROUPS

__device__ __forceinline__ unsigned long long shared_matrix(const void* shared, int inner_bytes, int column_bytes) {
  const unsigned long long address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  return address / 16 | static_cast<unsigned long long>(inner_bytes / 16) << 16 |
         static_cast<unsigned long long>(column_bytes / 16) << 32;
}

#define REGISTERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define SUMS_4(n) SUMS(n), SUMS(n + 1), SUMS(n + 2), SUMS(n + 3)
#define SUMS_16(n) SUMS_4(n), SUMS_4(n + 4), SUMS_4(n + 8), SUMS_4(n + 12)
#define WGMMA(element)                                                                                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." element "." element                             \
               " {" REGISTERS_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                                    \
               : SUMS_16(0)                                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <class Element>
__device__ __forceinline__ void wgmma(float (&sums)[16][4], const unsigned (&a)[4], unsigned long long b) {
  if constexpr (is_bf16<Element>) WGMMA("bf16");
  else WGMMA("f16");
}

__device__ __forceinline__ void wgmma_see_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_keep(float (&sums)[16][4]) { asm volatile("" : SUMS_16(0)::"memory"); }

template <int groups_left> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory");
}

#endif  // HAVE_WARP_GROUPS

// ---- asynchronous copies from global to shared memory -----------------------------------------------------------------
// cp_async begins a copy of 4, 8 or 16 bytes (aligned so); cp_async_or_zero writes zeros instead where `valid` is false,
// and then does not read `global`, which still has to be a pointer. cp_async_commit closes a group of copies;
// cp_async_wait<n> waits until at most n groups of this thread are under way. Other threads see the data after a
// barrier. Before sm_80 a copy is done at once.

template <int bytes> __device__ __forceinline__ void cp_async_or_zero(void* shared, const void* global, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  int read = valid ? bytes : 0;
  if constexpr (bytes == 16)  // .cg: past the first-level cache, which only 16-byte copies can do
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(bytes), "r"(read)
                 : "memory");
#else
  using Copied = std::conditional_t<bytes == 16, uint4, std::conditional_t<bytes == 8, uint2, unsigned>>;
  *static_cast<Copied*>(shared) = valid ? *static_cast<const Copied*>(global) : Copied();
#endif
}

template <int bytes> __device__ __forceinline__ void cp_async(void* shared, const void* global) {
  cp_async_or_zero<bytes>(shared, global, true);
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int groups_left> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
#endif
}

// Asks for the line of global memory where `global` lies to be brought into the second-level cache.
__device__ __forceinline__ void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

#endif  // CUDA_EMULATOR

// ---- pairs of elements, by whatever there is --------------------------------------------------------------------------
// The emulator has what needs no instruction of its own.

#ifdef CUDA_EMULATOR
#define PTX_SINCE(arch) 0
#else
#define PTX_SINCE(arch) (__CUDA_ARCH__ >= arch)
#endif

// In the highest bit of each element, whether it is NaN; others' bits mean nothing.
template <class Element> __device__ __forceinline__ unsigned nan_bits(unsigned pair) {
  constexpr unsigned infinity = is_bf16<Element> ? 0x7f807f80 : 0x7c007c00;
  return (pair & 0x7fff7fff) + (0x7fff7fff - infinity);
}

// For each element a mask: all ones where it is above zero.
template <class Element> __device__ __forceinline__ unsigned positive_masks(unsigned pair) {
  const unsigned not_zero = (pair & 0x7fff7fff) + 0x7fff7fff, positive = not_zero & ~nan_bits<Element>(pair) & ~pair;
  unsigned masks = sign_masks<1, 3>(positive, positive);
#if PTX_SINCE(750)
  if constexpr (!is_bf16<Element>) asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(masks) : "r"(pair), "r"(0));
#endif
#if PTX_SINCE(900)
  if constexpr (is_bf16<Element>) asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(masks) : "r"(pair), "r"(0));
#endif
  return masks;
}

// Zero for each element that is below it. NaN stays.
template <class Element> __device__ __forceinline__ unsigned rectify_pair(unsigned pair) {
#if PTX_SINCE(800)
  unsigned rectified;
  if constexpr (is_bf16<Element>) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(rectified) : "r"(pair), "r"(0));
  else asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(rectified) : "r"(pair), "r"(0));
  return rectified;
#else
  const unsigned negative = pair & ~nan_bits<Element>(pair);
  return pair & ~sign_masks<1, 3>(negative, negative);
#endif
}

// The same of a float.
__device__ __forceinline__ float rectified(float value) {
#if PTX_SINCE(800)
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(value) : "f"(value), "f"(0.0f));
  return value;
#else
  return value <= 0.0f ? 0.0f : value;
#endif
}
