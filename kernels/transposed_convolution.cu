// Transposed convolution whose stride is its kernel: each pixel of x becomes a patch of pixels of out, one for each
// tap. One matrix product, whose rows are the pixels of x, whose columns are (tap, output channel), and whose inner
// dimension is the input channels. Its gradients are the convolution's kernels.

#include "window.cuh"
#include "matrix_tile.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------
// Grid: pixels of x in tiles; (tap, output channel) in tiles. `aligned`: input channels come by 8, output channels by
// 4, all at multiples of 16 bytes; otherwise each tap's output channels are rounded up to quads.

#define FORWARD_SIZES WINDOWS_PARAMETERS, int inputs, int outputs, int out_stride, int x_stride, int biases

#define FORWARD_ARGUMENTS out, x, weight, bias, WINDOWS, inputs, outputs, out_stride, x_stride, biases

template <class T, bool aligned, class Out, class X, class Weight>
__device__ __forceinline__ void transposed_convolution(Out* out, const X* x, const Weight* weight, const float* bias,
                                                       const Windows& windows, int inputs, int outputs,
                                                       int out_stride, int x_stride, int biases) {
  const int pixels = windows.pixels, taps = volume(windows.kernel), channels = aligned ? outputs : whole_quads(outputs);
  const int tile_pixel = blockIdx.x * T::rows, tile_column = blockIdx.y * T::columns;
  const int column = tile_column + line_along(0), tap = column / channels, output = column % channels;
  const bool has_column = loads_b<T, true>() && tap < taps && output < outputs;
  const Weight* const weights = weight + (tap * outputs + output) * inputs;
  int channel = inner_along();

  const auto load = [&](Quad(&a)[T::row_quads], Quad& b) {
    const int count = inputs - channel;
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int pixel = tile_pixel + line_along(i);
      a[i] = load_quad<aligned>(x + (pixel * x_stride + channel), pixel < pixels, count);
    }
    b = load_quad<aligned>(weights + channel, has_column, count);
    channel += TILE_INNER;
  };
  typename T::Sums sums = {};
  accumulate<T, true, true>(sums, divide_up(inputs, TILE_INNER), load);

  for_each_quad<T>(sums, [&](int row, int column, Quad quad) {
    const int pixel = tile_pixel + row, tap = (tile_column + column) / channels;
    const int output = (tile_column + column) % channels;
    if (pixel >= pixels || tap >= taps || output >= outputs) return;
    const Quad added = load_quad<aligned>(bias + (tap * outputs + output) % biases, true, outputs - output);
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] += added[j];
    const int target = window_pixel(pixel, tap_at(tap, windows.kernel), windows);
    store_quad<aligned>(out + (target * out_stride + output), quad, outputs - output);
  });
}

#ifdef ELEMENT_f32

KERNEL_WITH_THREADS(transposed_convolution_forward_128x64, TILE_THREADS)(
    float* __restrict__ out,           // [kernel * pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [taps * outputs, inputs]
    const float* __restrict__ bias,    // [biases]: of each output, or of each tap's
    FORWARD_SIZES) {
  transposed_convolution<Tile128x64, true>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_64x32, TILE_THREADS)(
    float* __restrict__ out,
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  transposed_convolution<Tile64x32, true>(FORWARD_ARGUMENTS);
}

#endif  // ELEMENT_f32

// Whatever is not aligned, and images of few channels, which are stored in full.
KERNEL_WITH_THREADS(transposed_convolution_forward_any, TILE_THREADS)(
    Element* __restrict__ out,
    const Element* __restrict__ x,
    const Element* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  transposed_convolution<Tile64x32, false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_any_from_full, TILE_THREADS)(
    Element* __restrict__ out,
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  transposed_convolution<Tile64x32, false>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_any_to_full, TILE_THREADS)(
    float* __restrict__ out,
    const Element* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    FORWARD_SIZES) {
  transposed_convolution<Tile64x32, false>(FORWARD_ARGUMENTS);
}
