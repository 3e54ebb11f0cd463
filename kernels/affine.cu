// out = x * scale + offset, a scale and an offset for each channel: what batch norm's statistics add to a gradient. The
// tensors are channel slices of NHWC buffers: element (p, c) of a slice lies at p * stride + c.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width, bool adds>
static __device__ void affine_groups(Element* out, const Element* x, const float* scale, const float* offset, int pixels,
                                     int channels, int out_stride, int x_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  const Group<width> scales = load<width>(scale + c), offsets = load<width>(offset + c);
  for_each_pixel(
      pixels,
      [&](int p) {
        StoredPair<width, Element> pair = {load_stored<width>(x + p * x_stride + c)};
        if constexpr (adds) pair.b = load_stored<width>(out + p * out_stride + c);
        return pair;
      },
      [&](int p, const StoredPair<width, Element>& pair) {
        Group<width> value = floats(pair.a);
#pragma unroll
        for (int k = 0; k < width; ++k) {
          value[k] = value[k] * scales[k] + offsets[k];
          if constexpr (adds) value[k] += to_float(pair.b.values[k]);
        }
        store(out + p * out_stride + c, value);
      });
}

KERNEL_WITH_THREADS(affine_forward, THREADS)(
    Element* out,         // [pixels, channels], stride out_stride
    const Element* x,     // [pixels, channels], stride x_stride
    const float* scale,   // [channels]
    const float* offset,  // [channels]
    int pixels, int channels, int out_stride, int x_stride, int width) {
  if (is_wide<Element>(width))
    affine_groups<WIDE<Element>, false>(out, x, scale, offset, pixels, channels, out_stride, x_stride);
  else affine_groups<1, false>(out, x, scale, offset, pixels, channels, out_stride, x_stride);
}

// out += x * scale + offset
KERNEL_WITH_THREADS(affine_add, THREADS)(
    Element* out,         // [pixels, channels], stride out_stride
    const Element* x,     // [pixels, channels], stride x_stride
    const float* scale,   // [channels]
    const float* offset,  // [channels]
    int pixels, int channels, int out_stride, int x_stride, int width) {
  if (is_wide<Element>(width))
    affine_groups<WIDE<Element>, true>(out, x, scale, offset, pixels, channels, out_stride, x_stride);
  else affine_groups<1, true>(out, x, scale, offset, pixels, channels, out_stride, x_stride);
}
