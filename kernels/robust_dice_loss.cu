// Noise-robust Dice loss, pooled over the batch, and each sample's own: S(|p - t|^1.5) / (S(p^2 + t^2) + 1).

#include "pixels.cuh"

constexpr int CHUNK_PIXELS = 4096;  // of a block: 16 a thread, so that sums in f32 lose nothing that matters

// ---- forward ----------------------------------------------------------------------------------------------------------

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(robust_dice_loss_forward_chunks_f32, THREADS)(
    float* sums,              // [n, chunks, 2]: of |p - t|^1.5, of p^2 + t^2
    const float* prediction,  // [n, pixels]
    const float* target,      // [n, pixels]
    int pixels) {
  const int n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, CHUNK_PIXELS);
  float difference = 0.0f, squares = 0.0f;
  for (int i = chunk.start + threadIdx.x; i < chunk.end; i += THREADS) {
    const float p = prediction[n * pixels + i], t = target[n * pixels + i], distance = fabsf(p - t);
    difference += distance * sqrtf(distance);
    squares += p * p + t * t;
  }
  difference = block_sum(difference);
  squares = block_sum(squares);
  if (threadIdx.x == 0) {
    float* own = sums + (n * gridDim.x + blockIdx.x) * 2;
    own[0] = difference;
    own[1] = squares;
  }
}

constexpr int WARPS = THREADS / WARP_SIZE;

// One block; each warp takes every WARPS-th sample.
KERNEL_WITH_THREADS(robust_dice_loss_forward_f32, THREADS)(
    float* loss,          // [1]
    float* losses,        // [batch]
    float* total,         // [2]: numerator, denominator
    const float* sums,    // [batch, chunks, 2]
    const float* weight,  // [batch]
    int batch, int chunks,
    float smooth) {
  __shared__ double pooled[WARPS][2];
  const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
  double pooled_difference = 0.0, pooled_squares = 0.0;
  for (int n = warp; n < batch; n += WARPS) {
    double difference = 0.0, squares = 0.0;
    for (int chunk = lane; chunk < chunks; chunk += WARP_SIZE) {
      difference += sums[(n * chunks + chunk) * 2];
      squares += sums[(n * chunks + chunk) * 2 + 1];
    }
    difference = warp_sum(difference);
    squares = warp_sum(squares);
    pooled_difference += weight[n] * difference;
    pooled_squares += weight[n] * squares;
    if (lane == 0) losses[n] = static_cast<float>(difference / (squares + smooth));
  }
  if (lane == 0) pooled[warp][0] = pooled_difference, pooled[warp][1] = pooled_squares;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int other = 1; other < WARPS; ++other) {
    pooled_difference += pooled[other][0];
    pooled_squares += pooled[other][1];
  }
  *loss = static_cast<float>(pooled_difference / (pooled_squares + smooth));
  total[0] = static_cast<float>(pooled_difference);
  total[1] = static_cast<float>(pooled_squares + smooth);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// d(numerator / denominator)/dp = (1.5 |d|^0.5 sign(d) - 2 p numerator / denominator) / denominator, d = p - t

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(robust_dice_loss_backward_f32, THREADS)(
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
