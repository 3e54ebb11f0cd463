// Convolution of any window, stride, padding and groups, with bias and ReLU, and its gradients. Weights are a matrix: a
// row for each tap and input channel (tap slowest), a column for each output channel. Padded channels are channels like
// any other here: their weights and inputs are zero, and so are their results.
//
// Here is what no larger machinery pays for, or serves: few channels, and whatever is not aligned. Larger products of
// f32 are in convolution_tile.cu, the first layer and the head in convolution_one_channel.cu, CBAM's spatial attention in
// convolution_7x7.cu. Images of few channels are stored in full beside any element, and so are the weights that meet
// them: hence kernels of mixed types.

#include "correlation.cuh"
#include "window.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

#define FORWARD_SIZES \
  GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int out_stride, int x_stride, int has_bias, int relu

KERNEL_WITH_THREADS(convolution_forward_any, TILE_THREADS)(
    Element* __restrict__ out,           // [pixels, groups * outputs], stride out_stride
    const Element* __restrict__ x,       // [source pixels, groups * inputs], stride x_stride
    const Element* __restrict__ weight,  // [taps * inputs, groups * outputs]
    const float* __restrict__ bias,      // [groups * outputs]; not read where has_bias is 0
    FORWARD_SIZES) {
  correlate<AnyOperands<Tile64x32, false, Element, Element>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_any_from_full, TILE_THREADS)(
    Element* __restrict__ out,          // as above
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  correlate<AnyOperands<Tile64x32, false, float, float>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_any_to_full, TILE_THREADS)(
    float* __restrict__ out,          // as above
    const Element* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  correlate<AnyOperands<Tile64x32, false, Element, float>>(FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------
// The window is the flipped one: stride 1, the convolution's stride as the dilation, and kernel - 1 - padding as
// padding.

#define BACKWARD_INPUT_SIZES \
  GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dx_stride, int dout_stride

KERNEL_WITH_THREADS(convolution_backward_input_any, TILE_THREADS)(
    Element* __restrict__ dx,            // [pixels, groups * outputs], stride dx_stride
    const Element* __restrict__ dout,    // [source pixels, groups * inputs], stride dout_stride
    const Element* __restrict__ weight,  // [taps * outputs, groups * inputs]
    BACKWARD_INPUT_SIZES) {
  correlate<AnyOperands<Tile64x32, true, Element, Element>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_any_from_full, TILE_THREADS)(
    Element* __restrict__ dx,          // as above
    const float* __restrict__ dout,
    const float* __restrict__ weight,
    BACKWARD_INPUT_SIZES) {
  correlate<AnyOperands<Tile64x32, true, float, float>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_any_to_full, TILE_THREADS)(
    float* __restrict__ dx,          // as above
    const Element* __restrict__ dout,
    const float* __restrict__ weight,
    BACKWARD_INPUT_SIZES) {
  correlate<AnyOperands<Tile64x32, true, Element, float>>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few inner elements: a first layer of several channels ------------------------------------------------------------
// Memory decides: a thread holds a quad of channels of a few pixels, and all weights stand in shared memory. One group.
// Grid: pixels; target channels in tiles. The target's channels come by 8, aligned.

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

template <bool transposed, class Target>
__device__ __forceinline__ void correlate_shallow(Target* target, const float* source, const float* weight,
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
    store_four(target + pixel * target_stride + tile_column + column, sums[i]);
  }
}

KERNEL_WITH_THREADS(convolution_forward_shallow, SHALLOW_THREADS)(
    Element* __restrict__ out,
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  correlate_shallow<false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_shallow, SHALLOW_THREADS)(
    Element* __restrict__ dx,
    const float* __restrict__ dout,
    const float* __restrict__ weight,
    BACKWARD_INPUT_SIZES) {
  correlate_shallow<true>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few target channels: a head of several classes -------------------------------------------------------------------
// Each pixel's sum is shared by `lanes` lanes, a power of two: 8 lanes read 32 channels by aligned quads, 1 lane reads
// any number one by one. Weights come from the first-level cache. One group. Grid: pixels.

constexpr int NARROW_THREADS = 256;
constexpr int NARROW_OUTPUTS = 4;  // target channels at most, all of which a thread holds
constexpr int NARROW_LANES = 8;

template <int lanes, bool transposed, class Source>
__device__ __forceinline__ void correlate_narrow(float* target, const Source* source, const float* weight,
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
    const Source* values = source + pixel * source_stride;
    for (int input = lane * size; input < inputs; input += lanes * size) {
      const Quad quad = size == 4 ? load_four(values + input) : Quad{{to_float(values[input]), 0.0f, 0.0f, 0.0f}};
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

KERNEL_WITH_THREADS(convolution_forward_narrow, NARROW_THREADS)(
    float* __restrict__ out,
    const Element* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  correlate_narrow<1, false>(FORWARD_ARGUMENTS);
}

// Many source channels, by aligned quads.
KERNEL_WITH_THREADS(convolution_forward_narrow_deep, NARROW_THREADS)(
    float* __restrict__ out,
    const Element* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  correlate_narrow<NARROW_LANES, false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_narrow, NARROW_THREADS)(
    float* __restrict__ dx,
    const Element* __restrict__ dout,
    const float* __restrict__ weight,
    BACKWARD_INPUT_SIZES) {
  correlate_narrow<1, true>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- weight gradient --------------------------------------------------------------------------------------------------
// In parts, as correlation.cuh says.

#define BACKWARD_WEIGHT_SIZES \
  GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dout_stride, int x_stride, int part_rows

KERNEL_WITH_THREADS(convolution_backward_weight_any, TILE_THREADS)(
    float* __restrict__ parts,         // [parts, taps * inputs, groups * outputs]
    const Element* __restrict__ dout,  // [pixels, groups * outputs], stride dout_stride
    const Element* __restrict__ x,     // [source pixels, groups * inputs], stride x_stride
    BACKWARD_WEIGHT_SIZES) {
  correlate_weights<Tile64x32, false>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_any_full_x, TILE_THREADS)(
    float* __restrict__ parts,
    const Element* __restrict__ dout,
    const float* __restrict__ x,
    BACKWARD_WEIGHT_SIZES) {
  correlate_weights<Tile64x32, false>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_any_full_dout, TILE_THREADS)(
    float* __restrict__ parts,
    const float* __restrict__ dout,
    const Element* __restrict__ x,
    BACKWARD_WEIGHT_SIZES) {
  correlate_weights<Tile64x32, false>(BACKWARD_WEIGHT_ARGUMENTS);
}

// Few weights: each thread sums one of them over the part. One group. Grid: weights; parts.
constexpr int FEW_WEIGHTS_THREADS = 128;

// The least a >= 0 with a * stride >= distance.
__device__ __forceinline__ int first_at(int distance, int stride) {
  return distance <= 0 ? 0 : divide_up(distance, stride);
}

template <class Dout, class X>
__device__ __forceinline__ void few_weights(float* parts, const Dout* dout, const X* x, const Geometry& g, int,
                                            int inputs, int outputs, int dout_stride, int x_stride, int part_rows) {
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
    const X* values = x + (source * x_stride + input);
    const Dout* gradients = dout + (row * g.target.width * dout_stride + output);
    const int value_stride = g.stride.width * x_stride;
#pragma unroll 4
    for (int i = first; i < last; ++i) 
      sum = fmaf(to_float(values[i * value_stride]), to_float(gradients[i * dout_stride]), sum);
  }
  parts[blockIdx.y * weights + number] = sum;
}

KERNEL_WITH_THREADS(convolution_backward_weight_few, FEW_WEIGHTS_THREADS)(
    float* __restrict__ parts,
    const Element* __restrict__ dout,
    const Element* __restrict__ x,
    BACKWARD_WEIGHT_SIZES) {
  few_weights(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_few_full_x, FEW_WEIGHTS_THREADS)(
    float* __restrict__ parts,
    const Element* __restrict__ dout,
    const float* __restrict__ x,
    BACKWARD_WEIGHT_SIZES) {
  few_weights(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_few_full_dout, FEW_WEIGHTS_THREADS)(
    float* __restrict__ parts,
    const float* __restrict__ dout,
    const Element* __restrict__ x,
    BACKWARD_WEIGHT_SIZES) {
  few_weights(BACKWARD_WEIGHT_ARGUMENTS);
}

// ---- bias gradient ----------------------------------------------------------------------------------------------------

constexpr int BIAS_THREADS = 256;

// parts[part][tap][channel] = the sum of dout over the part's pixels, for each tap of a window whose stride is its size over
// those that it meets. The block's threads are as many channels, rounded up to a power of two, as there are, and windows
// beside them. Grid: channels by 32; windows, in parts; taps.
KERNEL_WITH_THREADS(convolution_backward_bias, BIAS_THREADS)(
    float* __restrict__ parts,         // [parts, taps, channels]
    const Element* __restrict__ dout,  // [pixels * taps, channels], stride dout_stride
    WINDOWS_PARAMETERS, int channels, int dout_stride, int part_pixels) {
  __shared__ float sums[BIAS_THREADS];
  const Windows windows = WINDOWS;
  const Axes tap = tap_at(blockIdx.z, windows.kernel);
  int lanes = 1;
  while (lanes < channels && lanes < WARP_SIZE) lanes *= 2;
  const int channel = blockIdx.x * WARP_SIZE + threadIdx.x % lanes;
  const int begin = blockIdx.y * part_pixels, count = min(pixels - begin, part_pixels);
  float sum = 0.0f;
  if (channel < channels)
#pragma unroll 4
    for (int i = threadIdx.x / lanes; i < count; i += BIAS_THREADS / lanes)
      sum += to_float(dout[window_pixel(begin + i, tap, windows) * dout_stride + channel]);
  sums[threadIdx.x] = sum;
  for (int half = BIAS_THREADS / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (static_cast<int>(threadIdx.x) < lanes && channel < channels)
    parts[(blockIdx.y * gridDim.z + blockIdx.z) * channels + channel] = sums[threadIdx.x];
}
