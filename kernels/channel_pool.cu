// CBAM's spatial pooling: the mean and the maximum over the channels of each pixel. A pixel's channels are shared by
// neighbouring lanes; padded channels take no part.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void pool(float* out, const Element* x, int pixels, int channels, int out_stride, int x_stride) {
  for_each_pixel_together(pixels, [&](const int* p) {
    float sums[PIXELS_PER_THREAD] = {}, maxima[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) maxima[i] = -INFINITY;
    for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
      Stored<width, Element> loaded[PIXELS_PER_THREAD];
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i) loaded[i] = load_stored<width>(x + p[i] * x_stride + c);
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
        const Group<width> group = floats(loaded[i]);
#pragma unroll
        for (int k = 0; k < width; ++k) {
          if (c + k >= channels) continue;
          sums[i] += group[k];
          if (group[k] > maxima[i]) maxima[i] = group[k];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const float sum = reduce_lanes(sums[i], [](float a, float b) { return a + b; });
      const float maximum = reduce_lanes(maxima[i], [](float a, float b) { return b > a ? b : a; });
      if (threadIdx.x > 0) continue;
      out[p[i] * out_stride] = sum / channels;
      out[p[i] * out_stride + 1] = maximum;
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

// A channel and its value.
struct Winner {
  float value;
  int channel;

  // Of equal values the first channel's wins.
  __device__ __forceinline__ void challenge(float other, int its_channel) {
    if (!(other > value || (other == value && its_channel < channel))) return;
    value = other;
    channel = its_channel;
  }
};

// The channels of some pixels' first maxima.
template <int width>
static __device__ void find_winners(Winner* winners, const Element* x, const int* p, int channels, int x_stride) {
#pragma unroll
  for (int i = 0; i < PIXELS_PER_THREAD; ++i) winners[i] = {-INFINITY, channels};
  for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
    Stored<width, Element> loaded[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) loaded[i] = load_stored<width>(x + p[i] * x_stride + c);
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const Group<width> group = floats(loaded[i]);
#pragma unroll
      for (int k = 0; k < width; ++k)
        if (c + k < channels && group[k] > winners[i].value) winners[i] = {group[k], c + k};
    }
  }
#pragma unroll
  for (int i = 0; i < PIXELS_PER_THREAD; ++i)
    for (int distance = blockDim.x / 2; distance > 0; distance /= 2) {
      const float value = __shfl_xor_sync(ALL_LANES, winners[i].value, distance);
      winners[i].challenge(value, __shfl_xor_sync(ALL_LANES, winners[i].channel, distance));
    }
}

// What stands in `added` is added, unless its stride is 0; then the gradient is zero where x is, if that ends in a ReLU.
template <int width>
static __device__ void pool_backward(Element* dx, const float* dout, const Element* x, const Element* added, int pixels,
                                     int channels, int stored, int dx_stride, int dout_stride, int x_stride,
                                     int added_stride, int masked) {
  const float share = 1.0f / channels;
  for_each_pixel_together(pixels, [&](const int* p) {
    float dmean[PIXELS_PER_THREAD], dmaximum[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i)
      dmean[i] = dout[p[i] * dout_stride] * share, dmaximum[i] = dout[p[i] * dout_stride + 1];
    Winner winners[PIXELS_PER_THREAD];
    find_winners<width>(winners, x, p, channels, x_stride);
    for (int c = threadIdx.x * width; c < stored; c += blockDim.x * width) {
      Stored<width, Element> others[2], values[2];  // of all pixels they would take too many registers
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
#pragma unroll
        for (int j = 0; i % 2 == 0 && j < 2; ++j) {
          if (added_stride) others[j] = load_stored<width>(added + p[i + j] * added_stride + c);
          if (masked) values[j] = load_stored<width>(x + p[i + j] * x_stride + c);
        }
        Group<width> gradient, other, value;
        if (added_stride) other = floats(others[i % 2]);
        if (masked) value = floats(values[i % 2]);
#pragma unroll
        for (int k = 0; k < width; ++k) {
          gradient[k] = c + k == winners[i].channel ? dmean[i] + dmaximum[i] : dmean[i];
          if (added_stride) gradient[k] += other[k];
          if (c + k >= channels || (masked && !(value[k] > 0.0f))) gradient[k] = 0.0f;
        }
        store(dx + p[i] * dx_stride + c, gradient);
      }
    }
  });
}

KERNEL_WITH_THREADS(channel_pool_backward, THREADS)(
    Element* dx,          // [pixels, stored], stride dx_stride; zero from channel `channels` on
    const float* dout,  // [pixels, 2], stride dout_stride
    const Element* x,     // [pixels, channels], stride x_stride
    const Element* added,  // as dx, stride added_stride; not read where that is 0
    int pixels, int channels,        // without padding
    int stored, int dx_stride, int dout_stride, int x_stride, int added_stride, int width,
    int masked) {  // 0 or 1
  if (is_wide<Element>(width))
    pool_backward<WIDE<Element>>(dx, dout, x, added, pixels, channels, stored, dx_stride, dout_stride, x_stride,
                                 added_stride, masked);
  else
    pool_backward<1>(dx, dout, x, added, pixels, channels, stored, dx_stride, dout_stride, x_stride, added_stride, masked);
}
