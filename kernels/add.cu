// Residual addition: out = a + b, or relu(a + b). The tensors are channel slices of NHWC buffers: the pixels of an image
// batch are numbered 0 .. pixels - 1 (n, h, w together), and element (p, c) of a slice lies at p * stride + c.

#include "common.cuh"

// ---- helpers ----------------------------------------------------------------------------------------------------------

// Keeps NaN, which fmaxf would hide.
static __device__ __forceinline__ float rectify(float x, bool relu) { return relu && x < 0.0f ? 0.0f : x; }

// ---- forward ----------------------------------------------------------------------------------------------------------
// A grid-stride loop: any grid, any block. Elements go by fours when every pixel's slice starts at a multiple of 16 bytes.

KERNEL(add_forward_f32)(
    float* __restrict__ out,      // [pixels, channels], stride out_stride
    const float* __restrict__ a,  // [pixels, channels], stride a_stride
    const float* __restrict__ b,  // [pixels, channels], stride b_stride
    int pixels, int channels, int out_stride, int a_stride, int b_stride,
    int relu) {  // 0 or 1
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  if ((channels | out_stride | a_stride | b_stride) % 4 == 0 && is_aligned16(out) && is_aligned16(a) && is_aligned16(b)) {
    const int quads = channels / 4;
    for (long long i = first; i < static_cast<long long>(pixels) * quads; i += step) {
      const long long p = i / quads;
      const int c = static_cast<int>(i % quads) * 4;
      const Vector16<float> x = load16(a + p * a_stride + c), y = load16(b + p * b_stride + c);
      Vector16<float> sum;
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] = rectify(x[k] + y[k], relu);
      store16(out + p * out_stride + c, sum);
    }
    return;
  }
  for (long long i = first; i < static_cast<long long>(pixels) * channels; i += step) {
    const long long p = i / channels;
    const int c = static_cast<int>(i % channels);
    out[p * out_stride + c] = rectify(a[p * a_stride + c] + b[p * b_stride + c], relu);
  }
}
