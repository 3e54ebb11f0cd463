// Soft Dice loss, pooled over the batch, and each sample's own: 1 - (2 S(p t) + 1) / (S(p) + S(t) + 1).

#include "pooled_loss.cuh"

struct DiceLoss {
  static __device__ __forceinline__ Two<float> terms(float p, float t) { return {p * t, p + t}; }
  static __device__ __forceinline__ Two<double> fraction(Two<double> sums, float smooth) {
    return {2.0 * sums.first + smooth, sums.second + smooth};
  }
  static __device__ __forceinline__ double of(Two<double> fraction) { return 1.0 - fraction.first / fraction.second; }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(dice_loss_forward_chunks, THREADS)(CHUNK_PARAMETERS) {
  sum_chunk<DiceLoss>(sums, prediction, target, pixels);
}

KERNEL_WITH_THREADS(dice_loss_forward, THREADS)(POOL_PARAMETERS) {
  pool_samples<DiceLoss>(loss, losses, total, sums, weight, batch, chunks, smooth);
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
