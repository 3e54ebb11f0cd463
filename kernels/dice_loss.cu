// Soft Dice loss, pooled over the batch, and each sample's own: 1 - (2 S(p t) + 1) / (S(p) + S(t) + 1).

#include "pixels.cuh"

constexpr int CHUNK_PIXELS = 4096;  // of a block: 16 a thread, so that sums in f32 lose nothing that matters

// ---- forward ----------------------------------------------------------------------------------------------------------

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(dice_loss_forward_chunks, THREADS)(
    float* sums,              // [n, chunks, 2]: of p t, of p + t
    const float* prediction,  // [n, pixels]
    const float* target,      // [n, pixels]
    int pixels) {
  const int n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, CHUNK_PIXELS);
  float both = 0.0f, all = 0.0f;
  for (int i = chunk.start + threadIdx.x; i < chunk.end; i += THREADS) {
    const float p = prediction[n * pixels + i], t = target[n * pixels + i];
    both += p * t;
    all += p + t;
  }
  both = block_sum(both);
  all = block_sum(all);
  if (threadIdx.x == 0) {
    float* own = sums + (n * gridDim.x + blockIdx.x) * 2;
    own[0] = both;
    own[1] = all;
  }
}

constexpr int WARPS = THREADS / WARP_SIZE;

static __device__ __forceinline__ float dice_loss(double both, double all, float smooth) {
  return static_cast<float>(1.0 - (2.0 * both + smooth) / (all + smooth));
}

// One block; each warp takes every WARPS-th sample.
KERNEL_WITH_THREADS(dice_loss_forward, THREADS)(
    float* loss,          // [1]
    float* losses,        // [batch]
    float* total,         // [2]: numerator, denominator
    const float* sums,    // [batch, chunks, 2]
    const float* weight,  // [batch]
    int batch, int chunks,
    float smooth) {
  __shared__ double pooled[WARPS][2];
  const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
  double pooled_both = 0.0, pooled_all = 0.0;
  for (int n = warp; n < batch; n += WARPS) {
    double both = 0.0, all = 0.0;
    for (int chunk = lane; chunk < chunks; chunk += WARP_SIZE) {
      both += sums[(n * chunks + chunk) * 2];
      all += sums[(n * chunks + chunk) * 2 + 1];
    }
    both = warp_sum(both);
    all = warp_sum(all);
    pooled_both += weight[n] * both;
    pooled_all += weight[n] * all;
    if (lane == 0) losses[n] = dice_loss(both, all, smooth);
  }
  if (lane == 0) pooled[warp][0] = pooled_both, pooled[warp][1] = pooled_all;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int other = 1; other < WARPS; ++other) {
    pooled_both += pooled[other][0];
    pooled_all += pooled[other][1];
  }
  *loss = dice_loss(pooled_both, pooled_all, smooth);
  total[0] = static_cast<float>(2.0 * pooled_both + smooth);
  total[1] = static_cast<float>(pooled_all + smooth);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// d(-numerator / denominator)/dp = (numerator - 2 t denominator) / denominator^2

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(dice_loss_backward, THREADS)(
    float* dprediction,   // [n, pixels]
    const float* dloss,   // [1]
    const float* target,  // [n, pixels]
    const float* weight,  // [n]
    const float* total,   // [2]
    int pixels) {
  const int n = blockIdx.z;
  const float inverse = 1.0f / total[1], scale = weight[n] * *dloss;
  const float constant = scale * total[0] * inverse * inverse, slope = -2.0f * scale * inverse;
  for_each_pixel(pixels, [&](int p) { dprediction[n * pixels + p] = constant + slope * target[n * pixels + p]; });
}
