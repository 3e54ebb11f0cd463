// Where the pixels lie that a convolution's window meets. All tensors are channels-last slices: element (pixel,
// channel) lies at pixel * stride + channel, and pixels are numbered through batch, depth, height and width.
//
// The kernels write target pixels from source pixels: along each axis, tap k of target pixel t meets the source pixel
// (t * stride + k - padding) / dilation, if that is whole and inside. Forward, the source is x and the target out; for
// the input gradient the source is dout and the target dx, and the stride has become the dilation.
#pragma once

#include "common.cuh"

// ---- geometry ---------------------------------------------------------------------------------------------------------

struct Axes {
  int depth, height, width;
};

__device__ __forceinline__ int volume(const Axes& axes) { return axes.depth * axes.height * axes.width; }

struct Geometry {
  int pixels;  // of the target, all samples together
  Axes source, target, kernel, stride, padding, dilation;
};

// The parameters of a kernel that make its Geometry.
#define GEOMETRY_PARAMETERS                                                                                          \
  int pixels, int source_depth, int source_height, int source_width, int target_depth, int target_height,            \
      int target_width, int kernel_depth, int kernel_height, int kernel_width, int stride_depth, int stride_height,  \
      int stride_width, int padding_depth, int padding_height, int padding_width, int dilation_depth,                \
      int dilation_height, int dilation_width

#define GEOMETRY                                                                                                     \
  Geometry {                                                                                                         \
    pixels, {source_depth, source_height, source_width}, {target_depth, target_height, target_width},                \
        {kernel_depth, kernel_height, kernel_width}, {stride_depth, stride_height, stride_width},                    \
        {padding_depth, padding_height, padding_width}, {dilation_depth, dilation_height, dilation_width}            \
  }

// ---- pixels -----------------------------------------------------------------------------------------------------------

struct Pixel {
  int sample;
  Axes at;
};

__device__ __forceinline__ Pixel pixel_at(int index, const Axes& size) {
  const int row = index / size.width, plane = row / size.height;
  return {plane / size.depth, {plane % size.depth, row % size.height, index % size.width}};
}

// ---- taps -------------------------------------------------------------------------------------------------------------

// An axis that is so far outside that no tap or pixel brings it back.
constexpr int NOWHERE = -(1 << 30);

__device__ __forceinline__ Axes tap_at(int index, const Axes& kernel) {
  const int row = index / kernel.width;
  return {row / kernel.height, row % kernel.height, index % kernel.width};
}

__device__ __forceinline__ void next_tap(Axes& tap, const Axes& kernel) {
  if (++tap.width < kernel.width) return;
  tap.width = 0;
  if (++tap.height < kernel.height) return;
  tap.height = 0;
  ++tap.depth;
}

// How many source pixels further on a tap meets than the first one. Without dilation.
__device__ __forceinline__ int tap_offset(const Geometry& g, const Axes& tap) {
  return (tap.depth * g.source.height + tap.height) * g.source.width + tap.width;
}

// Where the window of a target pixel begins: at a source pixel, or outside. With dilation, counted in steps of it.
struct Corner {
  Axes at;
  int sample;  // the sample's first source pixel
  int pixel;   // the number that the source pixel has, or would have
};

__device__ __forceinline__ Corner corner_of(const Geometry& g, const Pixel& target) {
  Corner corner;
  corner.at = {target.at.depth * g.stride.depth - g.padding.depth,
               target.at.height * g.stride.height - g.padding.height,
               target.at.width * g.stride.width - g.padding.width};
  corner.sample = target.sample * volume(g.source);
  corner.pixel = corner.sample + tap_offset(g, corner.at);
  return corner;
}

__device__ __forceinline__ bool is_inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

// Along one axis: the source position of `at`, which is counted in steps of the dilation; whether there is one.
__device__ __forceinline__ bool undilate(int& at, int dilation, int size) {
  const int position = at / dilation;
  const bool whole = position * dilation == at;
  at = position;
  return whole && is_inside(position, size);
}

// The source pixel that a tap of a window meets; whether there is one. `offset` is the tap's.
template <bool dilated>
__device__ __forceinline__ bool source_pixel(int& pixel, const Geometry& g, const Corner& corner, const Axes& tap,
                                             int offset) {
  Axes at = {corner.at.depth + tap.depth, corner.at.height + tap.height, corner.at.width + tap.width};
  if constexpr (dilated) {
    const bool found = undilate(at.depth, g.dilation.depth, g.source.depth) &
                       undilate(at.height, g.dilation.height, g.source.height) &
                       undilate(at.width, g.dilation.width, g.source.width);
    pixel = corner.sample + tap_offset(g, at);
    return found;
  }
  pixel = corner.pixel + offset;
  return is_inside(at.depth, g.source.depth) && is_inside(at.height, g.source.height) &&
         is_inside(at.width, g.source.width);
}

// ---- windows whose stride is their size ---------------------------------------------------------------------------------
// Each pixel of a small image is a window of a large one.

struct Windows {
  int pixels;  // of the small image, all samples together
  Axes size, kernel;
};

// The parameters of a kernel that make its Windows.
#define WINDOWS_PARAMETERS \
  int pixels, int depth, int height, int width, int kernel_depth, int kernel_height, int kernel_width

#define WINDOWS \
  Windows { pixels, {depth, height, width}, {kernel_depth, kernel_height, kernel_width} }

// The pixel of the large image that a tap of a pixel's window meets.
__device__ __forceinline__ int window_pixel(int pixel, const Axes& tap, const Windows& windows) {
  const Axes &size = windows.size, &kernel = windows.kernel;
  const Pixel from = pixel_at(pixel, size);
  const int plane = (from.sample * size.depth + from.at.depth) * kernel.depth + tap.depth;
  const int row = (plane * size.height + from.at.height) * kernel.height + tap.height;
  return (row * size.width + from.at.width) * kernel.width + tap.width;
}

// ---- taps as bits -----------------------------------------------------------------------------------------------------
// Without dilation, whether a tap meets a source pixel is asked of each axis alone, so that a bit for each of an axis's
// positions says it for all taps of a window. For kernels whose depth, height and width add up to 32 at most.

__device__ __forceinline__ unsigned bits_of(const Axes& tap, const Axes& kernel) {
  return 1u << tap.depth | 1u << (kernel.depth + tap.height) | 1u << (kernel.depth + kernel.height + tap.width);
}

// The bits of all positions of a window that are inside; a tap meets a source pixel if its three bits are among them.
__device__ __forceinline__ unsigned bits_inside(const Geometry& g, const Axes& corner) {
  const int height_bit = g.kernel.depth, width_bit = height_bit + g.kernel.height;
  unsigned bits = 0;
  for (int k = 0; k < g.kernel.depth; ++k)
    bits |= static_cast<unsigned>(is_inside(corner.depth + k, g.source.depth)) << k;
  for (int k = 0; k < g.kernel.height; ++k)
    bits |= static_cast<unsigned>(is_inside(corner.height + k, g.source.height)) << (height_bit + k);
  for (int k = 0; k < g.kernel.width; ++k)
    bits |= static_cast<unsigned>(is_inside(corner.width + k, g.source.width)) << (width_bit + k);
  return bits;
}

// ---- epilogue ---------------------------------------------------------------------------------------------------------

// Keeps NaN, which fmaxf would hide.
__device__ __forceinline__ float rectify(float x, int relu) { return relu && x < 0.0f ? 0.0f : x; }
