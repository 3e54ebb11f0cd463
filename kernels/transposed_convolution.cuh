// The matrix product of transposed convolution forward, whatever multiplies: see transposed_convolution.cu.
#pragma once

#include "window.cuh"
#include "matrix_tile.cuh"

#define TRANSPOSED_SIZES WINDOWS_PARAMETERS, int inputs, int outputs, int out_stride, int x_stride, int biases

#define TRANSPOSED_ARGUMENTS out, x, weight, bias, WINDOWS, inputs, outputs, out_stride, x_stride, biases

template <class T, bool aligned, class Out, class X, class Weight>
__device__ __forceinline__ void transposed_convolution(Out* out, const X* x, const Weight* weight, const float* bias,
                                                       const Windows& windows, int inputs, int outputs,
                                                       int out_stride, int x_stride, int biases) {
  const int pixels = windows.pixels, taps = volume(windows.kernel), channels = aligned ? outputs : whole_quads(outputs);
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
    const Quad added = load_quad<aligned>(bias + (tap * outputs + output) % biases, true, outputs - output);
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] += added[j];
    const int target = window_pixel(pixel, tap_at(tap, windows.kernel), windows);
    store_quad<aligned>(out + (target * out_stride + output), quad, outputs - output);
  });
}
