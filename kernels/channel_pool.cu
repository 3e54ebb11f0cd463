// CBAM's spatial pooling: the mean and the maximum over the channels of each pixel. A pixel's channels are shared by
// neighbouring lanes; padded channels take no part.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void pool(float* out, const Element* x, int pixels, int channels, int out_stride, int x_stride) {
  for_each_pixel_together(pixels, [&](int p, bool inside) {
    float sum = 0.0f, maximum = -INFINITY;
    for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
      const Group<width> group = load<width>(x + p * x_stride + c);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        if (c + k >= channels) continue;
        sum += group[k];
        if (group[k] > maximum) maximum = group[k];
      }
    }
    sum = reduce_lanes(sum, [](float a, float b) { return a + b; });
    maximum = reduce_lanes(maximum, [](float a, float b) { return b > a ? b : a; });
    if (inside && threadIdx.x == 0) {
      out[p * out_stride] = sum / channels;
      out[p * out_stride + 1] = maximum;
    }
  });
}

KERNEL_WITH_THREADS(channel_pool_forward, THREADS)(
    float* out,      // [pixels, 2], stride out_stride: mean, maximum
    const Element* x,  // [pixels, channels], stride x_stride
    int pixels, int channels,     // without padding
    int out_stride, int x_stride, int width) {
  if (is_wide<Element>(width)) pool<WIDE<Element>>(out, x, pixels, channels, out_stride, x_stride);
  else pool<1>(out, x, pixels, channels, out_stride, x_stride);
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// The channel of a pixel's first maximum.
template <int width> static __device__ int first_maximum(const Element* pixel, int channels) {
  float maximum = -INFINITY;
  int winner = channels;
  for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
    const Group<width> group = load<width>(pixel + c);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      if (c + k < channels && group[k] > maximum) {
        maximum = group[k];
        winner = c + k;
      }
    }
  }
  for (int distance = blockDim.x / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, maximum, distance);
    const int its_winner = __shfl_xor_sync(ALL_LANES, winner, distance);
    if (other > maximum || (other == maximum && its_winner < winner)) {
      maximum = other;
      winner = its_winner;
    }
  }
  return winner;
}

template <int width>
static __device__ void pool_backward(Element* dx, const float* dout, const Element* x, int pixels, int channels, int stored,
                                     int dx_stride, int dout_stride, int x_stride) {
  for_each_pixel_together(pixels, [&](int p, bool inside) {
    const int winner = first_maximum<width>(x + p * x_stride, channels);
    const float dmean = dout[p * dout_stride] / channels, dmaximum = dout[p * dout_stride + 1];
    if (!inside) return;
    for (int c = threadIdx.x * width; c < stored; c += blockDim.x * width) {
      Group<width> gradient;
#pragma unroll
      for (int k = 0; k < width; ++k)
        gradient[k] = c + k >= channels ? 0.0f : c + k == winner ? dmean + dmaximum : dmean;
      store(dx + p * dx_stride + c, gradient);
    }
  });
}

KERNEL_WITH_THREADS(channel_pool_backward, THREADS)(
    Element* dx,          // [pixels, stored], stride dx_stride; zero from channel `channels` on
    const float* dout,  // [pixels, 2], stride dout_stride
    const Element* x,     // [pixels, channels], stride x_stride
    int pixels, int channels,        // without padding
    int stored, int dx_stride, int dout_stride, int x_stride, int width) {
  if (is_wide<Element>(width)) pool_backward<WIDE<Element>>(dx, dout, x, pixels, channels, stored, dx_stride, dout_stride, x_stride);
  else pool_backward<1>(dx, dout, x, pixels, channels, stored, dx_stride, dout_stride, x_stride);
}
