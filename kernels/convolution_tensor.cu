// Convolution on tensor cores: kernels of 3x3 and 1x1 that keep the size, those whose stride is their size, transposed
// convolution, and their gradients; of one group, of 16-bit elements with sums in fp32. The other convolutions are in
// convolution.cu.
//
// The implicit matrix product moves no pixel twice for its taps: a block loads a patch of pixels with its border once, by
// asynchronous copies, and each of the kernel's taps reads it at another offset. A warp's products have 16 rows: a row of
// 16 pixels of the patch. Pixels in shared memory lie an odd number of 16 bytes apart, so that ldmatrix meets each bank
// once at any offset, as a swizzle would have it, and all addresses in the inner loop are constants.

#include "common.cuh"
#include "tensor_core.cuh"

static_assert(sizeof(Element) == 2, "tensor cores' products here are of 16 bits");

// ---- sizes ------------------------------------------------------------------------------------------------------------

constexpr int TENSOR_THREADS = 128;
constexpr int WARPS = TENSOR_THREADS / WARP_SIZE;
constexpr int PATCH_WIDTH = 16;  // an mma's rows
constexpr int PIECE = 8;         // elements of 16 bytes
constexpr int MMA_DEPTH = 16;    // an mma's inner dimension
constexpr int LINE_BYTES = 128;  // that caches hold together

__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef ELEMENT_bf16
  mma_m16n8k16_bf16(sums, a, b);
#else
  mma_m16n8k16_f16(sums, a, b);
#endif
}

// Two neighbours, rounded; `to` is a multiple of 4 bytes.
__device__ __forceinline__ void store_pair(Element* to, float first, float second) {
#ifdef ELEMENT_bf16
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(first, second);
#else
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(first, second);
#endif
}

// Images are [n, height, width]; planes of a volume count as images.
struct Image {
  int height, width;
};

// A kernel whose stride is its size: each pixel of the small image is as many as this of the large one.
struct Window {
  int height, width;
};

// The first pixel of the large image that a pixel of the small one is.
__device__ __forceinline__ int large_pixel(const Image& small, const Window& window, int image, int y, int x) {
  return ((image * small.height + y) * window.height * small.width + x) * window.width;
}

// How many pixels further on a tap of the window is.
__device__ __forceinline__ int window_offset(const Image& small, const Window& window, int tap) {
  return tap / window.width * small.width * window.width + tap % window.width;
}

// Where a patch begins.
struct Patch {
  int image, y, x;

  __device__ __forceinline__ Patch(int index, int rows, const Image& size) {
    const int across = (size.width + PATCH_WIDTH - 1) / PATCH_WIDTH, down = (size.height + rows - 1) / rows;
    const int row = index / across;
    x = (index - row * across) * PATCH_WIDTH;
    image = row / down;
    y = (row - image * down) * rows;
  }

  // The next one.
  __device__ __forceinline__ void advance(int rows, const Image& size) {
    x += PATCH_WIDTH;
    if (x < size.width) return;
    x = 0;
    y += rows;
    if (y < size.height) return;
    y = 0;
    ++image;
  }
};

__device__ __forceinline__ bool is_inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

// ---- the matrix product of forward and input gradient -----------------------------------------------------------------
// Rows are target pixels, columns target channels, and the inner dimension is (source channels by 16, tap, 16 channels).
// The weights, as convolution.cu has them: forward [tap][source][target]; transposed, for the input gradient,
// [tap, counted from the last][target][source].
//
// For the 1x1 kernels, source or target may be the large image of a window. If the source is, its taps are more of the
// inner dimension, before the channels; if the target is, (tap, channel) are the columns, of which `outputs` are all.

template <int kernel_, int rows_per_warp_, int columns_, int depth_, int stages_, bool transposed_> struct Tile {
  static constexpr int kernel = kernel_, rows_per_warp = rows_per_warp_, columns = columns_;
  static constexpr int depth = depth_, stages = stages_;  // source channels of a step, and steps in shared memory
  static constexpr bool transposed = transposed_;
  static constexpr int taps = kernel * kernel, border = kernel / 2;
  static constexpr int rows = WARPS * rows_per_warp;
  static constexpr int source_width = PATCH_WIDTH + kernel - 1, source_rows = rows + kernel - 1;
  // Elements from one line to the next: an odd number of pieces.
  static constexpr int pixel_pitch = depth + PIECE;
  static constexpr int weight_pitch = (transposed ? depth : columns) + PIECE;
  static constexpr int tap_lines = transposed ? columns : depth;  // lines of `depth` or `columns` elements
  static constexpr int source_elements = source_rows * source_width * pixel_pitch;
  static constexpr int stage_elements = source_elements + taps * tap_lines * weight_pitch;
  // Pieces that a thread copies in a step. All threads copy the pieces of some taps at once, or a part of a tap's.
  static constexpr int source_pieces = source_rows * source_width * (depth / PIECE);
  static constexpr int pieces_per_line = (transposed ? depth : columns) / PIECE;
  static constexpr int tap_pieces = tap_lines * pieces_per_line, weight_pieces = taps * tap_pieces;
  static constexpr int taps_at_once = tap_pieces < TENSOR_THREADS ? TENSOR_THREADS / tap_pieces : 1;
  static constexpr int tap_parts = tap_pieces > TENSOR_THREADS ? tap_pieces / TENSOR_THREADS : 1;
  static constexpr int source_copies = (source_pieces + TENSOR_THREADS - 1) / TENSOR_THREADS;
  static constexpr int weight_copies = (weight_pieces + TENSOR_THREADS - 1) / TENSOR_THREADS;
  static_assert(tap_parts * TENSOR_THREADS == taps_at_once * tap_pieces, "whole taps");

  using Sums = float[rows_per_warp][columns / 8][4];
};

// What a thread copies into shared memory, step by step.
template <class T> struct Copies {
  const Element *source, *weight;
  const Element *first_source, *first_weight;  // of the first tap
  const Image& size;
  const Window& window;
  int inputs, outputs, source_stride, tap = 0;
  int source_offsets[T::source_copies];
  unsigned source_valid = 0;  // a bit for each copy
  int source_channel, weight_channel, weight_step, columns_left, channel = 0;

  __device__ __forceinline__ Copies(const Element* source, const Element* weight, const Image& size,
                                    const Window& window, const Patch& patch, int first_column, int inputs, int outputs,
                                    int source_stride)
      : source(source), first_source(source), size(size), window(window), inputs(inputs), outputs(outputs),
        source_stride(source_stride) {
    const int thread = threadIdx.x;
    source_channel = thread % (T::depth / PIECE) * PIECE;
#pragma unroll
    for (int i = 0; i < T::source_copies; ++i) {
      const int pixel = (thread + i * TENSOR_THREADS) / (T::depth / PIECE);
      const int y = patch.y - T::border + pixel / T::source_width, x = patch.x - T::border + pixel % T::source_width;
      const bool valid =
          pixel < T::source_rows * T::source_width && is_inside(y, size.height) && is_inside(x, size.width);
      const int place = T::kernel == 1 ? large_pixel(size, window, patch.image, y, x)
                                       : (patch.image * size.height + y) * size.width + x;
      source_offsets[i] = valid ? place * source_stride + source_channel : 0;
      source_valid |= static_cast<unsigned>(valid) << i;
    }
    // A thread's copies of weights are of one line of each tap, or of every second one, or of every line that is a part
    // of a tap further on.
    const int line = thread / T::pieces_per_line % T::tap_lines, piece = thread % T::pieces_per_line * PIECE;
    const int first_tap = thread / T::tap_pieces, tap = T::transposed ? T::taps - 1 - first_tap : first_tap;
    weight_channel = T::transposed ? piece : line;
    const int column = first_column + (T::transposed ? line : piece);
    this->weight = weight + (T::transposed ? (tap * outputs + column) * inputs + weight_channel
                                           : (tap * inputs + weight_channel) * outputs + column);
    first_weight = this->weight;
    weight_step = T::taps_at_once * inputs * outputs;
    if (T::transposed) weight_step = -weight_step;
    columns_left = outputs - column;
  }

  // Begins the copies of the next step's channels.
  __device__ __forceinline__ void operator()(Element* stage) {
    const int thread = threadIdx.x;
    const bool has_channel = channel + source_channel < inputs;
    Element* to = stage + thread / (T::depth / PIECE) * T::pixel_pitch + source_channel;
#pragma unroll
    for (int i = 0; i < T::source_copies; ++i) {
      const int pixels = TENSOR_THREADS / (T::depth / PIECE);
      if ((i + 1) * TENSOR_THREADS <= T::source_pieces || thread + i * TENSOR_THREADS < T::source_pieces)
        cp_async_or_zero<16>(to + i * pixels * T::pixel_pitch, source + source_offsets[i],
                             has_channel && source_valid >> i & 1);
    }
    source += T::depth;
    copy_weights(stage + T::source_elements + thread / T::pieces_per_line * T::weight_pitch +
                 thread % T::pieces_per_line * PIECE);
    channel += T::depth;
    if (T::kernel > 1 || channel < inputs) return;
    channel = 0;
    ++tap;
    source = first_source + window_offset(size, window, tap) * source_stride;
    weight = first_weight + tap * inputs * outputs;
  }

  __device__ __forceinline__ void copy_weights(Element* to) {
    const Element* from = weight;
    constexpr int lines = TENSOR_THREADS / T::pieces_per_line;  // that all threads copy at once
#pragma unroll
    for (int i = 0; i < T::weight_copies; ++i) {
      const int line = i % T::tap_parts * lines;  // further on in the tap
      const bool valid = T::transposed ? line < columns_left && channel + weight_channel < inputs
                                       : columns_left > 0 && channel + weight_channel + line < inputs;
      if ((i + 1) * TENSOR_THREADS <= T::weight_pieces ||
          static_cast<int>(threadIdx.x) + i * TENSOR_THREADS < T::weight_pieces)
        cp_async_or_zero<16>(to + i * lines * T::weight_pitch, from + line * (T::transposed ? inputs : outputs), valid);
      if (i % T::tap_parts == T::tap_parts - 1) from += weight_step;
    }
    weight += T::transposed ? T::depth : T::depth * outputs;
  }
};

// Adds the products of a step. The taps of a column of the kernel read the same rows of pixels, which are loaded once.
template <class T> __device__ __forceinline__ void multiply_step(typename T::Sums& sums, const Element* stage) {
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

// What becomes of the target before it is stored: what stands in another tensor of its shape is added, negative values
// become zero, and so do those where a mask is not above zero. A stride of 0 says that there is no such tensor. Each step
// rounds as if it were a pass over the tensor of its own.
struct Epilogue {
  const Element *added, *mask;
  int added_stride, mask_stride, relu;

  __device__ __forceinline__ void apply(Vector16<Element>& values, const Vector16<Element>& added,
                                        const Vector16<Element>& mask) const {
    const Element zero = from_float<Element>(0.0f);
    if (added_stride) {
#pragma unroll
      for (int k = 0; k < PIECE; ++k) values[k] = from_float<Element>(to_float(values[k]) + to_float(added[k]));
    }
    if (relu) {
#pragma unroll
      for (int k = 0; k < PIECE; ++k) values[k] = to_float(values[k]) < 0.0f ? zero : values[k];
    }
    if (mask_stride) {
#pragma unroll
      for (int k = 0; k < PIECE; ++k) values[k] = to_float(mask[k]) > 0.0f ? values[k] : zero;
    }
  }
};

// Where a thread writes the target: pieces of one channel group, of pixels some way apart. Pixels are counted over the rows
// of a warp.
template <class T> struct Pieces {
  static constexpr int per_pixel = T::columns / PIECE, pixels = WARP_SIZE / per_pixel;  // that a warp writes at once
  static constexpr int count = T::rows_per_warp * PATCH_WIDTH / pixels;
  const Image& size;
  const Window& window;
  const Patch& patch;
  int channel, offset = 0;
  bool has_channel;

  __device__ __forceinline__ Pieces(const Image& size, const Window& window, const Patch& patch, int first_column,
                                    int outputs)
      : size(size), window(window), patch(patch) {
    channel = first_column + first_channel();
    has_channel = channel < outputs;
    if (T::kernel > 1) return;
    const int channels = outputs / (window.height * window.width), tap = channel / channels;
    offset = window_offset(size, window, tap);
    channel -= tap * channels;
  }

  static __device__ __forceinline__ int first_channel() { return threadIdx.x % per_pixel * PIECE; }
  static __device__ __forceinline__ int pixel(int index) { return index * pixels + threadIdx.x % WARP_SIZE / per_pixel; }

  // The pixel of the target; none below 0.
  __device__ __forceinline__ int place(int index) const {
    const int row = pixel(index) / PATCH_WIDTH;
    const int y = patch.y + threadIdx.x / WARP_SIZE * T::rows_per_warp + row, x = patch.x + pixel(index) % PATCH_WIDTH;
    if (!has_channel || y >= size.height || x >= size.width) return -1;
    return T::kernel == 1 ? large_pixel(size, window, patch.image, y, x) + offset
                          : (patch.image * size.height + y) * size.width + x;
  }
};

// Brings what the epilogue will read closer, while the sums are computed.
template <class T>
__device__ __forceinline__ void prefetch_epilogue(const Epilogue& epilogue, const Pieces<T>& pieces) {
  if (!epilogue.added_stride && !epilogue.mask_stride) return;
  if (pieces.first_channel() % (LINE_BYTES / sizeof(Element))) return;
#pragma unroll
  for (int i = 0; i < Pieces<T>::count; ++i) {
    const int place = pieces.place(i);
    if (place < 0) continue;
    if (epilogue.added_stride) prefetch(epilogue.added + place * epilogue.added_stride + pieces.channel);
    if (epilogue.mask_stride) prefetch(epilogue.mask + place * epilogue.mask_stride + pieces.channel);
  }
}

// Adds the bias, and writes the warp's pixels, by 16 bytes, by way of shared memory. What the epilogue reads is under way
// for several pieces at once.
template <class T>
__device__ __forceinline__ void write_sums(Element* target, const typename T::Sums& sums, Element* shared,
                                           const float* bias, const Epilogue& epilogue, const Pieces<T>& pieces,
                                           int first_column, int outputs, int channels, int target_stride) {
  constexpr int pitch = T::columns + PIECE, pixels = T::rows_per_warp * PATCH_WIDTH;
  constexpr int at_once = Pieces<T>::count < 8 ? Pieces<T>::count : 8;
  static_assert(WARPS * pixels * pitch <= T::stages * T::stage_elements, "the sums have room where the operands were");
  const int lane = threadIdx.x % WARP_SIZE;
  Element* own = shared + threadIdx.x / WARP_SIZE * pixels * pitch;
#pragma unroll
  for (int n = 0; n < T::columns / 8; ++n) {
    const int column = n * 8 + lane % 4 * 2;
    float added[2] = {0.0f, 0.0f};
    if (channels && first_column + column < outputs) {
      const int channel = T::kernel == 1 ? (first_column + column) % channels : first_column + column;
      added[0] = bias[channel];
      added[1] = bias[channel + 1];
    }
#pragma unroll
    for (int row = 0; row < T::rows_per_warp; ++row)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_pair(own + (row * PATCH_WIDTH + half * 8 + lane / 4) * pitch + column, sums[row][n][2 * half] + added[0],
                   sums[row][n][2 * half + 1] + added[1]);
  }
  __syncwarp();
#pragma unroll
  for (int first = 0; first < Pieces<T>::count; first += at_once) {
    int places[at_once];
    Vector16<Element> added[at_once], mask[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      places[i] = pieces.place(first + i);
      if (places[i] < 0) continue;
      if (epilogue.added_stride) added[i] = load16(epilogue.added + places[i] * epilogue.added_stride + pieces.channel);
      if (epilogue.mask_stride) mask[i] = load16(epilogue.mask + places[i] * epilogue.mask_stride + pieces.channel);
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (places[i] < 0) continue;
      Vector16<Element> values = load16(own + pieces.pixel(first + i) * pitch + pieces.first_channel());
      epilogue.apply(values, added[i], mask[i]);
      store16(target + places[i] * target_stride + pieces.channel, values);
    }
  }
}

// Grid: patches; target channels in tiles.
template <class T>
__device__ __forceinline__ void correlate(Element* target, const Element* source, const Element* weight,
                                          const float* bias, const Epilogue& epilogue, const Image& size,
                                          const Window& source_window, const Window& target_window, int inputs,
                                          int outputs, int target_stride, int source_stride, int has_bias) {
  DYNAMIC_SHARED(Element, shared);
  const Patch patch(blockIdx.x, T::rows, size);
  const int first_column = blockIdx.y * T::columns;
  Copies<T> copy(source, weight, size, source_window, patch, first_column, inputs, outputs, source_stride);
  int steps = (inputs + T::depth - 1) / T::depth;
  if (T::kernel == 1) steps *= source_window.height * source_window.width;
  typename T::Sums sums = {};
#pragma unroll
  for (int step = 0; step < T::stages - 1; ++step) {
    if (step < steps) copy(shared + step * T::stage_elements);
    cp_async_commit();
  }
  const Pieces<T> pieces(size, target_window, patch, first_column, outputs);
  prefetch_epilogue(epilogue, pieces);
  Element *stage = shared, *free_stage = shared + (T::stages - 1) * T::stage_elements;
  Element* const end = shared + T::stages * T::stage_elements;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<T::stages - 2>();
    __syncthreads();  // the step's operands are there for all, and nobody reads the stage that is filled next
    if (step + T::stages - 1 < steps) copy(free_stage);
    cp_async_commit();
    multiply_step<T>(sums, stage);
    stage = stage + T::stage_elements == end ? shared : stage + T::stage_elements;
    free_stage = free_stage + T::stage_elements == end ? shared : free_stage + T::stage_elements;
  }
  __syncthreads();
  const int channels = has_bias ? outputs / (target_window.height * target_window.width) : 0;
  write_sums<T>(target, sums, shared, bias, epilogue, pieces, first_column, outputs, channels, target_stride);
}

// ---- forward ----------------------------------------------------------------------------------------------------------
// Kernels are named by their window, and by the pixels and channels of a block.

// Of the wide 1x1 kernels; a third would not fit into a block's shared memory on sm_75.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define WIDE_STAGES 2
#else
#define WIDE_STAGES 3
#endif

#define FORWARD_PARAMETERS                                                                                     \
  Element* __restrict__ out,              /* [n * height * width, outputs], stride out_stride */               \
      const Element* __restrict__ x,      /* [n * height * width, inputs], or of the large image; stride x_stride */ \
      const Element* __restrict__ weight, /* [taps * inputs, outputs] */                                       \
      const float* __restrict__ bias,     /* [outputs]; not read where has_bias is 0 */                        \
      const Element* __restrict__ added,  /* as out, stride added_stride; not read where that is 0 */          \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int out_stride,     \
      int x_stride, int added_stride, int has_bias, int relu

#define FORWARD_ARGUMENTS                                                                                          \
  out, x, weight, bias, {added, added, added_stride, 0, relu}, {height, width}, {window_height, window_width},     \
      {1, 1}, inputs, outputs, out_stride, x_stride, has_bias

KERNEL_WITH_THREADS(convolution_forward_3x3_512x32, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 8, 32, 16, 2, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_3x3_256x64, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 4, 64, 16, 2, false>>(FORWARD_ARGUMENTS);
}

// For small images, and for sm_75, whose blocks have 64 KB of shared memory.
KERNEL_WITH_THREADS(convolution_forward_3x3_256x32, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<3, 4, 32, 16, 2, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_1x1_256x32, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<1, 4, 32, 32, 2, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_1x1_128x64, TENSOR_THREADS)(FORWARD_PARAMETERS) {
  correlate<Tile<1, 2, 64, 64, WIDE_STAGES, false>>(FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------

// Transposed convolution is the 1x1 kernels', whose target is the large image of its window.

#define BACKWARD_INPUT_PARAMETERS                                                                              \
  Element* __restrict__ dx,               /* [n * height * width, outputs], or of the large image; stride dx_stride */ \
      const Element* __restrict__ dout,   /* [n * height * width, inputs], stride dout_stride */               \
      const Element* __restrict__ weight, /* [taps * outputs, inputs] */                                       \
      const float* __restrict__ bias,     /* [outputs of a tap]; not read where has_bias is 0 */               \
      const Element* __restrict__ added,  /* as dx, stride added_stride; not read where that is 0 */           \
      const Element* __restrict__ mask,   /* as dx, stride mask_stride; not read where that is 0 */            \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int dx_stride,      \
      int dout_stride, int added_stride, int mask_stride, int has_bias

#define BACKWARD_INPUT_ARGUMENTS                                                                                  \
  dx, dout, weight, bias, {added, mask, added_stride, mask_stride, 0}, {height, width}, {1, 1},                   \
      {window_height, window_width}, inputs, outputs, dx_stride, dout_stride, has_bias

KERNEL_WITH_THREADS(convolution_backward_input_3x3_512x32, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 8, 32, 16, 2, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_3x3_256x64, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 64, 16, 2, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_3x3_256x32, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<3, 4, 32, 16, 2, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_1x1_256x32, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<1, 4, 32, 32, 2, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_1x1_128x64, TENSOR_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<Tile<1, 2, 64, 64, WIDE_STAGES, true>>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- weight gradient --------------------------------------------------------------------------------------------------
// Rows are input channels, columns output channels, a product for each tap; the inner dimension is the pixels, of which
// an mma takes a row of 16. A block goes over the patches of its part, and each part's sums go to a matrix of their own,
// for convolution_sum_parts, or to the gradient itself if there is one part. A warp has 16 input channels, or 32 of a wide
// 1x1 kernel, and 32 output channels; where there are 32 output channels or fewer, two warps share the patch's pixels. The input's pixels are read
// from shared memory once for all taps of a column of the kernel, as its rows pass by.
// Grid: input channels in tiles, for the 1x1 kernels for each tap of the window whose large image x is; output channels in
// tiles; parts.

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

  using Sums = float[taps * blocks][4][4];
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
        patch(first_patch, WEIGHT_PATCH_ROWS, size) {
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

// The places of a warp: its first input and output channel in the block's tile, and its part of the patch's rows.
template <class T> struct WeightWarp {
  int input, output, half;

  __device__ __forceinline__ WeightWarp() {
    const int warp = threadIdx.x / WARP_SIZE;
    input = warp / 2 * T::warp_inputs;
    output = T::halves == 1 ? warp % 2 * 32 : 0;
    half = T::halves == 1 ? 0 : warp % 2;
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
      for (int i = 0; i < T::taps * T::blocks * 16; ++i) {
        float& value = sums[i / 16][i / 4 % 4][i % 4];
        float* slot = own + i * (TENSOR_THREADS / 2);
        if (pass == 0) *slot = value;
        else value += *slot;
      }
    }
    __syncthreads();
  }
}

// The bias's gradient, the sum of dout over the pixels: dout is in shared memory already, for the weights' gradient. A
// thread sums a piece of channels of every so many pixels; its sums lie in shared memory, too, as registers are short.
template <class T> struct BiasSums {
  static constexpr int threads_per_piece = TENSOR_THREADS / T::dout_pieces;
  float* shared;  // [PIECE, TENSOR_THREADS]

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < PIECE; ++k) shared[k * TENSOR_THREADS + threadIdx.x] = 0.0f;
  }

  // Adds a patch.
  __device__ __forceinline__ void add(const Element* stage) {
    const int thread = threadIdx.x;
    const Element* dout = stage + T::x_elements + thread % T::dout_pieces * PIECE;
    float sums[PIECE] = {};
#pragma unroll
    for (int pixel = thread / T::dout_pieces; pixel < WEIGHT_PATCH_ROWS * PATCH_WIDTH; pixel += threads_per_piece) {
      const Vector16<Element> values = load16(dout + pixel * T::dout_pitch);
#pragma unroll
      for (int k = 0; k < PIECE; ++k) sums[k] += to_float(values[k]);
    }
#pragma unroll
    for (int k = 0; k < PIECE; ++k) shared[k * TENSOR_THREADS + thread] += sums[k];
  }

  // Writes the block's channels, of which `count` are left.
  __device__ __forceinline__ void write(float* bias, int count) {
    __syncthreads();
    const int channel = threadIdx.x;
    if (channel >= T::columns || channel >= count) return;
    const float* first = shared + channel % PIECE * TENSOR_THREADS + channel / PIECE;
    float sum = 0.0f;
    for (int i = 0; i < threads_per_piece; ++i) sum += first[i * T::dout_pieces];
    bias[channel] = sum;
  }
};

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
  const WeightWarp<T> warp;
  typename T::Sums sums = {};
  BiasSums<T> bias{reinterpret_cast<float*>(shared + 2 * T::stage_elements)};
  const bool sums_bias = has_bias && blockIdx.x == 0;  // one of the blocks that have these output channels
  if (sums_bias) bias.clear();
  copy(shared);
  cp_async_commit();
  for (int patch = begin; patch < end; ++patch) {
    cp_async_wait<0>();
    __syncthreads();  // the patch is there for all, and nobody reads the one before
    if (patch + 1 < end) copy(shared + (patch + 1 - begin) % 2 * T::stage_elements);
    cp_async_commit();
    const Element* stage = shared + (patch - begin) % 2 * T::stage_elements;
    if (sums_bias) bias.add(stage);
    multiply_patch<T>(sums, stage, warp);
  }
  const int first_output = blockIdx.y * T::columns;
  if (sums_bias) bias.write(bias_parts + blockIdx.z * outputs + first_output, outputs - first_output);
  if constexpr (T::halves == 2) {
    add_halves<T>(sums, shared, warp);
    if (warp.half == 1) return;
  }
  const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
  for (int sum = 0; sum < T::taps * T::blocks; ++sum)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tap = sum / T::blocks;
        const int input = first_input + warp.input + sum % T::blocks * 16 + half * 8 + lane / 4;
        const int output = first_output + warp.output + n * 8 + lane % 4 * 2;
        if (input >= inputs || output >= outputs) continue;
        const int taps = T::kernel == 1 ? window.height * window.width : T::taps;
        float* to = parts + ((blockIdx.z * taps + first_tap + tap) * inputs + input) * outputs + output;
        *reinterpret_cast<float2*>(to) = make_float2(sums[sum][n][2 * half], sums[sum][n][2 * half + 1]);
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
