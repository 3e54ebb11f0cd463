// Convolution of any window, stride, padding and groups, with bias and ReLU, and its gradients. Weights are a matrix: a
// row for each tap and input channel (tap slowest), a column for each output channel. Padded channels are channels like
// any other here: their weights and inputs are zero, and so are their results.
//
// Forward and input gradient are one matrix product, `correlate`: its rows are target pixels, its columns target
// channels, and its inner dimension is (tap, source channel), whose elements are read where they lie. The weight
// gradient's inner dimension is the pixels, in parts that are summed in order at the end. `outputs` and `inputs` count
// the channels of a group, of the side that is written and of the side that is read.

#include "window.cuh"
#include "matrix_tile.cuh"

// ---- the matrix product of forward and input gradient -----------------------------------------------------------------
// Grid: pixels in tiles; groups, each with its target channels in tiles. The weight of a source channel c, a target
// channel n and a tap: forward in row (tap, c) and column n; transposed, for the input gradient, in row (the tap
// counted from the last one, n) and column c.

// Where a block's tile lies, and how many channels there are.
template <class T> struct TilePlace {
  int groups, inputs, outputs;
  int group, pixel, column;  // the tile's group; its first pixel and target channel of the group

  __device__ __forceinline__ TilePlace(int groups, int inputs, int outputs)
      : groups(groups), inputs(inputs), outputs(outputs) {
    const int column_tiles = divide_up(outputs, T::columns);
    group = blockIdx.y / column_tiles;
    column = blockIdx.y % column_tiles * T::columns;
    pixel = blockIdx.x * T::rows;
  }
};

// Loads where source channels come by 8, target channels by 4, all at multiples of 16 bytes, without dilation: a step
// of the inner dimension has one tap, the same for all threads, and what depends on the thread does not change.
template <class T_, bool transposed_> struct AlignedOperands {
  using T = T_;
  static constexpr bool transposed = transposed_, aligned = true;
  const Geometry& g;
  const TilePlace<T>& place;
  const float *source, *weight;
  int source_stride, offsets[T::row_quads];
  unsigned bits[T::row_quads];
  bool has_column;
  Axes tap = {0, 0, 0};
  int channel = 0;

  __device__ __forceinline__ AlignedOperands(const Geometry& g, const TilePlace<T>& place, const float* source,
                                             const float* weight, int source_stride)
      : g(g), place(place), source(source + place.group * place.inputs + inner_along()), source_stride(source_stride) {
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int pixel = place.pixel + line_along(i);
      const Corner corner = corner_of(g, pixel_at(pixel, g.target));
      offsets[i] = corner.pixel * source_stride;
      bits[i] = pixel < g.pixels ? bits_inside(g, corner.at) : 0;
    }
    const int column = place.column + (transposed ? line_along(0) : quad_across(0));
    has_column = loads_b<T, transposed>() && column < place.outputs;
    if (transposed) {
      const int row = (volume(g.kernel) - 1) * place.outputs + column, columns = place.groups * place.inputs;
      this->weight = weight + row * columns + place.group * place.inputs + inner_along();
    } else {
      const int columns = place.groups * place.outputs;
      this->weight = weight + inner_across() * columns + place.group * place.outputs + column;
    }
  }

  __device__ __forceinline__ int steps() const { return volume(g.kernel) * place.inputs / TILE_INNER; }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const unsigned needed = bits_of(tap, g.kernel);
    const int offset = tap_offset(g, tap) * source_stride + channel;
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i)
      a[i] = load_quad<true>(source + (offsets[i] + offset), (bits[i] & needed) == needed, 4);
    b = load_quad<true>(weight, has_column, 4);

    channel += TILE_INNER;
    weight += transposed ? TILE_INNER : TILE_INNER * place.groups * place.outputs;
    if (channel < place.inputs) return;
    channel = 0;
    if (transposed) weight -= place.outputs * place.groups * place.inputs + place.inputs;
    next_tap(tap, g.kernel);
  }
};

// Loads whatever there is, one by one. Each tap's source channels are rounded up to quads, of which each thread follows
// its own.
template <class T_, bool transposed_> struct AnyOperands {
  using T = T_;
  static constexpr bool transposed = transposed_, aligned = false, dilated = transposed;
  const Geometry& g;
  const TilePlace<T>& place;
  const float *source, *weight;
  int source_stride, channels;
  Corner corners[T::row_quads];
  int inner = 0;

  __device__ __forceinline__ AnyOperands(const Geometry& g, const TilePlace<T>& place, const float* source,
                                         const float* weight, int source_stride)
      : g(g), place(place), source(source + place.group * place.inputs), weight(weight), source_stride(source_stride),
        channels(whole_quads(place.inputs)) {
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int pixel = place.pixel + line_along(i);
      corners[i] = corner_of(g, pixel_at(pixel, g.target));
      if (pixel >= g.pixels) corners[i].at.depth = NOWHERE;
    }
  }

  __device__ __forceinline__ int steps() const { return divide_up(volume(g.kernel) * channels, TILE_INNER); }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const int taps = volume(g.kernel), number = (inner + inner_along()) / channels;
    const int channel = (inner + inner_along()) % channels, count = number < taps ? place.inputs - channel : 0;
    const Axes tap = tap_at(number, g.kernel);
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      int pixel;
      const bool found = source_pixel<dilated>(pixel, g, corners[i], tap, tap_offset(g, tap));
      a[i] = load_quad<false>(source + (pixel * source_stride + channel), found, count);
    }
    if constexpr (transposed) {
      const int column = place.column + line_along(0), row = (taps - 1 - number) * place.outputs + column;
      const float* address = weight + row * (place.groups * place.inputs) + place.group * place.inputs + channel;
      b = load_quad<false>(address, loads_b<T, true>() && column < place.outputs, count);
    } else {
      const int column = place.column + quad_across(0);
      const int weight_tap = (inner + inner_across()) / channels, weight_channel = (inner + inner_across()) % channels;
      const int row = weight_tap * place.inputs + weight_channel;
      const float* address = weight + row * (place.groups * place.outputs) + place.group * place.outputs + column;
      const bool exists = weight_tap < taps && weight_channel < place.inputs && loads_b<T, false>();
      b = load_quad<false>(address, exists, place.outputs - column);
    }
    inner += TILE_INNER;
  }
};

template <class Operands>
__device__ __forceinline__ void correlate(float* target, const float* source, const float* weight, const float* bias,
                                          const Geometry& g, int groups, int inputs, int outputs, int target_stride,
                                          int source_stride, int has_bias, int relu) {
  using T = typename Operands::T;
  constexpr bool aligned = Operands::aligned;
  const TilePlace<T> place(groups, inputs, outputs);
  Operands operands(g, place, source, weight, source_stride);
  typename T::Sums sums = {};
  accumulate<T, true, Operands::transposed>(sums, operands.steps(), operands);

  for_each_quad<T>(sums, [&](int row, int column, Quad quad) {
    const int pixel = place.pixel + row, output = place.column + column, channel = place.group * outputs + output;
    if (pixel >= g.pixels || output >= outputs) return;
    if (has_bias) {
      const Quad added = load_quad<aligned>(bias + channel, true, outputs - output);
#pragma unroll
      for (int j = 0; j < 4; ++j) quad[j] += added[j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] = rectify(quad[j], relu);
    store_quad<aligned>(target + (pixel * target_stride + channel), quad, outputs - output);
  });
}

// ---- forward ----------------------------------------------------------------------------------------------------------

#define FORWARD_PARAMETERS                                                                                       \
  float* __restrict__ out,              /* [pixels, groups * outputs], stride out_stride */                      \
      const float* __restrict__ x,      /* [source pixels, groups * inputs], stride x_stride */                  \
      const float* __restrict__ weight, /* [taps * inputs, groups * outputs] */                                  \
      const float* __restrict__ bias,   /* [groups * outputs]; not read where has_bias is 0 */                   \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int out_stride, int x_stride, int has_bias, int relu

#define FORWARD_ARGUMENTS \
  out, x, weight, bias, GEOMETRY, groups, inputs, outputs, out_stride, x_stride, has_bias, relu

KERNEL_WITH_THREADS(convolution_forward_128x64_f32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile128x64, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_128x32_f32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile128x32, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_64x32_f32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile64x32, false>>(FORWARD_ARGUMENTS);
}

// Whatever is not aligned.
KERNEL_WITH_THREADS(convolution_forward_any_f32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AnyOperands<Tile64x32, false>>(FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------
// The window is the flipped one: stride 1, the convolution's stride as the dilation, and kernel - 1 - padding as
// padding.

#define BACKWARD_INPUT_PARAMETERS                                                                                \
  float* __restrict__ dx,               /* [pixels, groups * outputs], stride dx_stride */                       \
      const float* __restrict__ dout,   /* [source pixels, groups * inputs], stride dout_stride */               \
      const float* __restrict__ weight, /* [taps * outputs, groups * inputs] */                                  \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dx_stride, int dout_stride

#define BACKWARD_INPUT_ARGUMENTS \
  dx, dout, weight, nullptr, GEOMETRY, groups, inputs, outputs, dx_stride, dout_stride, 0, 0

KERNEL_WITH_THREADS(convolution_backward_input_128x64_f32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile128x64, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_128x32_f32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile128x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_64x32_f32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile64x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

// Whatever is not aligned, and strides.
KERNEL_WITH_THREADS(convolution_backward_input_any_f32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AnyOperands<Tile64x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few inner elements: the first layer, the head's input gradient ---------------------------------------------------
// Memory decides: a thread holds a quad of channels of a few pixels, and all weights stand in shared memory. One group.
// Grid: pixels; target channels in tiles. The target's channels come by aligned quads.

constexpr int SHALLOW_THREADS = 256;
constexpr int SHALLOW_INNER = 64;    // taps * inputs at most: with as many columns, 16 KB of weights
constexpr int SHALLOW_COLUMNS = 64;  // target channels of a block
constexpr int SHALLOW_PIXELS = 4;    // of a thread: each weight that it loads from shared memory serves four

template <bool transposed>
__device__ __forceinline__ float weight_of(const float* weight, int tap, int taps, int input, int inputs, int output,
                                           int outputs) {
  const int row = transposed ? (taps - 1 - tap) * outputs + output : tap * inputs + input;
  return weight[row * (transposed ? inputs : outputs) + (transposed ? input : output)];
}

template <bool transposed>
__device__ __forceinline__ void correlate_shallow(float* target, const float* source, const float* weight,
                                                  const float* bias, const Geometry& g, int, int inputs, int outputs,
                                                  int target_stride, int source_stride, int has_bias, int relu) {
  __shared__ __align__(16) float weights[SHALLOW_INNER][SHALLOW_COLUMNS];
  const int taps = volume(g.kernel), tile_column = blockIdx.y * SHALLOW_COLUMNS;
  const int columns = min(SHALLOW_COLUMNS, outputs - tile_column), quads = columns / 4;
  for (int i = threadIdx.x; i < taps * inputs * columns; i += SHALLOW_THREADS) {
    const int inner = i / columns, column = i % columns;
    weights[inner][column] =
        weight_of<transposed>(weight, inner / inputs, taps, inner % inputs, inputs, tile_column + column, outputs);
  }
  __syncthreads();

  // Neighbouring threads have the quads of a pixel, then those of the next one.
  const int pixels_at_once = SHALLOW_THREADS / quads, slot = threadIdx.x / quads, column = threadIdx.x % quads * 4;
  const int first_pixel = blockIdx.x * pixels_at_once * SHALLOW_PIXELS + slot;
  if (slot >= pixels_at_once) return;
  Corner corners[SHALLOW_PIXELS];
  Quad sums[SHALLOW_PIXELS];
#pragma unroll
  for (int i = 0; i < SHALLOW_PIXELS; ++i) {
    const int pixel = first_pixel + i * pixels_at_once;
    corners[i] = corner_of(g, pixel_at(pixel, g.target));
    if (pixel >= g.pixels) corners[i].at.depth = NOWHERE;
    sums[i] = zero_quad();
    if (has_bias) sums[i] = load_quad<false>(bias + tile_column + column, true, 4);
  }
  Axes tap = {0, 0, 0};
  for (int number = 0; number < taps; ++number, next_tap(tap, g.kernel)) {
    int pixels[SHALLOW_PIXELS];
    bool found[SHALLOW_PIXELS];
#pragma unroll
    for (int i = 0; i < SHALLOW_PIXELS; ++i)
      found[i] = source_pixel<false>(pixels[i], g, corners[i], tap, tap_offset(g, tap));
    for (int input = 0; input < inputs; ++input) {
      const Quad factor = load16(&weights[number * inputs + input][column]);
#pragma unroll
      for (int i = 0; i < SHALLOW_PIXELS; ++i) {
        const float value = found[i] ? source[pixels[i] * source_stride + input] : 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(value, factor[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < SHALLOW_PIXELS; ++i) {
    const int pixel = first_pixel + i * pixels_at_once;
    if (pixel >= g.pixels) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] = rectify(sums[i][j], relu);
    store16(target + pixel * target_stride + tile_column + column, sums[i]);
  }
}

KERNEL_WITH_THREADS(convolution_forward_shallow_f32, SHALLOW_THREADS)(FORWARD_PARAMETERS) {
  correlate_shallow<false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_shallow_f32, SHALLOW_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate_shallow<true>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few target channels: the head, CBAM's spatial attention ----------------------------------------------------------
// Each pixel's sum is shared by `lanes` lanes, a power of two: 8 lanes read 32 channels by aligned quads, 1 lane reads
// any number one by one. Weights come from the first-level cache. One group. Grid: pixels.

constexpr int NARROW_THREADS = 256;
constexpr int NARROW_OUTPUTS = 4;  // target channels at most, all of which a thread holds
constexpr int NARROW_LANES = 8;

template <int lanes, bool transposed>
__device__ __forceinline__ void correlate_narrow(float* target, const float* source, const float* weight,
                                                 const float* bias, const Geometry& g, int, int inputs, int outputs,
                                                 int target_stride, int source_stride, int has_bias, int relu) {
  constexpr int size = lanes > 1 ? 4 : 1;  // channels of one load
  const int taps = volume(g.kernel), lane = threadIdx.x % lanes;
  const int target_pixel = blockIdx.x * (NARROW_THREADS / lanes) + threadIdx.x / lanes;
  Corner corner = corner_of(g, pixel_at(target_pixel, g.target));
  if (target_pixel >= g.pixels) corner.at.depth = NOWHERE;
  float sums[NARROW_OUTPUTS] = {};
  Axes tap = {0, 0, 0};
  for (int number = 0; number < taps; ++number, next_tap(tap, g.kernel)) {
    int pixel;
    if (!source_pixel<false>(pixel, g, corner, tap, tap_offset(g, tap))) continue;
    const float* values = source + pixel * source_stride;
    for (int input = lane * size; input < inputs; input += lanes * size) {
      const Quad quad = size == 4 ? load16(values + input) : Quad{{values[input], 0.0f, 0.0f, 0.0f}};
#pragma unroll
      for (int output = 0; output < NARROW_OUTPUTS; ++output) {
        if (output >= outputs) break;
#pragma unroll
        for (int j = 0; j < size; ++j) {
          const float factor = weight_of<transposed>(weight, number, taps, input + j, inputs, output, outputs);
          sums[output] = fmaf(quad[j], factor, sums[output]);
        }
      }
    }
  }
#pragma unroll
  for (int output = 0; output < NARROW_OUTPUTS; ++output) {
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2)
      sums[output] += __shfl_xor_sync(ALL_LANES, sums[output], distance);
    if (lane > 0 || target_pixel >= g.pixels || output >= outputs) continue;
    const float sum = has_bias ? sums[output] + bias[output] : sums[output];
    target[target_pixel * target_stride + output] = rectify(sum, relu);
  }
}

KERNEL_WITH_THREADS(convolution_forward_narrow_f32, NARROW_THREADS)(FORWARD_PARAMETERS) {
  correlate_narrow<1, false>(FORWARD_ARGUMENTS);
}

// Many source channels, by aligned quads.
KERNEL_WITH_THREADS(convolution_forward_narrow_deep_f32, NARROW_THREADS)(FORWARD_PARAMETERS) {
  correlate_narrow<NARROW_LANES, false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_narrow_f32, NARROW_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate_narrow<1, true>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few pixels: a matrix times vectors, CBAM's shared MLP ------------------------------------------------------------
// 1x1 kernels of one group. Latency decides: a block has a few columns and divides the inner dimension among its
// threads.

constexpr int VECTORS_THREADS = 256;
constexpr int VECTORS_WARPS = VECTORS_THREADS / WARP_SIZE;
constexpr int VECTORS_PIXELS = 4;  // of a block: each weight is read once for them

// Each lane has a column and each warp every eighth row of the weights. Grid: columns by 32; pixels by 4.
KERNEL_WITH_THREADS(convolution_forward_vectors_f32, VECTORS_THREADS)(
    float* __restrict__ out,           // [pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [inputs, outputs]
    const float* __restrict__ bias,    // [outputs]; not read where has_bias is 0
    int pixels, int inputs, int outputs, int out_stride, int x_stride, int has_bias, int relu) {
  __shared__ float partial[VECTORS_PIXELS][VECTORS_WARPS][WARP_SIZE];
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int column = blockIdx.x * WARP_SIZE + lane, first = blockIdx.y * VECTORS_PIXELS;
  float sums[VECTORS_PIXELS] = {};
#pragma unroll 4
  for (int row = warp; row < inputs; row += VECTORS_WARPS) {
    const float factor = column < outputs ? weight[row * outputs + column] : 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS_PIXELS; ++i)
      if (first + i < pixels) sums[i] = fmaf(x[(first + i) * x_stride + row], factor, sums[i]);
  }
#pragma unroll
  for (int i = 0; i < VECTORS_PIXELS; ++i) partial[i][warp][lane] = sums[i];
  __syncthreads();
  const int pixel = first + warp;
  if (warp >= VECTORS_PIXELS || pixel >= pixels || column >= outputs) return;
  float sum = has_bias ? bias[column] : 0.0f;
  for (int i = 0; i < VECTORS_WARPS; ++i) sum += partial[warp][i][lane];
  out[pixel * out_stride + column] = rectify(sum, relu);
}

// Each warp has a row of the weights, which is a channel of dx. Grid: channels by 8; pixels by 4.
KERNEL_WITH_THREADS(convolution_backward_input_vectors_f32, VECTORS_THREADS)(
    float* __restrict__ dx,            // [pixels, outputs], stride dx_stride
    const float* __restrict__ dout,    // [pixels, inputs], stride dout_stride
    const float* __restrict__ weight,  // [outputs, inputs]
    int pixels, int inputs, int outputs, int dx_stride, int dout_stride) {
  const int lane = threadIdx.x % WARP_SIZE, row = blockIdx.x * VECTORS_WARPS + threadIdx.x / WARP_SIZE;
  const int first = blockIdx.y * VECTORS_PIXELS;
  if (row >= outputs) return;
  float sums[VECTORS_PIXELS] = {};
#pragma unroll 4
  for (int column = lane; column < inputs; column += WARP_SIZE) {
    const float factor = weight[row * inputs + column];
#pragma unroll
    for (int i = 0; i < VECTORS_PIXELS; ++i)
      if (first + i < pixels)
        sums[i] = fmaf(dout[(first + i) * dout_stride + column], factor, sums[i]);
  }
#pragma unroll
  for (int i = 0; i < VECTORS_PIXELS; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && first + i < pixels) dx[(first + i) * dx_stride + row] = sum;
  }
}

// ---- weight gradient --------------------------------------------------------------------------------------------------
// Rows are (tap, input channel), columns output channels; the inner dimension is the pixels of dout (the target), each
// row of the image rounded up to whole steps. It is divided into parts of `part_rows` image rows (of all samples); each
// part's sums go to a matrix of their own, for sum_parts, or to the gradient itself if there is one part. Grid: rows in
// tiles; groups, each with its columns in tiles; parts. `aligned`: all channels come by 4, at multiples of 16 bytes.

#define BACKWARD_WEIGHT_PARAMETERS                                                                               \
  float* __restrict__ parts,          /* [parts, taps * inputs, groups * outputs] */                             \
      const float* __restrict__ dout, /* [pixels, groups * outputs], stride dout_stride */                       \
      const float* __restrict__ x,    /* [source pixels, groups * inputs], stride x_stride */                    \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dout_stride, int x_stride, int part_rows

#define BACKWARD_WEIGHT_ARGUMENTS parts, dout, x, GEOMETRY, groups, inputs, outputs, dout_stride, x_stride, part_rows

// All quads that a thread loads in a step are of one pixel: that which lies inner_across() after the step's first.
template <class T, bool aligned> struct PixelOperands {
  const Geometry& g;
  const float *dout, *x;
  int dout_stride, x_stride;
  Axes corners[T::row_quads];  // the source pixel that each quad's tap meets, if the step's first pixel were the first
  int offsets[T::row_quads], row_counts[T::row_quads], column_count;
  Pixel pixel;  // the step's first
  int index;    // its number

  __device__ __forceinline__ PixelOperands(const Geometry& g, const float* dout, const float* x, int dout_stride,
                                           int x_stride, int inputs, int outputs, int tile_row, int tile_column,
                                           int first_pixel)
      : g(g), dout_stride(dout_stride), x(x), x_stride(x_stride), pixel(pixel_at(first_pixel, g.target)),
        index(first_pixel) {
    const int channels = aligned ? inputs : whole_quads(inputs);
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int row = tile_row + quad_across(i), channel = row % channels;
      const Axes tap = tap_at(row / channels, g.kernel);
      corners[i] = {tap.depth - g.padding.depth, tap.height - g.padding.height,
                    tap.width - g.padding.width + inner_across() * g.stride.width};
      offsets[i] = tap_offset(g, corners[i]) * x_stride + channel;
      row_counts[i] = inputs - channel;
      if (tap.depth >= g.kernel.depth) corners[i].depth = NOWHERE;
    }
    const int column = tile_column + quad_across(0);
    column_count = loads_b<T, false>() ? outputs - column : 0;
    this->dout = dout + inner_across() * dout_stride + column;
  }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const bool in_row = pixel.at.width + inner_across() < g.target.width;
    const Axes source = {pixel.at.depth * g.stride.depth, pixel.at.height * g.stride.height,
                         pixel.at.width * g.stride.width};
    const int offset = (pixel.sample * volume(g.source) + tap_offset(g, source)) * x_stride;
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const bool found = is_inside(source.depth + corners[i].depth, g.source.depth) &&
                         is_inside(source.height + corners[i].height, g.source.height) &&
                         is_inside(source.width + corners[i].width, g.source.width);
      a[i] = load_quad<aligned>(x + (offsets[i] + offset), found && in_row, row_counts[i]);
    }
    b = load_quad<aligned>(dout + index * dout_stride, in_row && column_count > 0, column_count);

    pixel.at.width += TILE_INNER;
    index += TILE_INNER;
    if (pixel.at.width < g.target.width) return;
    index -= pixel.at.width - g.target.width;
    pixel.at.width = 0;
    if (++pixel.at.height < g.target.height) return;
    pixel.at.height = 0;
    if (++pixel.at.depth < g.target.depth) return;
    pixel.at.depth = 0;
    ++pixel.sample;
  }
};

template <class T, bool aligned>
__device__ __forceinline__ void correlate_weights(float* parts, const float* dout, const float* x, const Geometry& g,
                                                  int groups, int inputs, int outputs, int dout_stride, int x_stride,
                                                  int part_rows) {
  const int taps = volume(g.kernel), channels = aligned ? inputs : whole_quads(inputs);
  const int column_tiles = divide_up(outputs, T::columns);
  const int group = blockIdx.y / column_tiles, tile_column = blockIdx.y % column_tiles * T::columns;
  const int tile_row = blockIdx.x * T::rows;
  const int begin = blockIdx.z * part_rows, count = min(g.pixels / g.target.width - begin, part_rows);
  PixelOperands<T, aligned> operands(g, dout + group * outputs, x + group * inputs, dout_stride, x_stride, inputs,
                                     outputs, tile_row, tile_column, begin * g.target.width);
  typename T::Sums sums = {};
  accumulate<T, false, false>(sums, count * divide_up(g.target.width, TILE_INNER), operands);

  parts += blockIdx.z * (taps * inputs) * (groups * outputs) + group * outputs;
  for_each_quad<T>(sums, [&](int row, int column, const Quad& quad) {
    const int tap = (tile_row + row) / channels, channel = (tile_row + row) % channels, output = tile_column + column;
    if (tap >= taps || channel >= inputs || output >= outputs) return;
    float* address = parts + (tap * inputs + channel) * (groups * outputs) + output;
    store_quad<aligned>(address, quad, outputs - output);
  });
}

KERNEL_WITH_THREADS(convolution_backward_weight_128x64_f32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile128x64, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_128x32_f32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile128x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_64x32_f32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile64x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

// Whatever is not aligned.
KERNEL_WITH_THREADS(convolution_backward_weight_any_f32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile64x32, false>(BACKWARD_WEIGHT_ARGUMENTS);
}

// Few weights (the first layer, the head, CBAM's spatial attention): each thread sums one of them over the part. One
// group. Grid: weights; parts.
constexpr int FEW_WEIGHTS_THREADS = 128;

// The least a >= 0 with a * stride >= distance.
__device__ __forceinline__ int first_at(int distance, int stride) {
  return distance <= 0 ? 0 : divide_up(distance, stride);
}

KERNEL_WITH_THREADS(convolution_backward_weight_few_f32, FEW_WEIGHTS_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  const Geometry g = GEOMETRY;
  const int weights = volume(g.kernel) * inputs * outputs, number = blockIdx.x * FEW_WEIGHTS_THREADS + threadIdx.x;
  if (number >= weights) return;
  const int output = number % outputs, input = number / outputs % inputs;
  const Axes tap = tap_at(number / outputs / inputs, g.kernel);
  // The target pixels of a row whose source pixel is inside.
  const int shift = tap.width - g.padding.width, first = first_at(-shift, g.stride.width);
  const int last = min(first_at(g.source.width - shift, g.stride.width), g.target.width);
  const int begin = blockIdx.y * part_rows, end = begin + min(g.pixels / g.target.width - begin, part_rows);
  float sum = 0.0f;
  for (int row = begin; row < end; ++row) {
    const Corner corner = corner_of(g, pixel_at(row * g.target.width, g.target));
    int source;
    const Axes first_tap = {tap.depth, tap.height, g.padding.width};  // one that is inside along the width
    if (!source_pixel<false>(source, g, corner, first_tap, tap_offset(g, tap))) continue;
    const float* values = x + (source * x_stride + input);
    const float* gradients = dout + (row * g.target.width * dout_stride + output);
    const int value_stride = g.stride.width * x_stride;
#pragma unroll 4
    for (int i = first; i < last; ++i) sum = fmaf(values[i * value_stride], gradients[i * dout_stride], sum);
  }
  parts[blockIdx.y * weights + number] = sum;
}

// ---- bias gradient, and the sums of parts -----------------------------------------------------------------------------

constexpr int SUM_THREADS = 256;

// parts[part][channel] = the sum of dout over the part's pixels. The block's threads are as many channels, rounded up
// to a power of two, as there are, and pixels beside them. Grid: channels by 32; parts.
KERNEL_WITH_THREADS(convolution_backward_bias_f32, SUM_THREADS)(
    float* __restrict__ parts,       // [parts, channels]
    const float* __restrict__ dout,  // [pixels, channels], stride dout_stride
    int pixels, int channels, int dout_stride, int part_pixels) {
  __shared__ float sums[SUM_THREADS];
  int width = 1;
  while (width < channels && width < WARP_SIZE) width *= 2;
  const int channel = blockIdx.x * WARP_SIZE + threadIdx.x % width;
  const int begin = blockIdx.y * part_pixels, count = min(pixels - begin, part_pixels);
  float sum = 0.0f;
  if (channel < channels)
#pragma unroll 4
    for (int i = threadIdx.x / width; i < count; i += SUM_THREADS / width)
      sum += dout[(begin + i) * dout_stride + channel];
  sums[threadIdx.x] = sum;
  for (int half = SUM_THREADS / 2; half >= width; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (static_cast<int>(threadIdx.x) < width && channel < channels)
    parts[blockIdx.y * channels + channel] = sums[threadIdx.x];
}

// out[i] = the sum of parts[part][i]: each warp sums every eighth part. Grid: elements by 32.
KERNEL_WITH_THREADS(convolution_sum_parts_f32, SUM_THREADS)(
    float* __restrict__ out,          // [count]
    const float* __restrict__ parts,  // [part_count, count]
    int count, int part_count) {
  constexpr int warps = SUM_THREADS / WARP_SIZE;
  __shared__ float sums[warps][WARP_SIZE];
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int element = blockIdx.x * WARP_SIZE + lane;
  float sum = 0.0f;
  if (element < count)
#pragma unroll 4
    for (int part = warp; part < part_count; part += warps) sum += parts[part * count + element];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || element >= count) return;
  for (int i = 1; i < warps; ++i) sum += sums[i][lane];
  out[element] = sum;
}
