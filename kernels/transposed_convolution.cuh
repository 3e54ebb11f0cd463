// The matrix product of transposed convolution forward, whatever multiplies: see transposed_convolution.cu.
#pragma once

#include "window.cuh"
#include "matrix_tile.cuh"

#define TRANSPOSED_SIZES                                                                                     \
  int pixels, int depth, int height, int width, int kernel_depth, int kernel_height, int kernel_width, int inputs, \
      int outputs, int out_stride, int x_stride

#define TRANSPOSED_ARGUMENTS                                                                                 \
  out, x, weight, bias, pixels, {depth, height, width}, {kernel_depth, kernel_height, kernel_width}, inputs, outputs, \
      out_stride, x_stride

// The pixel of out that a pixel of x becomes at a tap.
__device__ __forceinline__ int patch_pixel(const Pixel& from, const Axes& tap, const Axes& size, const Axes& kernel) {
  const int plane = (from.sample * size.depth + from.at.depth) * kernel.depth + tap.depth;
  const int row = (plane * size.height + from.at.height) * kernel.height + tap.height;
  return (row * size.width + from.at.width) * kernel.width + tap.width;
}

template <class T, bool aligned, class Out, class X, class Weight>
__device__ __forceinline__ void transposed_convolution(Out* out, const X* x, const Weight* weight, const float* bias,
                                                       int pixels, const Axes& size, const Axes& kernel, int inputs,
                                                       int outputs, int out_stride, int x_stride) {
  const int taps = volume(kernel), channels = aligned ? outputs : whole_quads(outputs);
  const int tile_pixel = blockIdx.x * T::rows, tile_column = blockIdx.y * T::columns;
  const Weight* weights[T::b_quads];
  bool has_column[T::b_quads];
#pragma unroll
  for (int i = 0; i < T::b_quads; ++i) {
    const int column = tile_column + T::column_along(i), tap = column / channels, output = column % channels;
    has_column[i] = loads_b<T, true>() && tap < taps && output < outputs;
    weights[i] = weight + (tap * outputs + output) * inputs;
  }
  int channel = T::inner_along();

  const auto load = [&](Quad(&a)[T::a_quads], Quad(&b)[T::b_quads]) {
    const int count = inputs - channel;
    const bool has_channel = !reaches_beyond<T>() || count > 0;
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const int pixel = tile_pixel + T::row_along(i);
      a[i] = load_quad<aligned>(x + (pixel * x_stride + channel), has_channel && pixel < pixels, count);
    }
#pragma unroll
    for (int i = 0; i < T::b_quads; ++i)
      b[i] = load_quad<aligned>(weights[i] + channel, has_channel && has_column[i], count);
    channel += T::inner;
  };
  typename T::Sums sums = {};
  accumulate<T, true, true>(sums, divide_up(inputs, T::inner), load);

  for_each_quad<T>(sums, [&](int row, int column, Quad quad) {
    const int pixel = tile_pixel + row, tap = (tile_column + column) / channels;
    const int output = (tile_column + column) % channels;
    if (pixel >= pixels || tap >= taps || output >= outputs) return;
    const Quad added = load_quad<aligned>(bias + output, true, outputs - output);
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] += added[j];
    const int target = patch_pixel(pixel_at(pixel, size), tap_at(tap, kernel), size, kernel);
    store_quad<aligned>(out + (target * out_stride + output), quad, outputs - output);
  });
}
