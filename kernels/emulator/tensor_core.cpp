// The slow parts of asynchronous copies and matrix products.
#include "tensor_core.hpp"

#include <cstdlib>

#include "float16.hpp"

namespace emulator {

AsyncCopies* new_copies() { return static_cast<AsyncCopies*>(calloc(1, sizeof(AsyncCopies))); }

void begin_copy(void* shared, const void* global, unsigned bytes, unsigned copied) {
  AsyncCopies* pending = copies_of_current();
  uintptr_t both = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if (both % bytes != 0)
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "cp.async of %u bytes from %p to %p: not aligned", bytes, global, shared);
  if (pending->copy_count == max_copies)
    fail(CUDA_ERROR_LAUNCH_FAILED, "cp.async: one thread has more than %u copies in flight", max_copies);
  memset(shared, 0xFF, bytes);
  pending->copies[pending->copy_count++] = {shared, global, bytes, copied};
}

void commit_copies() {
  AsyncCopies* pending = copies_of_current();
  if (pending->group_count == max_copy_groups)
    fail(CUDA_ERROR_LAUNCH_FAILED, "cp.async: one thread has more than %u groups in flight", max_copy_groups);
  pending->group_end[pending->group_count++] = pending->copy_count;
}

void wait_for_copies(unsigned groups_left) {
  AsyncCopies* pending = copies_of_current();
  if (pending->group_count <= groups_left) return;
  unsigned done_groups = pending->group_count - groups_left, done = pending->group_end[done_groups - 1];
  for (unsigned index = 0; index < done; ++index) {
    const AsyncCopies::Copy& copy = pending->copies[index];
    memcpy(copy.shared, copy.global, copy.copied);
    memset(static_cast<char*>(copy.shared) + copy.copied, 0, copy.bytes - copy.copied);
  }
  memmove(pending->copies, pending->copies + done, (pending->copy_count - done) * sizeof *pending->copies);
  pending->copy_count -= done;
  for (unsigned group = done_groups; group < pending->group_count; ++group)
    pending->group_end[group - done_groups] = pending->group_end[group] - done;
  pending->group_count = groups_left;
}

namespace {

struct Tile {
  alignas(32) float a[16][16];
  alignas(32) float b[16][8];
  alignas(32) float d[16][8];
};

void multiply(Tile& tile, int depth) {
  typedef float Row __attribute__((vector_size(32)));
  for (int i = 0; i < 16; ++i) {
    Row& sum = reinterpret_cast<Row&>(tile.d[i]);
    for (int k = 0; k < depth; ++k) sum += tile.a[i][k] * reinterpret_cast<const Row&>(tile.b[k]);
  }
}

// The sums are spread over the lanes alike for all types: rows group and group + 8, columns pair and pair + 1.
void gather_sums(Tile& tile, unsigned char (*lanes)[lane_slot_bytes]) {
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    const unsigned char* sums = lanes[lane] + offsetof(LaneOperands, d);
    memcpy(&tile.d[lane / 4][lane % 4 * 2], sums, 8);
    memcpy(&tile.d[lane / 4 + 8][lane % 4 * 2], sums + 8, 8);
  }
}

void spread_sums(const Tile& tile, unsigned char (*lanes)[lane_slot_bytes]) {
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    unsigned char* sums = lanes[lane] + offsetof(LaneOperands, d);
    memcpy(sums, &tile.d[lane / 4][lane % 4 * 2], 8);
    memcpy(sums + 8, &tile.d[lane / 4 + 8][lane % 4 * 2], 8);
  }
}

// `convert` turns 8 16-bit elements into fp32; depth is 8 or 16.
template <class Convert> void multiply_16bit(unsigned char (*lanes)[lane_slot_bytes], int depth, Convert convert) {
  Tile tile;
  gather_sums(tile, lanes);
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    unsigned group = lane / 4, pair = lane % 4 * 2;
    float a[8], b[8];
    convert(lanes[lane] + offsetof(LaneOperands, a), a);
    convert(lanes[lane] + offsetof(LaneOperands, b), b);  // 4 elements; the rest is not used
    for (int part = 0; part < depth / 8; ++part) {        // columns of a, rows of b: pair.. and pair + 8..
      memcpy(&tile.a[group][pair + part * 8], &a[part * 4], 8);
      memcpy(&tile.a[group + 8][pair + part * 8], &a[part * 4 + 2], 8);
      tile.b[pair + part * 8][group] = b[part * 2];
      tile.b[pair + part * 8 + 1][group] = b[part * 2 + 1];
    }
  }
  multiply(tile, depth);
  spread_sums(tile, lanes);
}

}  // namespace

void multiply_f16(unsigned char (*lanes)[lane_slot_bytes], int depth) {
  multiply_16bit(lanes, depth, [](const unsigned char* from, float* to) {
#ifdef __F16C__
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    uint16_t bits[8];
    memcpy(bits, from, sizeof bits);
    for (int i = 0; i < 8; ++i) to[i] = half_to_float(bits[i]);
#endif
  });
}

void multiply_bf16(unsigned char (*lanes)[lane_slot_bytes], int depth) {
  multiply_16bit(lanes, depth, [](const unsigned char* from, float* to) {
    uint16_t bits[8];
    memcpy(bits, from, sizeof bits);
    for (int i = 0; i < 8; ++i) to[i] = bfloat16_to_float(bits[i]);
  });
}

void multiply_tf32(unsigned char (*lanes)[lane_slot_bytes]) {
  Tile tile;
  gather_sums(tile, lanes);
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    LaneOperands operands;
    memcpy(&operands, lanes[lane], sizeof operands);
    auto to_float = [](unsigned bits) { return bits_to_float(bits & 0xFFFFE000); };
    unsigned group = lane / 4, column = lane % 4;
    for (unsigned part = 0; part < 4; ++part)
      tile.a[group + part % 2 * 8][column + part / 2 * 4] = to_float(operands.a[part]);
    for (unsigned part = 0; part < 2; ++part) tile.b[column + part * 4][group] = to_float(operands.b[part]);
  }
  multiply(tile, 8);
  spread_sums(tile, lanes);
}

}  // namespace emulator
