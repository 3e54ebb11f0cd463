// A loss that is made of two sums over pixels, pooled over the batch, and each sample's own. A loss type says
//   terms(p, t)             what a pixel adds to the two sums
//   fraction(sums, smooth)  numerator and denominator of the loss
//   of(fraction)            the loss
#pragma once

#include "pixels.cuh"

constexpr int CHUNK_PIXELS = 4096;  // of a block: 16 a thread, so that sums in f32 lose nothing that matters
constexpr int WARPS = THREADS / WARP_SIZE;

template <class T> struct Two {
  T first, second;
};

// ---- a block for each chunk (x) and sample (z) ------------------------------------------------------------------------

// sums: [n, chunks, 2]; prediction, target: [n, pixels]
#define CHUNK_PARAMETERS float *sums, const float *prediction, const float *target, int pixels

template <class Loss> __device__ __forceinline__ void sum_chunk(CHUNK_PARAMETERS) {
  const int n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, CHUNK_PIXELS);
  Two<float> sum = {0.0f, 0.0f};
  for (int i = chunk.start + threadIdx.x; i < chunk.end; i += THREADS) {
    const Two<float> terms = Loss::terms(prediction[n * pixels + i], target[n * pixels + i]);
    sum.first += terms.first;
    sum.second += terms.second;
  }
  sum.first = block_sum(sum.first);
  sum.second = block_sum(sum.second);
  if (threadIdx.x == 0) {
    float* own = sums + (n * gridDim.x + blockIdx.x) * 2;
    own[0] = sum.first;
    own[1] = sum.second;
  }
}

// ---- one block; each warp takes every WARPS-th sample -----------------------------------------------------------------

// loss: [1]; losses: [batch]; total: [2], numerator and denominator; sums: [batch, chunks, 2]; weight: [batch]
#define POOL_PARAMETERS                                                                                      \
  float *loss, float *losses, float *total, const float *sums, const float *weight, int batch, int chunks, \
      float smooth

template <class Loss> __device__ __forceinline__ void pool_samples(POOL_PARAMETERS) {
  __shared__ Two<double> of_warp[WARPS];
  const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
  Two<double> pooled = {0.0, 0.0};
  for (int n = warp; n < batch; n += WARPS) {
    Two<double> sample = {0.0, 0.0};
    for (int chunk = lane; chunk < chunks; chunk += WARP_SIZE) {
      sample.first += sums[(n * chunks + chunk) * 2];
      sample.second += sums[(n * chunks + chunk) * 2 + 1];
    }
    sample.first = warp_sum(sample.first);
    sample.second = warp_sum(sample.second);
    pooled.first += weight[n] * sample.first;
    pooled.second += weight[n] * sample.second;
    if (lane == 0) losses[n] = static_cast<float>(Loss::of(Loss::fraction(sample, smooth)));
  }
  if (lane == 0) of_warp[warp] = pooled;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int other = 1; other < WARPS; ++other) {
    pooled.first += of_warp[other].first;
    pooled.second += of_warp[other].second;
  }
  const Two<double> fraction = Loss::fraction(pooled, smooth);
  *loss = static_cast<float>(Loss::of(fraction));
  total[0] = static_cast<float>(fraction.first);
  total[1] = static_cast<float>(fraction.second);
}
