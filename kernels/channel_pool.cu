// CBAM's spatial pooling: the mean and the maximum over the channels of each pixel. A pixel's channels are shared by
// neighbouring lanes; padded channels take no part.

#include "pixels.cuh"

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

template <int width>
static __device__ void pool(float* out, float* winners, const Element* x, int pixels, int channels, int out_stride,
                            int winners_stride, int x_stride) {
  for_each_pixel_together(pixels, [&](const int* p) {
    float sums[PIXELS_PER_THREAD] = {};
    Winner best[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) best[i] = {-INFINITY, 0};
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
          if (group[k] > best[i].value) best[i] = {group[k], c + k};
        }
      }
    }
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const float sum = reduce_lanes(sums[i], [](float a, float b) { return a + b; });
      for (int distance = blockDim.x / 2; distance > 0; distance /= 2) {
        const float value = __shfl_xor_sync(ALL_LANES, best[i].value, distance);
        best[i].challenge(value, __shfl_xor_sync(ALL_LANES, best[i].channel, distance));
      }
      if (threadIdx.x > 0) continue;
      out[p[i] * out_stride] = sum / channels;
      out[p[i] * out_stride + 1] = best[i].value;
      winners[p[i] * winners_stride] = best[i].channel;
    }
  });
}

KERNEL_WITH_THREADS(channel_pool_forward, THREADS)(
    float* out,        // [pixels, 2], stride out_stride: mean, maximum
    float* winners,    // [pixels, 1], stride winners_stride: the first maximum's channel
    const Element* x,  // [pixels, channels], stride x_stride
    int pixels, int channels,  // without padding
    int out_stride, int winners_stride, int x_stride, int width) {
  if (is_wide<Element>(width))
    pool<WIDE<Element>>(out, winners, x, pixels, channels, out_stride, winners_stride, x_stride);
  else pool<1>(out, winners, x, pixels, channels, out_stride, winners_stride, x_stride);
}
