// A copy into a concatenation, or with other padding. Concatenation itself moves nothing.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void copy(float* out, const float* x, int pixels, int channels, int x_channels, int out_stride,
                            int x_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(
      pixels, [&](int p) { return c < x_channels ? load<width>(x + p * x_stride + c) : Group<width>{}; },
      [&](int p, const Group<width>& group) { store(out + p * out_stride + c, group); });
}

KERNEL_WITH_THREADS(concat_copy_f32, THREADS)(
    float* out,      // [pixels, channels], stride out_stride; zero from channel x_channels on
    const float* x,  // [pixels, x_channels], stride x_stride
    int pixels, int channels, int x_channels, int out_stride, int x_stride, int width) {
  if (width == 4) copy<4>(out, x, pixels, channels, x_channels, out_stride, x_stride);
  else copy<1>(out, x, pixels, channels, x_channels, out_stride, x_stride);
}
