// CBAM's channel attention map: out[n] = sigmoid(x[n] + x[batch + n]). A few thousand elements.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(channel_gate_forward, THREADS)(
    float* out,      // [batch, channels], stride out_stride; zero from channel `used` on
    const float* x,  // [2 batch, channels], stride x_stride: of the means, then of the maxima
    int batch, int channels, int used, int out_stride, int x_stride) {
  const int c = first_channel<1>();
  if (c >= channels) return;
  for_each_pixel(batch, [&](int n) {
    const float sum = x[n * x_stride + c] + x[(batch + n) * x_stride + c];
    out[n * out_stride + c] = c < used ? 1.0f / (1.0f + expf(-sum)) : 0.0f;
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(channel_gate_backward, THREADS)(
    float* dx,          // [2 batch, channels], stride dx_stride
    const float* dout,  // [batch, channels], stride dout_stride
    const float* out,   // [batch, channels], stride out_stride
    int batch, int channels, int dx_stride, int dout_stride, int out_stride) {
  const int c = first_channel<1>();
  if (c >= channels) return;
  for_each_pixel(batch, [&](int n) {
    const float gate = out[n * out_stride + c], gradient = dout[n * dout_stride + c] * gate * (1.0f - gate);
    dx[n * dx_stride + c] = gradient;
    dx[(batch + n) * dx_stride + c] = gradient;
  });
}
