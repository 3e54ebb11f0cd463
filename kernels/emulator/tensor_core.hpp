// The emulated twin of kernels/tensor_core.cuh: asynchronous copies, ldmatrix and the tensor cores' mma. Same functions,
// same operand layout (PTX ISA, "Warp-level matrix instructions"). The tensor cores' rounding inside one mma is not
// documented and not imitated: here products are summed in fp32, k ascending.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "threads.hpp"

namespace emulator {

// ---- cp.async ---------------------------------------------------------------------------------------------------------
// A copy is done as late as the program allows, at the wait for its group, and its target is NaN until then: a missing
// wait or barrier shows in the result.

constexpr unsigned max_copies = 256, max_copy_groups = 32;

struct AsyncCopies {
  struct Copy {
    void* shared;
    const void* global;
    unsigned bytes, copied;  // the rest is zero
  };
  Copy copies[max_copies];
  unsigned group_end[max_copy_groups];
  unsigned copy_count, group_count;
};

AsyncCopies* new_copies();
inline void forget_copies(AsyncCopies* copies) { copies->copy_count = copies->group_count = 0; }

inline AsyncCopies* copies_of_current() {
  if (current->copies == nullptr) current->copies = new_copies();
  return current->copies;
}

void begin_copy(void* shared, const void* global, unsigned bytes, unsigned copied);
void commit_copies();
void wait_for_copies(unsigned groups_left);

// ---- ldmatrix ---------------------------------------------------------------------------------------------------------
// Loads `count` 8x8 matrices of 16-bit elements; lane 8 m + r brings the address of row r of matrix m.

template <int count, bool transposed> inline void load_matrices(const char* operation, unsigned* registers, const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "%s: row %p is not aligned to 16 bytes", operation, row);
  meet(operation, ~0u, &row, sizeof row, combine_nothing, [&](auto lanes) {
    unsigned lane = current->lane;
#pragma GCC unroll 4
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t pair[2];
      for (unsigned element = 0; element < 2; ++element) {
        unsigned i = lane / 4, j = lane % 4 * 2 + element;  // this lane holds matrix[i][j], or its transposed's
        const uint16_t* address;
        memcpy(&address, lanes[matrix * 8 + (transposed ? j : i)], sizeof address);
        pair[element] = address[transposed ? i : j];
      }
      memcpy(&registers[matrix], pair, sizeof pair);
    }
  });
}

// Stores them: the lanes hold the matrices as load_matrices gives them.
template <int count, bool transposed> inline void store_matrices(const char* operation, void* row, const unsigned* registers) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "%s: row %p is not aligned to 16 bytes", operation, row);
  meet(operation, ~0u, &row, sizeof row, combine_nothing, [&](auto lanes) {
    unsigned lane = current->lane;
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t pair[2];
      memcpy(pair, &registers[matrix], sizeof pair);
      for (unsigned element = 0; element < 2; ++element) {
        unsigned i = lane / 4, j = lane % 4 * 2 + element;
        uint16_t* address;
        memcpy(&address, lanes[matrix * 8 + (transposed ? j : i)], sizeof address);
        address[transposed ? i : j] = pair[element];
      }
    }
  });
}

// ---- mma --------------------------------------------------------------------------------------------------------------
// d[16][8] += a[16][depth] b[depth][8]: the last lane to arrive gathers all lanes' registers, multiplies and spreads the
// sums.

// What a lane brings to an mma, and the sums it takes back.
struct LaneOperands {
  unsigned a[4], b[2];
  float d[4];
};
static_assert(sizeof(LaneOperands) <= lane_slot_bytes);

// Run in the last lane to arrive.
void multiply_f16(unsigned char (*lanes)[lane_slot_bytes], int depth);
void multiply_bf16(unsigned char (*lanes)[lane_slot_bytes], int depth);

// tf32: m16n8k8, one element a register, of which the tensor core ignores the low 13 bits.
void multiply_tf32(unsigned char (*lanes)[lane_slot_bytes]);

template <class Combine>
inline void mma(const char* operation, float (&d)[4], const unsigned* a, int a_count, const unsigned* b, int b_count,
                Combine combine) {
  LaneOperands operands = {};
  memcpy(operands.a, a, a_count * sizeof *a);
  memcpy(operands.b, b, b_count * sizeof *b);
  memcpy(operands.d, d, sizeof d);
  meet(operation, ~0u, &operands, sizeof operands, combine,
       [&](auto lanes) { memcpy(d, lanes[current->lane] + offsetof(LaneOperands, d), sizeof d); });
}

}  // namespace emulator

// ---- the functions of tensor_core.cuh ---------------------------------------------------------------------------------

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulator::mma("mma.m16n8k16 bf16", d, a, 4, b, 2, [](auto lanes) { emulator::multiply_bf16(lanes, 16); });
}

inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulator::mma("mma.m16n8k16 f16", d, a, 4, b, 2, [](auto lanes) { emulator::multiply_f16(lanes, 16); });
}

inline void mma_m16n8k8_f16(float (&d)[4], const unsigned (&a)[2], unsigned b) {
  emulator::mma("mma.m16n8k8 f16", d, a, 2, &b, 1, [](auto lanes) { emulator::multiply_f16(lanes, 8); });
}

inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulator::mma("mma.m16n8k8 tf32", d, a, 4, b, 2, emulator::multiply_tf32);
}

inline unsigned float_to_tf32(float value) {  // to nearest, ties away from zero
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7F800000) != 0x7F800000) bits += 0x1000;
  return bits & 0xFFFFE000;
}

template <int threads> inline void group_barrier(int group) { emulator::group_barrier(group, threads); }

template <int low_byte, int high_byte = low_byte> inline unsigned sign_masks(unsigned low, unsigned high) {
  const auto mask = [](unsigned value, int byte) { return value >> (8 * byte + 7) & 1 ? 0xffffu : 0u; };
  return mask(high, high_byte) << 16 | mask(low, low_byte);
}

// b's address is counted from the beginning of the block's dynamic shared memory, where a GPU counts from that of all
// shared memory. A warp's rows of the product need nothing of the other warps. The products are done at once.
inline unsigned long long shared_matrix(const void* shared, int inner_bytes, int column_bytes) {
  const auto offset = static_cast<const unsigned char*>(shared) - emulator::current->block->dynamic_shared;
  if (offset < 0 || offset % 16 != 0 || offset >= 1 << 18 || inner_bytes % 16 != 0 || column_bytes % 16 != 0)
    emulator::fail(CUDA_ERROR_MISALIGNED_ADDRESS, "wgmma: a matrix at %td, %d and %d bytes apart", offset, inner_bytes,
                   column_bytes);
  return static_cast<unsigned long long>(offset / 16) | static_cast<unsigned long long>(inner_bytes / 16) << 16 |
         static_cast<unsigned long long>(column_bytes / 16) << 32;
}

template <class Element, int columns>
inline void wgmma(float (&sums)[columns][4], const unsigned (&a)[4], unsigned long long b) {
  const auto field = [&](int bit) { return (b >> bit & 0x3fff) * 16; };
  const unsigned lane = emulator::current->lane;
  const unsigned char* first = emulator::current->block->dynamic_shared + field(0) + lane / 4 * 16 + lane % 4 * 4;
  for (int n = 0; n < columns; ++n) {
    unsigned pairs[2];
    for (int half = 0; half < 2; ++half)
      memcpy(&pairs[half], first + n * field(32) + half * field(16), sizeof pairs[half]);
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) mma_m16n8k16_bf16(sums[n], a, pairs);
    else mma_m16n8k16_f16(sums[n], a, pairs);
  }
}

inline void wgmma_see_shared() {}
inline void wgmma_begin() {}
inline void wgmma_end() {}
inline void wgmma_keep(float (&)[16][4]) {}
template <int groups_left> inline void wgmma_wait() {}

inline void ldmatrix_x2(unsigned (&r)[2], const void* row) { emulator::load_matrices<2, false>("ldmatrix.x2", r, row); }
inline void ldmatrix_x4(unsigned (&r)[4], const void* row) { emulator::load_matrices<4, false>("ldmatrix.x4", r, row); }
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
  emulator::load_matrices<2, true>("ldmatrix.x2.trans", r, row);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
  emulator::load_matrices<4, true>("ldmatrix.x4.trans", r, row);
}

inline void stmatrix_x4_trans(void* row, const unsigned (&r)[4]) {
  emulator::store_matrices<4, true>("stmatrix.x4.trans", row, r);
}

template <int bytes> inline void cp_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulator::begin_copy(shared, global, bytes, bytes);
}

template <int bytes> inline void cp_async_or_zero(void* shared, const void* global, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulator::begin_copy(shared, global, bytes, valid ? bytes : 0);
}

inline void cp_async_commit() { emulator::commit_copies(); }

inline void prefetch(const void*) {}

template <int groups_left> inline void cp_async_wait() { emulator::wait_for_copies(groups_left); }
