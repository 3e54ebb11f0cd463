// Kernels that test the emulator: what has to work.
#include "common.cuh"
#include "tensor_core.cuh"

// ---- memory and warps -------------------------------------------------------------------------------------------------

KERNEL(vector_add)(
    float* out,                      // [n]
    const float* a, const float* b,  // [n]
    int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] + b[i];
}

// Each block reduces a row.
KERNEL(row_sum_and_max)(
    float* sums, float* maxima,  // [rows]
    const float* x,              // [rows, n]
    int n) {
  const float* row = x + static_cast<size_t>(blockIdx.x) * n;
  float sum = 0.0f, largest = -INFINITY;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    sum += row[i];
    largest = max(largest, row[i]);
  }
  sum = block_sum(sum);
  largest = block_max(largest);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    maxima[blockIdx.x] = largest;
  }
}

// One block of 64 threads; every warp does the same.
KERNEL(warp_operations)(int* out) {  // [6, 64]
  int lane = threadIdx.x % 32;
  int* column = out + threadIdx.x;
  column[0 * 64] = __shfl_sync(ALL_LANES, lane * 10, lane ^ 5);
  column[1 * 64] = __shfl_up_sync(ALL_LANES, lane, 3);
  column[2 * 64] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
  column[3 * 64] = __shfl_xor_sync(ALL_LANES, lane, 16);
  column[4 * 64] = static_cast<int>(__ballot_sync(ALL_LANES, lane % 3 == 0));
  int half = 0;
  if (lane < 16) half = __shfl_xor_sync(0x0000ffffu, lane, 1);
  else half = __shfl_down_sync(0xffff0000u, lane, 1);
  __syncwarp();
  column[5 * 64] = half;
}

KERNEL(count_in_bins)(
    unsigned* bins,  // [8]
    int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[i % 8], 1u);
}

KERNEL(thread_coordinates)(int* out) {  // [grid.z, grid.y, grid.x, block.z, block.y, block.x]
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  out[i] = i;
}

// Whether shared memory is NaN before it is written: out[0] static, out[1] dynamic (4 bytes at least).
KERNEL(fresh_shared_memory)(float* out) {  // [grid, 2]
  __shared__ float fixed[1000];
  DYNAMIC_SHARED(float, dynamic);
  if (threadIdx.x == 0) {
    int nans = 0;
    for (int i = 0; i < 1000; ++i) nans += isnan(fixed[i]);
    out[blockIdx.x * 2] = nans;
    out[blockIdx.x * 2 + 1] = isnan(dynamic[0]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 1000; i += blockDim.x) fixed[i] = 1.0f;
  if (threadIdx.x == 0) dynamic[0] = 1.0f;
}

// ---- matrix products --------------------------------------------------------------------------------------------------

constexpr int TILE = 16;

// Blocks of TILE x TILE threads, one output each; n is a multiple of TILE.
KERNEL_WITH_THREADS(matrix_product_tiled, TILE* TILE)(
    float* c,                        // [n, n]
    const float* a, const float* b,  // [n, n]
    int n) {
  __shared__ float a_tile[TILE][TILE + 1], b_tile[TILE][TILE + 1];
  const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
  float sum = 0.0f;
  for (int k = 0; k < n; k += TILE) {
    a_tile[y][x] = a[row * n + k + x];
    b_tile[y][x] = b[(k + y) * n + column];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TILE; ++j) sum += a_tile[y][j] * b_tile[j][x];
    __syncthreads();
  }
  c[row * n + column] = sum;
}

// 128x128 outputs a block of 256 threads, 8x8 a thread; n is a multiple of 128.
KERNEL_WITH_THREADS(matrix_product_in_registers, 256)(
    float* c,                        // [n, n]
    const float* a, const float* b,  // [n, n]
    int n) {
  __shared__ __align__(16) float a_tile[8][128], b_tile[8][128];
  const int t = threadIdx.x, x = t % 16, y = t / 16;
  const float* a_rows = a + static_cast<size_t>(blockIdx.y) * 128 * n;
  float sums[8][8] = {};
  for (int k = 0; k < n; k += 8) {
    const Vector16<float> a4 = load16(a_rows + (t / 2) * n + k + t % 2 * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) a_tile[t % 2 * 4 + j][t / 2] = a4[j];
    store16(&b_tile[t / 32][t % 32 * 4], load16(b + (k + t / 32) * n + blockIdx.x * 128 + t % 32 * 4));
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int row = 0; row < 8; ++row)
#pragma unroll
        for (int column = 0; column < 8; ++column) sums[row][column] += a_tile[j][y * 8 + row] * b_tile[j][x * 8 + column];
    }
    __syncthreads();
  }
#pragma unroll
  for (int row = 0; row < 8; ++row)
#pragma unroll
    for (int column = 0; column < 8; ++column)
      c[(blockIdx.y * 128 + y * 8 + row) * n + blockIdx.x * 128 + x * 8 + column] = sums[row][column];
}

// Tensor cores, 16-bit: 64x64 outputs a block of 4 warps, 32x32 a warp; cp.async into two buffers, ldmatrix, mma.
// n and depth are multiples of 64 and 32.
constexpr int STEP = 32, A_STRIDE = STEP + 8, B_STRIDE = 64 + 8;  // + 8: ldmatrix without bank conflicts

template <typename T, void (*multiply)(float (&)[4], const unsigned (&)[4], const unsigned (&)[2])>
__device__ __forceinline__ void matrix_product_16bit(float* c, const T* a, const T* b, int n, int depth) {
  DYNAMIC_SHARED(T, tiles);
  const int t = threadIdx.x, lane = t % 32, warp_row = t / 64 * 32, warp_column = t / 32 % 2 * 32;
  auto a_tile = [&](int buffer) { return tiles + buffer * (64 * A_STRIDE + STEP * B_STRIDE); };
  auto b_tile = [&](int buffer) { return a_tile(buffer) + 64 * A_STRIDE; };
  auto load = [&](int buffer, int k) {
    for (int i = t; i < 64 * STEP / 8; i += 128) {
      int row = i / (STEP / 8), column = i % (STEP / 8) * 8;
      cp_async<16>(a_tile(buffer) + row * A_STRIDE + column, a + static_cast<size_t>(blockIdx.y * 64 + row) * depth + k + column);
    }
    for (int i = t; i < STEP * 64 / 8; i += 128) {
      int row = i / 8, column = i % 8 * 8;
      cp_async<16>(b_tile(buffer) + row * B_STRIDE + column, b + static_cast<size_t>(k + row) * n + blockIdx.x * 64 + column);
    }
    cp_async_commit();
  };
  float sums[2][4][4] = {};
  load(0, 0);
  for (int k = 0, buffer = 0; k < depth; k += STEP, buffer ^= 1) {
    if (k + STEP < depth) {
      load(buffer ^ 1, k + STEP);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
#pragma unroll
    for (int inner = 0; inner < STEP; inner += 16) {
      unsigned a_registers[2][4], b_registers[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ldmatrix_x4(a_registers[i], a_tile(buffer) + (warp_row + i * 16 + lane % 16) * A_STRIDE + inner + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        unsigned both[4];
        ldmatrix_x4_trans(both, b_tile(buffer) + (inner + lane % 16) * B_STRIDE + warp_column + j * 8 + lane / 16 * 8);
        b_registers[j][0] = both[0], b_registers[j][1] = both[1];
        b_registers[j + 1][0] = both[2], b_registers[j + 1][1] = both[3];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(sums[i][j], a_registers[i], b_registers[j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int row = blockIdx.y * 64 + warp_row + i * 16 + lane / 4, column = blockIdx.x * 64 + warp_column + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(c + static_cast<size_t>(row) * n + column) = make_float2(sums[i][j][0], sums[i][j][1]);
      *reinterpret_cast<float2*>(c + static_cast<size_t>(row + 8) * n + column) = make_float2(sums[i][j][2], sums[i][j][3]);
    }
}

KERNEL_WITH_THREADS(matrix_product_f16, 128)(
    float* c,                          // [m, n]
    const __half* a, const __half* b,  // [m, depth], [depth, n]
    int n, int depth) {
  matrix_product_16bit<__half, mma_m16n8k16_f16>(c, a, b, n, depth);
}

KERNEL_WITH_THREADS(matrix_product_bf16, 128)(
    float* c,                                        // [m, n]
    const __nv_bfloat16* a, const __nv_bfloat16* b,  // [m, depth], [depth, n]
    int n, int depth) {
  matrix_product_16bit<__nv_bfloat16, mma_m16n8k16_bf16>(c, a, b, n, depth);
}

// One warp, one tile each: registers are filled as the PTX manual's figures say.
KERNEL(one_tile_tf32)(
    float* c,                        // [16, 8]
    const float* a, const float* b,  // [16, 8], [8, 8]
    int rounded) {                   // 0: the tensor core cuts; 1: float_to_tf32 rounds
  const int group = threadIdx.x / 4, member = threadIdx.x % 4;
  auto convert = [&](float x) { return rounded ? float_to_tf32(x) : __float_as_uint(x); };
  unsigned a_registers[4], b_registers[2];
  for (int i = 0; i < 4; ++i) a_registers[i] = convert(a[(group + i % 2 * 8) * 8 + member + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) b_registers[i] = convert(b[(member + i * 4) * 8 + group]);
  float sums[4] = {};
  mma_m16n8k8_tf32(sums, a_registers, b_registers);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = sums[i];
}

KERNEL(one_tile_f16_k8)(
    float* c,                            // [16, 8]
    const __half* a, const __half* b) {  // [16, 8], [8, 8] transposed: b[column][row]
  const int group = threadIdx.x / 4, member = threadIdx.x % 4;
  unsigned a_registers[2], b_register;
  for (int i = 0; i < 2; ++i) a_registers[i] = *reinterpret_cast<const unsigned*>(a + (group + i * 8) * 8 + member * 2);
  b_register = *reinterpret_cast<const unsigned*>(b + group * 8 + member * 2);
  float sums[4] = {};
  mma_m16n8k8_f16(sums, a_registers, b_register);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = sums[i];
}

// ---- conversions ------------------------------------------------------------------------------------------------------

KERNEL(convert_16bit)(
    __half* halves, __nv_bfloat16* bfloats,  // [n]
    float* back,                             // [2, n]
    const float* x,                          // [n]
    int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  halves[i] = __float2half_rn(x[i]);
  bfloats[i] = __float2bfloat16_rn(x[i]);
  back[i] = __half2float(halves[i]);
  back[n + i] = __bfloat162float(bfloats[i]);
}

// cp.async of 4 bytes with a border of zeros: out[i] = x[i - 1] inside, 0 outside.
KERNEL(shift_with_zeros)(
    float* out,      // [n]
    const float* x,  // [n]
    int n) {
  __shared__ float tile[128];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  bool inside = i >= 1 && i < n;
  cp_async_or_zero<4>(&tile[threadIdx.x], x + (inside ? i - 1 : 0), inside);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (i < n) out[i] = tile[threadIdx.x];
}

// x *= factor: the arguments of a captured launch are those of the capture.
KERNEL(scale_in_place)(
    float* x,  // [n]
    float factor, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= factor;
}
