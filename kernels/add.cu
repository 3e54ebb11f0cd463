// Addition: out = a + b, or relu(a + b), or a + b where a mask is above 0. The tensors are channel slices of NHWC buffers: the pixels of an image
// batch are numbered 0 .. pixels - 1 (n, h, w together), and element (p, c) of a slice lies at p * stride + c.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(add_forward, THREADS)(
    Element* out,                    // [pixels, channels], stride out_stride; may be a or b
    const Element* a, const Element* b,  // [pixels, channels], strides a_stride, b_stride
    int pixels, int channels, int out_stride, int a_stride, int b_stride, int width,
    int relu) {  // 0 or 1
  zip(out, a, b, pixels, channels, out_stride, a_stride, b_stride, width, [&](float x, float y) {
    const float sum = x + y;
    return relu && !(sum > 0.0f) ? 0.0f : sum;
  });
}

// ---- the sum of a masked tensor's gradients ---------------------------------------------------------------------------

template <int width>
static __device__ void add_groups(Element* out, const Element* a, const Element* b, const Element* mask, int pixels,
                                  int channels, int out_stride, int a_stride, int b_stride, int mask_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  struct Three {
    Stored<width, Element> a, b, mask;
  };
  for_each_pixel(
      pixels,
      [&](int p) {
        return Three{load_stored<width>(a + p * a_stride + c), load_stored<width>(b + p * b_stride + c),
                     load_stored<width>(mask + p * mask_stride + c)};
      },
      [&](int p, const Three& three) {
        Group<width> sum = floats(three.a);
        const Group<width> other = floats(three.b), mask = floats(three.mask);
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] = mask[k] > 0.0f ? sum[k] + other[k] : 0.0f;
        store(out + p * out_stride + c, sum);
      });
}

KERNEL_WITH_THREADS(add_masked, THREADS)(
    Element* out,                        // [pixels, channels], stride out_stride; may be a or b
    const Element* a, const Element* b,  // [pixels, channels], strides a_stride, b_stride
    const Element* mask,                 // [pixels, channels], stride mask_stride
    int pixels, int channels, int out_stride, int a_stride, int b_stride, int mask_stride, int width) {
  if (is_wide<Element>(width))
    add_groups<WIDE<Element>>(out, a, b, mask, pixels, channels, out_stride, a_stride, b_stride, mask_stride);
  else add_groups<1>(out, a, b, mask, pixels, channels, out_stride, a_stride, b_stride, mask_stride);
}
