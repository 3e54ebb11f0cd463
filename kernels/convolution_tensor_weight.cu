// The weight gradients of the convolutions in convolution_tensor.cu, and of their biases.
//
// Rows are input channels, columns output channels, a product for each tap; the inner dimension is the pixels, of which
// an mma takes a row of 16. A group of four warps goes over the patches of its share, in its own shared memory. A block has
// one group, or two where there is shared memory for them, and adds what they have; its sums, those of a part, go to a
// matrix of their own, for convolution_sum_parts, or to the gradient itself if there is one part. A warp has 16 input
// channels, or 32 of a wide 1x1 kernel, and 32 output channels; where there are 32 output channels or fewer, two warps share
// the patch's pixels. The input's pixels are read from shared memory once for all taps of a column of the kernel, as its
// rows pass by.
//
// A residual block's two convolutions have their gradients from one pass: dout is the 1x1 kernel's, which is one more product
// with the input under the 3x3 kernel's center, and where it has no bit it is made zero for the 3x3 kernel.
// Grid: input channels in tiles, for the 1x1 kernels for each tap of the window whose large image x is; output channels in
// tiles; parts.

#include "patch.cuh"

static_assert(sizeof(Element) == 2, "tensor cores' products here are of 16 bits");

constexpr int WEIGHT_PATCH_ROWS = 8;
constexpr int MOST_GROUPS = 2;  // of a 3x3 kernel's blocks; those of 1x1 kernels have one

__device__ __forceinline__ int group_thread() { return threadIdx.x % TENSOR_THREADS; }

template <int kernel_, int inputs_, int columns_, bool residual_ = false> struct WeightTile {
  static constexpr int kernel = kernel_, inputs = inputs_, columns = columns_, taps = kernel * kernel;
  static constexpr bool residual = residual_;
  static constexpr int border = kernel / 2, warp_inputs = inputs / 2, blocks = warp_inputs / 16;  // of 16 inputs each
  static constexpr int halves = 64 / columns;  // into which the patch's rows are divided among warps
  static constexpr int rows_per_warp = WEIGHT_PATCH_ROWS / halves;
  static constexpr int x_width = PATCH_WIDTH + kernel - 1, x_rows = WEIGHT_PATCH_ROWS + kernel - 1;
  static constexpr int x_pitch = inputs + PIECE, dout_pitch = columns + PIECE;
  static constexpr int x_elements = x_rows * x_width * x_pitch;
  static constexpr int pixels = WEIGHT_PATCH_ROWS * PATCH_WIDTH, bits_at = x_elements + pixels * dout_pitch;
  static constexpr int bits_pitch = columns / CHANNELS_PER_BYTE;
  static constexpr int stage_elements = bits_at + (residual ? pixels * bits_pitch / static_cast<int>(sizeof(Element)) : 0);
  static_assert(!residual || taps > 1);
  static constexpr int most_groups = kernel > 1 ? MOST_GROUPS : 1;

  // Of four times 8 output channels each; those of a residual block's 1x1 kernel are behind the 3x3 kernel's. The last two are
  // the biases', see add_bias.
  static constexpr int products = taps * blocks, all_products = products + (residual ? blocks : 0);
  static constexpr int biases = all_products * 4, all_sums = biases + 2;
  using Sums = float[all_sums][4];
};

// The tensors that the gradients are computed from.
struct WeightFactors {
  const Element *dout, *x;
  const Bits* positive;
  int inputs, outputs, dout_stride, x_stride, groups;
};

// The bits of a stage's patch.
template <class T> __device__ __forceinline__ Bits* bits(Element* stage) {
  return reinterpret_cast<Bits*>(stage + T::bits_at);
}

template <class T> __device__ __forceinline__ const Bits* bits(const Element* stage) {
  return reinterpret_cast<const Bits*>(stage + T::bits_at);
}

// What a thread copies into shared memory, patch by patch: a column of pixels, or every second pixel of one.
template <class T> struct WeightCopies {
  static constexpr int x_threads = T::x_width * (T::inputs / PIECE);
  static constexpr int dout_rows = TENSOR_THREADS / (T::columns / PIECE) / PATCH_WIDTH;  // that all threads copy at once
  static_assert(x_threads <= TENSOR_THREADS, "all columns at once");
  static_assert(!T::residual || T::pixels == TENSOR_THREADS, "a pixel's bits for each thread");
  const WeightFactors& factors;
  const Image& size;
  const Window& window;
  const Element *dout, *x;
  const Bits* positive;
  bool has_input, has_output;
  Patch patch;

  __device__ __forceinline__ WeightCopies(const WeightFactors& factors, const Image& size, const Window& window,
                                          int first_patch, int tap, int first_input)
      : factors(factors), size(size), window(window), patch(first_patch, WEIGHT_PATCH_ROWS, PATCH_WIDTH, size) {
    const int thread = group_thread(), first_output = blockIdx.y * T::columns;
    const int input = first_input + thread % (T::inputs / PIECE) * PIECE;
    const int output = first_output + thread % (T::columns / PIECE) * PIECE;
    has_input = input < factors.inputs;
    has_output = output < factors.outputs;
    x = factors.x + window_offset(size, window, tap) * factors.x_stride + input;
    dout = factors.dout + output;
    if constexpr (T::residual) positive = factors.positive + first_output / CHANNELS_PER_BYTE;
  }

  // The place of a pixel of the patch, in a tensor whose pixels are `stride` apart.
  __device__ __forceinline__ ptrdiff_t place(int y, int x, int stride) const {
    return static_cast<ptrdiff_t>((patch.image * size.height + y) * size.width + x) * stride;
  }

  // Begins the copies of the next patch. Where there is nothing to copy, addresses mean nothing.
  __device__ __forceinline__ void operator()(Element* stage) {
    const int thread = group_thread();
    if (thread < x_threads) {
      const int column = thread / (T::inputs / PIECE), at = patch.x + column - T::border;
      const int place = T::kernel == 1 ? large_pixel(size, window, patch.image, patch.y, at)
                                       : (patch.image * size.height + patch.y - T::border) * size.width + at;
      const int step = (T::kernel == 1 ? window.height * size.width * window.width : size.width) * factors.x_stride;
      const bool valid = has_input && is_inside(at, size.width);
      Element* to = stage + column * T::x_pitch + thread % (T::inputs / PIECE) * PIECE;
      const Element* from = x + static_cast<ptrdiff_t>(place) * factors.x_stride;
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
    const Element* from = dout + place(y, at, factors.dout_stride);
#pragma unroll
    for (int row = 0; row < WEIGHT_PATCH_ROWS; row += dout_rows) {
      cp_async_or_zero<16>(to + row * PATCH_WIDTH * T::dout_pitch, from, valid && y + row < size.height);
      from += dout_rows * size.width * factors.dout_stride;
    }
    if constexpr (T::residual) {
      const int y = patch.y + thread / PATCH_WIDTH, at = patch.x + thread % PATCH_WIDTH;
      cp_async_or_zero<T::bits_pitch>(bits<T>(stage) + thread * T::bits_pitch, positive + place(y, at, factors.groups),
                                      y < size.height && at < size.width);
    }
    patch.advance(WEIGHT_PATCH_ROWS, size);
  }
};

// The bias whose gradient is computed beside the weights': none, a convolution's, which is the sum of dout, or a transposed
// convolution's of each tap of the window, which is the sum of x; that has 1x1 kernels alone.
enum BiasOf { NO_BIAS, BIAS_OF_OUT, BIAS_OF_TAPS };

// The places of a warp: its first input and output channel in the block's tile, and its part of the patch's rows; and
// whether the sums of the bias, of these channels and rows, are its own.
template <class T> struct WeightWarp {
  int input, output, half;
  bool sums_bias, sums_taps;

  __device__ __forceinline__ explicit WeightWarp(int bias) {
    const int warp = group_thread() / WARP_SIZE;
    input = warp / 2 * T::warp_inputs;
    output = T::halves == 1 ? warp % 2 * 32 : 0;
    half = T::halves == 1 ? 0 : warp % 2;
    // One of those that have these output channels, or input channels.
    sums_bias = bias == BIAS_OF_OUT && blockIdx.x == 0 && warp < 2;
    sums_taps = T::kernel == 1 && bias == BIAS_OF_TAPS && blockIdx.y == 0 && output == 0;
  }
};

// Makes those of a row's output gradients zero that have no bit. `row` are the bits of its pixels, of the warp's channels.
template <class T> __device__ __forceinline__ void keep_positive(unsigned (&b)[4][2], const Bits* row) {
  const int lane = threadIdx.x % WARP_SIZE;
  unsigned pixels[4];  // that the lane has elements of: their channel's bits are the highest of each byte
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int pixel = lane % 4 * 2 + i % 2 + i / 2 * 8;
    pixels[i] = *reinterpret_cast<const unsigned*>(row + pixel * T::bits_pitch) << (CHANNELS_PER_BYTE - 1 - lane / 4);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned low = pixels[2 * half], high = pixels[2 * half + 1];
    b[0][half] &= sign_masks<0>(low, high);
    b[1][half] &= sign_masks<1>(low, high);
    b[2][half] &= sign_masks<2>(low, high);
    b[3][half] &= sign_masks<3>(low, high);
  }
}

// Elements of 1 in two columns, one of them in each half of the rows.
__device__ __forceinline__ void two_columns(unsigned (&ones)[2], int first) {
  const int column = threadIdx.x % WARP_SIZE / 4;
  ones[0] = column == first ? TWO_ONES : 0;
  ones[1] = column == first + 1 ? TWO_ONES : 0;
}

// Adds up a row's output gradients, of two times 8 channels in columns `first` and `first` + 1 of a product: in row r those
// of channel r in one half of the pixels, in row 8 + r those in the other. (What is no number makes other biases' sums such,
// too.)
template <class T> __device__ __forceinline__ void add_bias(typename T::Sums& sums, const unsigned (&b)[4][2], int first) {
  unsigned ones[2];
  two_columns(ones, first);
#pragma unroll
  for (int n = 0; n < 4; n += 2) {
    const unsigned a[4] = {b[n][0], b[n][1], b[n + 1][0], b[n + 1][1]};
    multiply(sums[T::biases + n / 2], a, ones);
  }
}

// Adds up a row's inputs, of 16 channels in column 0 of a product.
template <class T> __device__ __forceinline__ void add_taps(typename T::Sums& sums, const unsigned (&a)[T::blocks][4]) {
  static_assert(T::blocks <= 2);
  const unsigned ones[2] = {TWO_ONES, TWO_ONES};
#pragma unroll
  for (int block = 0; block < T::blocks; ++block) multiply(sums[T::biases + block], a[block], ones);
}

// Adds the products of a patch.
template <class T>
__device__ __forceinline__ void multiply_patch(typename T::Sums& sums, const Element* stage, const WeightWarp<T>& warp) {
  const int lane = threadIdx.x % WARP_SIZE, first_row = warp.half * T::rows_per_warp;
  const Element* x = stage + (first_row * T::x_width + lane % 8 + lane / 16 * 8) * T::x_pitch + warp.input +
                     lane / 8 % 2 * PIECE;
  const Element* dout = stage + T::x_elements + (first_row * PATCH_WIDTH + lane % 16) * T::dout_pitch + warp.output +
                        lane / 16 * PIECE;
  unsigned a[T::kernel][T::kernel][T::blocks][4];  // of the rows that the kernel covers now, for each of its columns
  const auto load_row = [&](int row) {
#pragma unroll
    for (int dx = 0; dx < T::kernel; ++dx)
#pragma unroll
      for (int block = 0; block < T::blocks; ++block)
        ldmatrix_x4_trans(a[row % T::kernel][dx][block], x + (row * T::x_width + dx) * T::x_pitch + block * 16);
  };
#pragma unroll
  for (int row = 0; row < T::kernel - 1; ++row) load_row(row);
#pragma unroll
  for (int out_row = 0; out_row < T::rows_per_warp; ++out_row) {
    unsigned b[4][2];
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      unsigned pair[4];
      ldmatrix_x4_trans(pair, dout + out_row * PATCH_WIDTH * T::dout_pitch + n * 8);
      b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
    }
    const auto add = [&](int product, int dy, int dx) {
#pragma unroll
      for (int block = 0; block < T::blocks; ++block)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          multiply(sums[(product + block) * 4 + n], a[(out_row + dy) % T::kernel][dx][block], b[n]);
    };
    if constexpr (T::residual) {
      add(T::products, T::border, T::border);
      if (warp.sums_bias) add_bias<T>(sums, b, 2);
      keep_positive<T>(b, bits<T>(stage) + (first_row + out_row) * PATCH_WIDTH * T::bits_pitch +
                              warp.output / CHANNELS_PER_BYTE);
    }
#pragma unroll
    for (int dy = 0; dy < T::kernel; ++dy) {
      if (dy == T::border) load_row(out_row + T::kernel - 1);  // late, in the registers of a row that is done with
#pragma unroll
      for (int dx = 0; dx < T::kernel; ++dx) add((dy * T::kernel + dx) * T::blocks, dy, dx);
    }
    if (warp.sums_bias) add_bias<T>(sums, b, 0);
    if (warp.sums_taps) add_taps<T>(sums, a[out_row % T::kernel][0]);
  }
}

// Adds the sums of the threads that give to those of the threads that take. There are as many `slots` as threads that give in
// this shared memory; `slot` is the same for two that belong together.
template <class T, int slots>
__device__ __forceinline__ void add_sums(typename T::Sums& sums, Element* shared, int slot, bool gives, bool takes) {
  // One value after the other for all threads, so that neighbours are in other banks.
  float* own = reinterpret_cast<float*>(shared) + slot;
  __syncthreads();  // nobody reads what lies there any more
  if (gives) {
#pragma unroll
    for (int i = 0; i < T::all_sums * 4; ++i) own[i * slots] = sums[i / 4][i % 4];
  }
  __syncthreads();
  if (takes) {
#pragma unroll
    for (int i = 0; i < T::all_sums * 4; ++i) sums[i / 4][i % 4] += own[i * slots];
  }
}

// Adds what the warps of the second half of a group's rows have to the first ones' sums, and then what the second group has
// to the first one's. Returns whether this thread has sums of the block then.
template <class T>
__device__ __forceinline__ bool gather_sums(typename T::Sums& sums, Element* shared, int groups, int group, int half) {
  constexpr int slots = TENSOR_THREADS / T::halves;  // threads of a group whose sums are left
  constexpr int group_bytes = 2 * T::stage_elements * static_cast<int>(sizeof(Element));
  static_assert(slots * sizeof(typename T::Sums) <= (T::halves == 2 ? 1 : MOST_GROUPS) * group_bytes, "there is room");
  int slot = group_thread();
  if constexpr (T::halves == 2) {
    slot = slot / (2 * WARP_SIZE) * WARP_SIZE + slot % WARP_SIZE;
    add_sums<T, slots>(sums, shared + group * 2 * T::stage_elements, slot, half == 1, half == 0);
  }
  if (groups > 1) add_sums<T, slots>(sums, shared, slot, group == 1 && half == 0, group == 0 && half == 0);
  return group == 0 && half == 0;
}

// Where a block's sums go, of its part: those of a kernel [taps * inputs, outputs], of a bias [outputs].
struct WeightSums {
  float *weight, *bias, *shortcut, *shortcut_bias;
};

// Writes the products from `first` on, which are of the taps from `tap` on.
template <class T>
__device__ __forceinline__ void write_products(float* out, const typename T::Sums& sums, int first, int count, int tap,
                                               int input, int output, const WeightFactors& factors) {
  const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
  for (int i = 0; i < count; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = input + i % T::blocks * 16 + half * 8 + lane / 4, column = output + n * 8 + lane % 4 * 2;
        if (row >= factors.inputs || column >= factors.outputs) continue;
        const float(&sum)[4] = sums[(first + i) * 4 + n];
        *reinterpret_cast<float2*>(out + ((tap + i / T::blocks) * factors.inputs + row) * factors.outputs + column) =
            make_float2(sum[2 * half], sum[2 * half + 1]);
      }
}

template <class T>
__device__ __forceinline__ void correlate_weights(const WeightSums& parts, const WeightFactors& factors, const Image& size,
                                                  const Window& window, int patches, int share_patches, int bias_of) {
  DYNAMIC_SHARED(Element, shared);
  const int input_tiles = (factors.inputs + T::inputs - 1) / T::inputs, first_tap = blockIdx.x / input_tiles;
  const int first_input = (blockIdx.x - first_tap * input_tiles) * T::inputs;
  const int groups = T::most_groups > 1 ? blockDim.x / TENSOR_THREADS : 1;
  const int group = groups > 1 ? threadIdx.x / TENSOR_THREADS : 0;
  const int begin = (blockIdx.z * groups + group) * share_patches, end = min(begin + share_patches, patches);
  Element* own = shared + group * 2 * T::stage_elements;
  WeightCopies<T> copy(factors, size, window, begin, first_tap, first_input);
  const WeightWarp<T> warp(bias_of);
  typename T::Sums sums = {};
  if (begin < end) copy(own);
  cp_async_commit();
  for (int patch = begin; patch < end; ++patch) {
    cp_async_wait<0>();
    group_barrier<TENSOR_THREADS>(group);  // the patch is there for all, and nobody reads the one before
    if (patch + 1 < end) copy(own + (patch + 1 - begin) % 2 * T::stage_elements);
    cp_async_commit();
    multiply_patch<T>(sums, own + (patch - begin) % 2 * T::stage_elements, warp);
  }
  if (!gather_sums<T>(sums, shared, groups, group, warp.half)) return;
  const int input = first_input + warp.input, output = blockIdx.y * T::columns + warp.output, part = blockIdx.z;
  const int matrix = factors.inputs * factors.outputs, taps = T::kernel == 1 ? window.height * window.width : T::taps;
  write_products<T>(parts.weight + part * taps * matrix, sums, 0, T::products, first_tap, input, output, factors);
  if constexpr (T::residual)
    write_products<T>(parts.shortcut + part * matrix, sums, T::products, T::blocks, 0, input, output, factors);
  const int lane = threadIdx.x % WARP_SIZE;
  if (warp.sums_taps && lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 2 * T::blocks; ++i) {
      const int row = input + i * 8 + lane / 4;
      if (row < factors.inputs)
        parts.bias[(part * taps + first_tap) * factors.inputs + row] = sums[T::biases + i / 2][i % 2 * 2];
    }
  }
  if (!warp.sums_bias || lane % 4 > T::residual) return;
  float* bias = lane % 4 ? parts.shortcut_bias : parts.bias;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int column = output + n * 8 + lane / 4;
    const float(&halves)[4] = sums[T::biases + n / 2];
    if (column < factors.outputs) bias[part * factors.outputs + column] = halves[n % 2] + halves[2 + n % 2];
  }
}

#define BACKWARD_WEIGHT_PARAMETERS                                                                             \
  float* __restrict__ parts,            /* [parts, taps * inputs, outputs] */                                  \
      float* __restrict__ bias_parts,   /* [parts, outputs], or [parts, taps * inputs]; bias_of is a BiasOf */ \
      const Element* __restrict__ dout, /* [n * height * width, outputs], stride dout_stride */                \
      const Element* __restrict__ x,    /* [n * height * width, inputs], or of the large image; stride x_stride */ \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int dout_stride,    \
      int x_stride, int patches, int share_patches, int bias_of

#define BACKWARD_WEIGHT_ARGUMENTS                                                                                 \
  {parts, bias_parts}, {dout, x, nullptr, inputs, outputs, dout_stride, x_stride, 0}, {height, width},              \
      {window_height, window_width}, patches, share_patches, bias_of

KERNEL_WITH_THREADS(convolution_backward_weight_3x3_32x64, MOST_GROUPS * TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<3, 32, 64>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_3x3_32x32, MOST_GROUPS * TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<3, 32, 32>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_1x1_64x64, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<1, 64, 64>>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_1x1_32x32, TENSOR_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<WeightTile<1, 32, 32>>(BACKWARD_WEIGHT_ARGUMENTS);
}

// On sm_75, whose products take more registers, there are none left for the second kernel's sums: the host does without.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CORRELATE_RESIDUAL_WEIGHTS(columns, ...) __trap()
#else
#define CORRELATE_RESIDUAL_WEIGHTS(columns, ...) correlate_weights<WeightTile<3, 32, columns, true>>(__VA_ARGS__)
#endif

// Output channels come in 32s.
#define RESIDUAL_BACKWARD_WEIGHT_PARAMETERS                                                                    \
  float* __restrict__ parts,                   /* [parts, 9 * inputs, outputs] */                              \
      float* __restrict__ bias_parts,          /* [parts, outputs] */                                          \
      float* __restrict__ shortcut_parts,      /* [parts, inputs, outputs] */                                  \
      float* __restrict__ shortcut_bias_parts, /* [parts, outputs] */                                          \
      const Element* __restrict__ dout,        /* [n * height * width, outputs], stride dout_stride */         \
      const Element* __restrict__ x,           /* [n * height * width, inputs], stride x_stride */             \
      const Bits* __restrict__ positive,       /* [n * height * width, groups] */                              \
      int height, int width, int inputs, int outputs, int dout_stride, int x_stride, int groups, int patches,  \
      int share_patches

#define RESIDUAL_BACKWARD_WEIGHT_ARGUMENTS                                                                     \
  {parts, bias_parts, shortcut_parts, shortcut_bias_parts},                                                     \
      {dout, x, positive, inputs, outputs, dout_stride, x_stride, groups}, {height, width}, {1, 1}, patches,      \
      share_patches, BIAS_OF_OUT

KERNEL_WITH_THREADS(residual_backward_weight_3x3_32x64, MOST_GROUPS * TENSOR_THREADS)(RESIDUAL_BACKWARD_WEIGHT_PARAMETERS) {
  CORRELATE_RESIDUAL_WEIGHTS(64, RESIDUAL_BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(residual_backward_weight_3x3_32x32, MOST_GROUPS * TENSOR_THREADS)(RESIDUAL_BACKWARD_WEIGHT_PARAMETERS) {
  CORRELATE_RESIDUAL_WEIGHTS(32, RESIDUAL_BACKWARD_WEIGHT_ARGUMENTS);
}
