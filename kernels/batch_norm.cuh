// What batch norm's kernels share, those that pool beside it, too.
#pragma once

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

// out = (x - center) * scale + shift
template <int width> struct Normalisation {
  Group<width> center, scale, shift;

  __device__ __forceinline__ Group<width> operator()(Group<width> x) const {
#pragma unroll
    for (int k = 0; k < width; ++k) x[k] = (x[k] - center[k]) * scale[k] + shift[k];
    return x;
  }
};

// By the batch's statistics; inverse is 1 / sqrt(variance + epsilon). `at` is of the channels from c on.
struct ByBatch {
  const float *gamma, *beta, *mean, *inverse;

  template <int width> __device__ __forceinline__ Normalisation<width> at(int c) const {
    Normalisation<width> norm = {load<width>(mean + c), load<width>(gamma + c), load<width>(beta + c)};
    const Group<width> inverses = load<width>(inverse + c);
#pragma unroll
    for (int k = 0; k < width; ++k) norm.scale[k] *= inverses[k];
    return norm;
  }
};

// By the running ones.
struct ByRunning {
  const float *gamma, *beta, *mean, *variance;
  float epsilon;

  template <int width> __device__ __forceinline__ Normalisation<width> at(int c) const {
    Normalisation<width> norm = {{}, load<width>(gamma + c), load<width>(beta + c)};
    const Group<width> means = load<width>(mean + c), variances = load<width>(variance + c);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      norm.scale[k] /= sqrtf(variances[k] + epsilon);
      norm.shift[k] -= means[k] * norm.scale[k];
    }
    return norm;
  }
};

// ---- sums -------------------------------------------------------------------------------------------------------------

// Two sums a channel.
template <int width> struct Sums {
  Group<width> first, second;
};

template <int width> static __device__ Sums<width> plus(Sums<width> a, const Sums<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) {
    a.first[k] += b.first[k];
    a.second[k] += b.second[k];
  }
  return a;
}

// Adds what a block's threads have summed, and writes it: [chunks, 2, channels].
template <int width> static __device__ void store_sums(float* partial, Sums<width> sums, int c, int channels) {
  sums = reduce_rows(sums, plus<width>);
  if (threadIdx.y > 0 || c >= channels) return;
  float* own = partial + blockIdx.x * 2 * channels + c;
  store(own, sums.first);
  store(own + channels, sums.second);
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// dx = gamma inverse (dout - mean(dout) - x_hat mean(dout x_hat)) = factor dout + slope x + offset
template <int width> struct Slopes {
  Group<width> factor, slope, offset;

  __device__ __forceinline__ float operator()(float dout, float x, int k) const {
    return factor[k] * dout + (slope[k] * x + offset[k]);
  }
};

template <int width>
__device__ __forceinline__ Slopes<width> slopes(const float* gamma, const float* dgamma, const float* dbeta,
                                                const float* mean, const float* inverse, int pixels, int c) {
  const Group<width> center = load<width>(mean + c), inverses = load<width>(inverse + c);
  Slopes<width> all = {load<width>(gamma + c), load<width>(dgamma + c), load<width>(dbeta + c)};
  const float share = 1.0f / pixels;  // once: a division of zero, as in padded channels, takes the slow way
#pragma unroll
  for (int k = 0; k < width; ++k) {
    all.factor[k] *= inverses[k];
    all.slope[k] *= -all.factor[k] * inverses[k] * share;
    all.offset[k] = -all.factor[k] * share * all.offset[k] - all.slope[k] * center[k];
  }
  return all;
}
