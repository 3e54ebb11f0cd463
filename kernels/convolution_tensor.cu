// Convolution on tensor cores by mma, forward and input gradient: kernels of 3x3 and 1x1 that keep the size, those whose
// stride is their size, and transposed convolution; of one group; and both convolutions of a residual block. Weight gradients
// are in convolution_tensor_weight.cu, the other convolutions in convolution.cu; convolution_tensor_hopper.cu has 3x3 kernels
// for warp groups.

#include "tensor_correlation.cuh"

static_assert(sizeof(Element) == 2, "tensor cores' products here are of 16 bits");

// A warp's products have 16 rows: pixels of a row of the patch.
template <int kernel_, int rows_per_warp_, int columns_, int depth_, int stages_, bool transposed_>
struct Tile
    : TileSizes<kernel_, WARPS * rows_per_warp_, PATCH_WIDTH, columns_, depth_, stages_, transposed_, false> {
  using T = Tile;
  using Sums = float[rows_per_warp_][columns_ / 8][4];
  template <bool transposed> using Beside = Tile<1, rows_per_warp_, columns_, columns_ / 2, 2, transposed>;

  static __device__ __forceinline__ void before_products() {}

  // Adds the products of a step. The taps of a column of the kernel read the same rows of pixels, which are loaded once.
  static __device__ __forceinline__ void add_products(Sums& sums, const Element* stage) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const Element* pixels = stage + (warp * T::rows_per_warp * T::source_width + lane % 16) * T::pixel_pitch +
                            lane / 16 * PIECE;
    const Element* weights = stage + T::source_elements +
                             (T::transposed ? (lane % 8 + lane / 16 * 8) * T::weight_pitch + lane / 8 % 2 * PIECE
                                            : lane % 16 * T::weight_pitch + lane / 16 * PIECE);
#pragma unroll
    for (int inner = 0; inner < T::depth; inner += MMA_DEPTH)
#pragma unroll
      for (int dx = 0; dx < T::kernel; ++dx) {
        unsigned a[T::rows_per_warp + T::kernel - 1][4];
#pragma unroll
        for (int row = 0; row < T::rows_per_warp + T::kernel - 1; ++row)
          ldmatrix_x4(a[row], pixels + (row * T::source_width + dx) * T::pixel_pitch + inner);
#pragma unroll
        for (int dy = 0; dy < T::kernel; ++dy) {
          const Element* tap = weights + (dy * T::kernel + dx) * T::tap_lines * T::weight_pitch;
#pragma unroll
          for (int column = 0; column < T::columns; column += 16) {
            unsigned pair[4];
            if constexpr (T::transposed) ldmatrix_x4(pair, tap + column * T::weight_pitch + inner);
            else ldmatrix_x4_trans(pair, tap + inner * T::weight_pitch + column);
            const unsigned b[2][2] = {{pair[0], pair[1]}, {pair[2], pair[3]}};
#pragma unroll
            for (int row = 0; row < T::rows_per_warp; ++row)
#pragma unroll
              for (int j = 0; j < 2; ++j) multiply(sums[row][column / 8 + j], a[row + dy], b[j]);
          }
        }
      }
  }

  // The first of a lane's two columns of eight.
  static __device__ __forceinline__ int column(int n) { return n * 8 + threadIdx.x % 4 * 2; }

  // sum = then(sum + bias(column))
  template <class Bias, class Then>
  static __device__ __forceinline__ void add(Sums& sums, Bias bias, Then then) {
#pragma unroll
    for (int n = 0; n < T::columns / 8; ++n) {
      const float added[2] = {bias(column(n)), bias(column(n) + 1)};
#pragma unroll
      for (int row = 0; row < T::rows_per_warp; ++row)
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[row][n][k] = then(sums[row][n][k] + added[k % 2]);
    }
  }

  // sum += row_of(row, column of the patch)[column], where there is such a row
  template <class RowOf> static __device__ __forceinline__ void add_rows(Sums& sums, int columns, RowOf row_of) {
    const int lane = threadIdx.x % WARP_SIZE, first_row = threadIdx.x / WARP_SIZE * T::rows_per_warp;
#pragma unroll
    for (int row = 0; row < T::rows_per_warp; ++row)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* added = row_of(first_row + row, half * 8 + lane / 4);
        if (!added) continue;
#pragma unroll
        for (int n = 0; n < T::columns / 8; ++n) {
          if (column(n) >= columns) continue;
          const auto two = *reinterpret_cast<const float2*>(added + column(n));
          sums[row][n][2 * half] += two.x;
          sums[row][n][2 * half + 1] += two.y;
        }
      }
  }

  // Stores a warp's pixels, which it reads again itself.
  static __device__ __forceinline__ void store(Element* shared, int pitch, const Sums& sums) {
    const int lane = threadIdx.x % WARP_SIZE;
    Element* own = shared + threadIdx.x / WARP_SIZE * T::rows_per_warp * T::width * pitch;
#pragma unroll
    for (int n = 0; n < T::columns / 8; ++n)
#pragma unroll
      for (int row = 0; row < T::rows_per_warp; ++row)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_pair(own + (row * T::width + half * 8 + lane / 4) * pitch + column(n), sums[row][n][2 * half],
                     sums[row][n][2 * half + 1]);
    __syncwarp();
  }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_forward_3x3_512x32, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 8, 32, 16, 2, false>, true>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_3x3_256x64, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 4, 64, 16, 2, false>, true>(FORWARD_ARGUMENTS);
}

// For small images, and for sm_75, whose blocks have 64 KB of shared memory.
KERNEL_WITH_THREADS(convolution_forward_3x3_256x32, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 4, 32, 16, 2, false>, true>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_1x1_256x32, TENSOR_THREADS)(PATCHES_FORWARD_PARAMETERS) {
  correlate<Tile<1, 4, 32, 32, 2, false>, true>(PATCHES_FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_1x1_128x64, TENSOR_THREADS)(PATCHES_FORWARD_PARAMETERS) {
  correlate<Tile<1, 2, 64, 32, 3, false>, true>(PATCHES_FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------

// Of a 3x3 kernel it is a forward convolution: its weights come transposed, by transpose_weight.cu.

KERNEL_WITH_THREADS(convolution_backward_input_3x3_512x32, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 8, 32, 16, 2, false>, false>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_3x3_256x64, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 64, 16, 2, false>, false>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_3x3_256x32, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 32, 16, 2, false>, false>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(residual_backward_input_3x3_512x32, TENSOR_THREADS)(RESIDUAL_BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 8, 32, 16, 2, false>, false>(RESIDUAL_BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(residual_backward_input_3x3_256x64, TENSOR_THREADS)(RESIDUAL_BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 64, 16, 2, false>, false>(RESIDUAL_BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(residual_backward_input_3x3_256x32, TENSOR_THREADS)(RESIDUAL_BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 32, 16, 2, false>, false>(RESIDUAL_BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_1x1_256x32, TENSOR_THREADS)(PATCHES_BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<1, 4, 32, 32, 2, true>, false>(PATCHES_BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_1x1_128x64, TENSOR_THREADS)(PATCHES_BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<1, 2, 64, 32, 3, true>, false>(PATCHES_BACKWARD_INPUT_ARGUMENTS);
}
