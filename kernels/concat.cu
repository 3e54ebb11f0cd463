// A copy into a concatenation, or with other padding. Concatenation itself moves nothing.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void copy(Element* out, const Element* x, int pixels, int channels, int x_channels, int out_stride,
                            int x_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(
      pixels, [&](int p) { return c < x_channels ? load_stored<width>(x + p * x_stride + c) : Stored<width, Element>{}; },
      [&](int p, const Stored<width, Element>& stored) { store(out + p * out_stride + c, floats(stored)); });
}

KERNEL_WITH_THREADS(concat_copy, THREADS)(
    Element* out,      // [pixels, channels], stride out_stride; zero from channel x_channels on
    const Element* x,  // [pixels, x_channels], stride x_stride
    int pixels, int channels, int x_channels, int out_stride, int x_stride, int width) {
  if (is_wide<Element>(width)) copy<WIDE<Element>>(out, x, pixels, channels, x_channels, out_stride, x_stride);
  else copy<1>(out, x, pixels, channels, x_channels, out_stride, x_stride);
}

// From a tensor of few channels, which is stored in full, into padded ones. `width` is WIDE<Element>.
KERNEL_WITH_THREADS(concat_copy_from_full, THREADS)(
    Element* out,    // [pixels, channels], stride out_stride; zero from channel x_channels on
    const float* x,  // [pixels, x_channels], stride x_stride
    int pixels, int channels, int x_channels, int out_stride, int x_stride) {
  constexpr int width = WIDE<Element>;
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(pixels, [&](int p) {
    Group<width> group;
#pragma unroll
    for (int k = 0; k < width; ++k) group[k] = c + k < x_channels ? x[p * x_stride + c + k] : 0.0f;
    store(out + p * out_stride + c, group);
  });
}

// And back.
KERNEL_WITH_THREADS(concat_copy_to_full, THREADS)(
    float* out,        // [pixels, channels], stride out_stride
    const Element* x,  // [pixels, at least as many], stride x_stride
    int pixels, int channels, int out_stride, int x_stride) {
  const int c = first_channel<1>();
  if (c < channels) for_each_pixel(pixels, [&](int p) { out[p * out_stride + c] = to_float(x[p * x_stride + c]); });
}
