// The weight gradients of the convolutions in convolution_tensor.cu, and of their biases.
//
// Rows are input channels, columns output channels, a product for each tap; the inner dimension is the pixels, of which
// an mma takes a row of 16. A block goes over the patches of its part, and each part's sums go to a matrix of their own,
// for convolution_sum_parts, or to the gradient itself if there is one part. A warp has 16 input channels, or 32 of a wide
// 1x1 kernel, and 32 output channels; where there are 32 output channels or fewer, two warps share the patch's pixels. The
// input's pixels are read from shared memory once for all taps of a column of the kernel, as its rows pass by.
// Grid: input channels in tiles, for the 1x1 kernels for each tap of the window whose large image x is; output channels in
// tiles; parts.

#include "patch.cuh"

static_assert(sizeof(Element) == 2, "tensor cores' products here are of 16 bits");

constexpr int WEIGHT_PATCH_ROWS = 8;

template <int kernel_, int inputs_, int columns_> struct WeightTile {
  static constexpr int kernel = kernel_, inputs = inputs_, columns = columns_, taps = kernel * kernel;
  static constexpr int border = kernel / 2, warp_inputs = inputs / 2, blocks = warp_inputs / 16;  // of 16 inputs each
  static constexpr int halves = 64 / columns;  // into which the patch's rows are divided among warps
  static constexpr int rows_per_warp = WEIGHT_PATCH_ROWS / halves;
  static constexpr int x_width = PATCH_WIDTH + kernel - 1, x_rows = WEIGHT_PATCH_ROWS + kernel - 1;
  static constexpr int x_pitch = inputs + PIECE, dout_pitch = columns + PIECE;
  static constexpr int x_elements = x_rows * x_width * x_pitch;
  static constexpr int stage_elements = x_elements + WEIGHT_PATCH_ROWS * PATCH_WIDTH * dout_pitch;
  static constexpr int dout_pieces = columns / PIECE;  // of a pixel

  // The last one is the bias's, whose input is 1 at every pixel.
  static constexpr int products = taps * blocks, bias = products;
  using Sums = float[products + 1][4][4];
};

// What a thread copies into shared memory, patch by patch: a column of pixels, or every second pixel of one.
template <class T> struct WeightCopies {
  static constexpr int x_threads = T::x_width * (T::inputs / PIECE);
  static constexpr int dout_rows = TENSOR_THREADS / (T::columns / PIECE) / PATCH_WIDTH;  // that all threads copy at once
  static_assert(x_threads <= TENSOR_THREADS, "all columns at once");
  const Element *dout, *x;
  const Image& size;
  const Window& window;
  int dout_stride, x_stride;
  bool has_input, has_output;
  Patch patch;

  __device__ __forceinline__ WeightCopies(const Element* dout, const Element* x, const Image& size, const Window& window,
                                          int first_patch, int tap, int first_input, int inputs, int outputs,
                                          int dout_stride, int x_stride)
      : size(size), window(window), dout_stride(dout_stride), x_stride(x_stride),
        patch(first_patch, WEIGHT_PATCH_ROWS, PATCH_WIDTH, size) {
    const int thread = threadIdx.x;
    const int input = first_input + thread % (T::inputs / PIECE) * PIECE;
    const int output = blockIdx.y * T::columns + thread % (T::columns / PIECE) * PIECE;
    has_input = input < inputs;
    has_output = output < outputs;
    this->x = x + window_offset(size, window, tap) * x_stride + input;
    this->dout = dout + output;
  }

  // Begins the copies of the next patch. Where there is nothing to copy, addresses mean nothing.
  __device__ __forceinline__ void operator()(Element* stage) {
    const int thread = threadIdx.x;
    if (thread < x_threads) {
      const int column = thread / (T::inputs / PIECE), at = patch.x + column - T::border;
      const int place = T::kernel == 1 ? large_pixel(size, window, patch.image, patch.y, at)
                                       : (patch.image * size.height + patch.y - T::border) * size.width + at;
      const int step = (T::kernel == 1 ? window.height * size.width * window.width : size.width) * x_stride;
      const bool valid = has_input && is_inside(at, size.width);
      Element* to = stage + column * T::x_pitch + thread % (T::inputs / PIECE) * PIECE;
      const Element* from = x + static_cast<ptrdiff_t>(place) * x_stride;
#pragma unroll
      for (int row = 0; row < T::x_rows; ++row) {
        cp_async_or_zero<16>(to + row * T::x_width * T::x_pitch, from,
                             valid && is_inside(patch.y - T::border + row, size.height));
        from += step;
      }
    }
    const int pixel = thread / (T::columns / PIECE), at = patch.x + pixel % PATCH_WIDTH, y = patch.y + pixel / PATCH_WIDTH;
    const bool valid = has_output && at < size.width;
    Element* to = stage + T::x_elements + pixel * T::dout_pitch + thread % (T::columns / PIECE) * PIECE;
    const Element* from =
        dout + static_cast<ptrdiff_t>((patch.image * size.height + y) * size.width + at) * dout_stride;
#pragma unroll
    for (int row = 0; row < WEIGHT_PATCH_ROWS; row += dout_rows) {
      cp_async_or_zero<16>(to + row * PATCH_WIDTH * T::dout_pitch, from, valid && y + row < size.height);
      from += dout_rows * size.width * dout_stride;
    }
    patch.advance(WEIGHT_PATCH_ROWS, size);
  }
};

// The places of a warp: its first input and output channel in the block's tile, and its part of the patch's rows; and
// whether the sums of the bias, of these output channels and rows, are its own.
template <class T> struct WeightWarp {
  int input, output, half;
  bool sums_bias;

  __device__ __forceinline__ explicit WeightWarp(bool block_sums_bias) {
    const int warp = threadIdx.x / WARP_SIZE;
    input = warp / 2 * T::warp_inputs;
    output = T::halves == 1 ? warp % 2 * 32 : 0;
    half = T::halves == 1 ? 0 : warp % 2;
    sums_bias = block_sums_bias && warp < 2;
  }
};

// Adds the products of a patch.
template <class T>
__device__ __forceinline__ void multiply_patch(typename T::Sums& sums, const Element* stage, const WeightWarp<T>& warp) {
  const int lane = threadIdx.x % WARP_SIZE, first_row = warp.half * T::rows_per_warp;
  const Element* x = stage + (first_row * T::x_width + lane % 8 + lane / 16 * 8) * T::x_pitch + warp.input +
                     lane / 8 % 2 * PIECE;
  const Element* dout = stage + T::x_elements + (first_row * PATCH_WIDTH + lane % 16) * T::dout_pitch + warp.output +
                        lane / 16 * PIECE;
  unsigned a[T::kernel][T::kernel][T::blocks][4];  // of the rows that the kernel covers now, for each of its columns
#pragma unroll
  for (int row = 0; row < T::rows_per_warp + T::kernel - 1; ++row) {
#pragma unroll
    for (int dx = 0; dx < T::kernel; ++dx)
#pragma unroll
      for (int block = 0; block < T::blocks; ++block)
        ldmatrix_x4_trans(a[row % T::kernel][dx][block], x + (row * T::x_width + dx) * T::x_pitch + block * 16);
    const int out_row = row - (T::kernel - 1);
    if (out_row < 0) continue;
    unsigned b[4][2];
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      unsigned pair[4];
      ldmatrix_x4_trans(pair, dout + out_row * PATCH_WIDTH * T::dout_pitch + n * 8);
      b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
    }
#pragma unroll
    for (int dy = 0; dy < T::kernel; ++dy)
#pragma unroll
      for (int dx = 0; dx < T::kernel; ++dx)
#pragma unroll
        for (int block = 0; block < T::blocks; ++block)
#pragma unroll
          for (int n = 0; n < 4; ++n)
            multiply(sums[(dy * T::kernel + dx) * T::blocks + block][n], a[(out_row + dy) % T::kernel][dx][block], b[n]);
    if (warp.sums_bias) {
      const unsigned ones[4] = {TWO_ONES, TWO_ONES, TWO_ONES, TWO_ONES};
#pragma unroll
      for (int n = 0; n < 4; ++n) multiply(sums[T::bias][n], ones, b[n]);
    }
  }
}

// Adds what the warps of the second half of the rows have to the first ones' sums.
template <class T>
__device__ __forceinline__ void add_halves(typename T::Sums& sums, Element* shared, const WeightWarp<T>& warp) {
  static_assert(TENSOR_THREADS / 2 * sizeof(typename T::Sums) <= 2 * T::stage_elements * sizeof(Element), "there is room");
  // One value after the other for all threads, so that neighbours are in other banks.
  float* own = reinterpret_cast<float*>(shared) + threadIdx.x / (2 * WARP_SIZE) * WARP_SIZE + threadIdx.x % WARP_SIZE;
  __syncthreads();  // the last patch was read
  for (int pass = 0; pass < 2; ++pass) {
    if (warp.half != pass) {
#pragma unroll
      for (int i = 0; i < (T::products + 1) * 16; ++i) {
        float& value = sums[i / 16][i / 4 % 4][i % 4];
        float* slot = own + i * (TENSOR_THREADS / 2);
        if (pass == 0) *slot = value;
        else value += *slot;
      }
    }
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ void correlate_weights(float* parts, float* bias_parts, const Element* dout, const Element* x,
                                                  const Image& size, const Window& window, int inputs, int outputs,
                                                  int dout_stride, int x_stride, int patches, int part_patches,
                                                  int has_bias) {
  DYNAMIC_SHARED(Element, shared);
  const int input_tiles = (inputs + T::inputs - 1) / T::inputs, first_tap = blockIdx.x / input_tiles;
  const int first_input = (blockIdx.x - first_tap * input_tiles) * T::inputs;
  const int begin = blockIdx.z * part_patches, end = min(begin + part_patches, patches);
  WeightCopies<T> copy(dout, x, size, window, begin, first_tap, first_input, inputs, outputs, dout_stride, x_stride);
  const WeightWarp<T> warp(has_bias && blockIdx.x == 0);  // one of the blocks that have these output channels
  typename T::Sums sums = {};
  copy(shared);
  cp_async_commit();
  for (int patch = begin; patch < end; ++patch) {
    cp_async_wait<0>();
    __syncthreads();  // the patch is there for all, and nobody reads the one before
    if (patch + 1 < end) copy(shared + (patch + 1 - begin) % 2 * T::stage_elements);
    cp_async_commit();
    multiply_patch<T>(sums, shared + (patch - begin) % 2 * T::stage_elements, warp);
  }
  const int first_output = blockIdx.y * T::columns;
  if constexpr (T::halves == 2) {
    add_halves<T>(sums, shared, warp);
    if (warp.half == 1) return;
  }
  const int lane = threadIdx.x % WARP_SIZE, output = first_output + warp.output + lane % 4 * 2;
  const int taps = T::kernel == 1 ? window.height * window.width : T::taps;
#pragma unroll
  for (int sum = 0; sum < T::products; ++sum)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tap = sum / T::blocks;
        const int input = first_input + warp.input + sum % T::blocks * 16 + half * 8 + lane / 4;
        if (input >= inputs || output + n * 8 >= outputs) continue;
        float* to = parts + ((blockIdx.z * taps + first_tap + tap) * inputs + input) * outputs + output + n * 8;
        *reinterpret_cast<float2*>(to) = make_float2(sums[sum][n][2 * half], sums[sum][n][2 * half + 1]);
      }
  if (!warp.sums_bias || lane >= 4) return;  // all rows are the same
#pragma unroll
  for (int n = 0; n < 4; ++n)
    if (output + n * 8 < outputs) {
      float* to = bias_parts + blockIdx.z * outputs + output + n * 8;
      *reinterpret_cast<float2*>(to) = make_float2(sums[T::bias][n][0], sums[T::bias][n][1]);
    }
}

#define BACKWARD_WEIGHT_PARAMETERS                                                                             \
  float* __restrict__ parts,            /* [parts, taps * inputs, outputs] */                                  \
      float* __restrict__ bias_parts,   /* [parts, outputs]; not written where has_bias is 0 */                \
      const Element* __restrict__ dout, /* [n * height * width, outputs], stride dout_stride */                \
      const Element* __restrict__ x,    /* [n * height * width, inputs], or of the large image; stride x_stride */ \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int dout_stride,    \
      int x_stride, int patches, int part_patches, int has_bias

#define BACKWARD_WEIGHT_ARGUMENTS                                                                                 \
  parts, bias_parts, dout, x, {height, width}, {window_height, window_width}, inputs, outputs, dout_stride,       \
      x_stride, patches, part_patches, has_bias

KERNEL_WITH_THREADS(convolution_backward_weight_3x3_32x64, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<3, 32, 64>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_3x3_32x32, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<3, 32, 32>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_1x1_64x64, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<1, 64, 64>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_1x1_32x32, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<1, 32, 32>>(BACKWARD_WEIGHT_ARGUMENTS);
}
