// Residual addition: out = a + b, or relu(a + b). The tensors are channel slices of NHWC buffers: the pixels of an image
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
