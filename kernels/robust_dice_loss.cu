// Noise-robust Dice loss, pooled over the batch, and each sample's own: S(|p - t|^1.5) / (S(p^2 + t^2) + 1).

#include "pooled_loss.cuh"

struct RobustDiceLoss {
  static __device__ __forceinline__ Two<float> terms(float p, float t) {
    const float distance = fabsf(p - t);
    return {distance * sqrtf(distance), p * p + t * t};
  }
  static __device__ __forceinline__ Two<double> fraction(Two<double> sums, float smooth) {
    return {sums.first, sums.second + smooth};
  }
  static __device__ __forceinline__ double of(Two<double> fraction) { return fraction.first / fraction.second; }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(robust_dice_loss_forward_chunks, THREADS)(CHUNK_PARAMETERS) {
  sum_chunk<RobustDiceLoss>(sums, prediction, target, pixels);
}

KERNEL_WITH_THREADS(robust_dice_loss_forward, THREADS)(POOL_PARAMETERS) {
  pool_samples<RobustDiceLoss>(loss, losses, total, sums, weight, batch, chunks, smooth);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// d(numerator / denominator)/dp = (1.5 |d|^0.5 sign(d) - 2 p numerator / denominator) / denominator, d = p - t

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(robust_dice_loss_backward, THREADS)(
    float* dprediction,       // [n, pixels]
    const float* dloss,       // [1]
    const float* prediction,  // [n, pixels]
    const float* target,      // [n, pixels]
    const float* weight,      // [n]
    const float* total,       // [2]
    int pixels) {
  const int n = blockIdx.z;
  const float inverse = 1.0f / total[1], scale = weight[n] * *dloss;
  const float slope = 1.5f * scale * inverse, constant = 2.0f * scale * total[0] * inverse * inverse;
  for_each_pixel(pixels, [&](int i) {
    const float p = prediction[n * pixels + i], difference = p - target[n * pixels + i];
    dprediction[n * pixels + i] = slope * copysignf(sqrtf(fabsf(difference)), difference) - constant * p;
  });
}
