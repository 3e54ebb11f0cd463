// Residual addition: out = a + b, or relu(a + b). The tensors are channel slices of NHWC buffers: the pixels of an image
// batch are numbered 0 .. pixels - 1 (n, h, w together), and element (p, c) of a slice lies at p * stride + c.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void add(float* out, const float* a, const float* b, int pixels, int channels, int out_stride,
                           int a_stride, int b_stride, bool relu) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(pixels, [&](int p) {
    const Group<width> x = load<width>(a + p * a_stride + c), y = load<width>(b + p * b_stride + c);
    Group<width> sum;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      sum[k] = x[k] + y[k];
      if (relu && !(sum[k] > 0.0f)) sum[k] = 0.0f;
    }
    store(out + p * out_stride + c, sum);
  });
}

KERNEL_WITH_THREADS(add_forward_f32, THREADS)(
    float* out,                      // [pixels, channels], stride out_stride; may be a or b
    const float* a, const float* b,  // [pixels, channels], strides a_stride, b_stride
    int pixels, int channels, int out_stride, int a_stride, int b_stride, int width,
    int relu) {  // 0 or 1
  if (width == 4) add<4>(out, a, b, pixels, channels, out_stride, a_stride, b_stride, relu);
  else add<1>(out, a, b, pixels, channels, out_stride, a_stride, b_stride, relu);
}
