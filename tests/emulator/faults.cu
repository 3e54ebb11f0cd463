// Kernels that test the emulator: faults that it has to find.
#include "common.cuh"
#include "tensor_core.cuh"

// ---- races ------------------------------------------------------------------------------------------------------------

// Each thread needs what its left neighbour wrote. Threads in forward order hide it.
KERNEL(missing_barrier)(float* out) {  // [block]
  __shared__ float tile[256];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = tile[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}

// The second round's writes can overtake the first round's reads.
KERNEL(missing_second_barrier)(float* out) {  // [block]
  __shared__ float tile[256];
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % blockDim.x];
  }
  out[threadIdx.x] = sum;  // 0 + 1
}

// Two groups are under way; the wait leaves one of them, the one that is read.
KERNEL(wrong_wait_group)(
    float* out,      // [32]
    const float* x,  // [2, 32]
    int groups_left) {
  __shared__ float tile[2][32];
  for (int group = 0; group < 2; ++group) {
    cp_async<4>(&tile[group][threadIdx.x], x + group * 32 + threadIdx.x);
    cp_async_commit();
  }
  if (groups_left == 1) cp_async_wait<1>();
  else cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[1][threadIdx.x];
}

// Depends on the order of blocks: each adds its number to what is there, then doubles.
KERNEL(order_of_blocks)(int* out) {  // [1]
  *out = (*out + static_cast<int>(blockIdx.x)) * 2;
}

// ---- addresses --------------------------------------------------------------------------------------------------------

KERNEL(write_at)(
    float* out,  // [n]
    long long index) {
  if (threadIdx.x == 5) out[index] = 1.0f;
}

KERNEL(read_at)(
    float* out,      // [1]
    const float* x,  // [n]
    long long index) {
  if (threadIdx.x == 7) out[0] = x[index];
}

KERNEL(misaligned_load)(
    float* out,        // [4]
    const float* x) {  // [8]
  if (threadIdx.x == 0) store16(out, load16(x + 1));
}

KERNEL(misaligned_copy)(const float* x) {  // [8]
  __shared__ __align__(16) float tile[8];
  cp_async<16>(tile + 4, x + 3);
}

KERNEL(shared_index)(
    float* out,  // [1]
    int index) {
  __shared__ float tile[64];
  tile[index] = 1.0f;
  out[0] = tile[index];
}

KERNEL(dynamic_shared_index)(
    float* out,  // [1]
    int index) {
  DYNAMIC_SHARED(float, tile);
  tile[index] = 1.0f;
  out[0] = tile[index];
}

// ---- barriers and warps -----------------------------------------------------------------------------------------------

KERNEL(divergent_barrier)(int* out) {  // [block]
  if (threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

KERNEL(two_barriers)(int* out) {  // [block]
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  out[threadIdx.x] = 1;
}

KERNEL(incomplete_group)(int* out) {  // [block]
  if (threadIdx.x != 40) group_barrier<32>(threadIdx.x / 32);
  out[threadIdx.x] = 1;
}

KERNEL(another_group)(int* out) {  // [block]
  group_barrier<32>(0);
  out[threadIdx.x] = 1;
}

KERNEL(barrier_against_shuffle)(int* out) {  // [block]
  int value = threadIdx.x;
  if (threadIdx.x == 3) __syncthreads();
  else value = __shfl_sync(ALL_LANES, value, 0);
  out[threadIdx.x] = value;
}

KERNEL(lane_outside_mask)(int* out) {  // [32]
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, static_cast<int>(threadIdx.x), 0);
}

KERNEL(shuffle_after_return)(int* out) {  // [block]
  if (threadIdx.x == 9) return;
  out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, static_cast<int>(threadIdx.x), 1);
}

KERNEL(two_warp_operations)(int* out) {  // [32]
  int value = threadIdx.x;
  if (threadIdx.x < 16) value = __shfl_sync(ALL_LANES, value, 0);
  else __syncwarp();
  out[threadIdx.x] = value;
}

// ---- arithmetic and stack ---------------------------------------------------------------------------------------------

KERNEL(divide)(
    int* out,  // [1]
    int a, int b) {
  *out = a / b;
}

KERNEL(trap)(int* out) {  // [1]
  *out = 1;
  if (threadIdx.x == 2) __trap();
}

KERNEL(large_frame)(int* out) {  // [1]
  volatile int local[64 * 1024];
  for (int i = 0; i < 64 * 1024; i += 512) local[i] = i;
  *out = local[512];
}
