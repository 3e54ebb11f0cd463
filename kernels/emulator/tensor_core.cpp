#include "tensor_core.hpp"

#include <cstdlib>

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

void multiply_tile(MatrixTile& tile, int depth) {
  typedef float Row __attribute__((vector_size(32)));
  for (int i = 0; i < 16; ++i) {
    Row& sum = reinterpret_cast<Row&>(tile.d[i]);
    for (int k = 0; k < depth; ++k) sum += tile.a[i][k] * reinterpret_cast<const Row&>(tile.b[k]);
  }
}

void multiply_tf32(unsigned char (*lanes)[lane_slot_bytes]) {
  MatrixTile tile;
  auto to_float = [](unsigned bits) {
    float value;
    bits &= 0xFFFFE000;
    memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    LaneOperands operands;
    memcpy(&operands, lanes[lane], sizeof operands);
    unsigned group = lane / 4, column = lane % 4;
    for (unsigned part = 0; part < 4; ++part)
      tile.a[group + part % 2 * 8][column + part / 2 * 4] = to_float(operands.a[part]);
    for (unsigned part = 0; part < 2; ++part) tile.b[column + part * 4][group] = to_float(operands.b[part]);
    memcpy(&tile.d[group][column * 2], &operands.d[0], 8);
    memcpy(&tile.d[group + 8][column * 2], &operands.d[2], 8);
  }
  multiply_tile(tile, 8);
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    unsigned group = lane / 4, column = lane % 4;
    unsigned char* sums = lanes[lane] + offsetof(LaneOperands, d);
    memcpy(sums, &tile.d[group][column * 2], 8);
    memcpy(sums + 8, &tile.d[group + 8][column * 2], 8);
  }
}

}  // namespace emulator
