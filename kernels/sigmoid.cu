// The logistic function: out = 1 / (1 + exp(-x)).

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(sigmoid_forward, THREADS)(
    Element* out,      // [pixels, channels], stride out_stride; may be x
    const Element* x,  // [pixels, channels], stride x_stride
    int pixels, int channels, int out_stride, int x_stride, int width) {
  map(out, x, pixels, channels, out_stride, x_stride, width, [](float x) { return 1.0f / (1.0f + expf(-x)); });
}

// ---- backward ---------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(sigmoid_backward, THREADS)(
    Element* dx,          // [pixels, channels], stride dx_stride; may be dout
    const Element* dout,  // [pixels, channels], stride dout_stride
    const Element* out,   // [pixels, channels], stride out_stride
    int pixels, int channels, int dx_stride, int dout_stride, int out_stride, int width) {
  zip(dx, dout, out, pixels, channels, dx_stride, dout_stride, out_stride, width,
      [](float dout, float out) { return dout * out * (1.0f - out); });
}
