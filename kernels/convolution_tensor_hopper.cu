// 3x3 convolution on tensor cores by the warp groups of Hopper (sm_90a): what convolution_tensor.cu computes, for 64 target
// channels of a block. (1x1 convolutions wait for memory, and were no faster so.)

#include "tensor_correlation.cuh"

static_assert(sizeof(Element) == 2, "tensor cores' products here are of 16 bits");

#if HAVE_WARP_GROUPS

constexpr int GROUP_COLUMNS = 64;  // rows of a warp group's product
constexpr int GROUP_WIDTH = 8;     // pixels that lie side by side, as a product wants its columns

// A product's rows are target channels, 16 of each warp, and its columns target pixels: weights come from registers, and
// all pixels of the patch from shared memory at once, where each tap begins at another address.
template <int kernel_, int rows_, int depth_, int stages_, bool transposed_>
struct GroupTile : TileSizes<kernel_, rows_, GROUP_WIDTH, GROUP_COLUMNS, depth_, stages_, transposed_, true> {
  using T = GroupTile;
  using Sums = float[rows_][4];  // for each row of pixels: this lane's two pixels of a channel, and of the eighth after
  template <bool transposed> using Beside = GroupTile<1, rows_, 32, 2, transposed>;

  static __device__ __forceinline__ void before_products() { wgmma_see_shared(); }

  // The first of a lane's channels.
  static __device__ __forceinline__ int channel() {
    return threadIdx.x / WARP_SIZE * 16 + threadIdx.x % WARP_SIZE / 4;
  }

  // Loads a tap's weights for 16 target and as many source channels.
  static __device__ __forceinline__ void load(unsigned (&a)[4], const Element* tap, int inner) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    if constexpr (T::transposed)
      ldmatrix_x4(a, tap + T::weight_place(warp * 16 + lane % 16, inner / PIECE + lane / 16));
    else
      ldmatrix_x4_trans(a, tap + T::weight_place(inner + lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2));
  }

  // Adds the products of a step. While those of a row of taps run, the next row's weights are loaded.
  static __device__ __forceinline__ void add_products(Sums& sums, const Element* stage) {
    constexpr int bytes = sizeof(Element);
    unsigned a[2][T::kernel][4];
#pragma unroll
    for (int row = 0; row < T::depth / MMA_DEPTH * T::kernel; ++row) {
      const int inner = row / T::kernel * MMA_DEPTH, dy = row % T::kernel;
      wgmma_wait<1>();
#pragma unroll
      for (int dx = 0; dx < T::kernel; ++dx)
        load(a[row % 2][dx], stage + T::source_elements + (dy * T::kernel + dx) * T::tap_elements, inner);
      wgmma_begin();
#pragma unroll
      for (int dx = 0; dx < T::kernel; ++dx) {
        const Element* pixels = stage + inner / PIECE * T::piece_pitch + (dy * T::source_width + dx) * T::pixel_pitch;
        wgmma<Element>(sums, a[row % 2][dx],
                       shared_matrix(pixels, T::piece_pitch * bytes, T::source_width * T::pixel_pitch * bytes));
      }
      wgmma_end();
    }
    wgmma_wait<0>();
  }

  // sum = then(sum + bias(column))
  template <class Bias, class Then>
  static __device__ __forceinline__ void add(Sums& sums, Bias bias, Then then) {
    const float added[2] = {bias(channel()), bias(channel() + 8)};
#pragma unroll
    for (int row = 0; row < T::rows; ++row)
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[row][k] = then(sums[row][k] + added[k / 2]);
    wgmma_keep(sums);
  }

  // sum += row_of(row, column of the patch)[column], where there is such a row
  template <class RowOf> static __device__ __forceinline__ void add_rows(Sums& sums, int columns, RowOf row_of) {
#pragma unroll
    for (int row = 0; row < T::rows; ++row)
#pragma unroll
      for (int pixel = 0; pixel < 2; ++pixel) {
        const float* added = row_of(row, threadIdx.x % 4 * 2 + pixel);
        if (!added) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (channel() + 8 * half < columns) sums[row][pixel + 2 * half] += added[channel() + 8 * half];
      }
  }

  // Stores the block's pixels: of two rows at once, and of both groups of a warp's channels.
  static __device__ __forceinline__ void store(Element* shared, int pitch, const Sums& sums) {
    const int lane = threadIdx.x % WARP_SIZE;
    Element* own = shared + (lane / 16 * T::width + lane % 8) * pitch + threadIdx.x / WARP_SIZE * 16 + lane / 8 % 2 * PIECE;
#pragma unroll
    for (int row = 0; row < T::rows; row += 2) {
      const float(&a)[4] = sums[row], (&b)[4] = sums[row + 1];
      const unsigned pairs[4] = {pair_of(a[0], a[1]), pair_of(a[2], a[3]), pair_of(b[0], b[1]), pair_of(b[2], b[3])};
      stmatrix_x4_trans(own + row * T::width * pitch, pairs);
    }
    __syncthreads();
  }
};

#define CORRELATE(is_forward, ...) correlate<GroupTile<3, 16, 16, 2, false>, is_forward>(__VA_ARGS__)
#else
#define CORRELATE(is_forward, ...) __trap()
#endif

KERNEL_WITH_THREADS(convolution_forward_3x3_128x64_hopper, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  CORRELATE(true, FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_3x3_128x64_hopper, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  CORRELATE(false, BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(residual_backward_input_3x3_128x64_hopper, TENSOR_THREADS)(RESIDUAL_BACKWARD_INPUT_PARAMETERS) {
  CORRELATE(false, RESIDUAL_BACKWARD_INPUT_ARGUMENTS);
}
