// Mass of attention among sampled tokens: online sums over tiles of scores, whatever instruction
// made them.
#pragma once

#include "common/ptx.cuh"

namespace rainfusion {

// How far (in powers of two) scores may pass a row's reference before it is moved: rarely.
constexpr float kMassSlack = 8.f;

// Sums of a thread's kRows rows, of its own columns: all mass, and the mass inside each band. Rows
// are eight apart.
template <int kBands, int kRows>
struct Mass {
  float maximum[kRows];  // reference of the exponentials, not always the largest score
  float all[kRows];
  float inside[kBands][kRows];

  __device__ __forceinline__ Mass() : all{}, inside{} {
#pragma unroll
    for (int r = 0; r < kRows; ++r) maximum[r] = -INFINITY;
  }

  // Adds a tile. score(r, n, i) is that of row r and column n * 8 + i of the thread's, which begin
  // at `first_distance` from each other; a row's first tile holds a sampled key.
  template <int kColumns, typename Score>
  __device__ __forceinline__ void add(const Score& score, int first_distance,
                                      const int (&widths)[kBands], float scale_log2) {
    follow<kColumns>(score, scale_log2);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float reference = maximum[r] * scale_log2;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float p = exp2_fast(fmaf(score(r, n, i), scale_log2, -reference));
          const int distance = first_distance + r * 8 - n * 8 - i;
          all[r] += p;
#pragma unroll
          for (int b = 0; b < kBands; ++b) {
            if (abs(distance) < widths[b]) inside[b][r] += p;
          }
        }
      }
    }
  }

 private:
  // Moves the references, and the sums with them, where a row of the warp has passed its own.
  template <int kColumns, typename Score>
  __device__ __forceinline__ void follow(const Score& score, float scale_log2) {
    float largest[kRows];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      largest[r] = score(r, 0, 0);
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        largest[r] = fmaxf(largest[r], fmaxf(score(r, n, 0), score(r, n, 1)));
      }
      largest[r] = quad_max(largest[r]);
      grown |= (largest[r] - maximum[r]) * scale_log2 > kMassSlack;
    }
    if (!__any_sync(0xffffffffu, grown)) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float larger = fmaxf(maximum[r], largest[r]);
      const float factor = exp2_fast((maximum[r] - larger) * scale_log2);
      maximum[r] = larger;
      all[r] *= factor;
#pragma unroll
      for (int b = 0; b < kBands; ++b) inside[b][r] *= factor;
    }
  }
};

// Sum over the CTA's queries below `count` of the share inside each band; `first_row` is the
// thread's first. `shared` holds kBands * kWarps sums.
template <int kWarps, int kBands, int kRows>
__device__ void write_partial(const Mass<kBands, kRows>& mass, int first_row, int count,
                              float* shared, float* partial) {
#pragma unroll
  for (int b = 0; b < kBands; ++b) {
    float recall = 0.f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float all = quad_sum(mass.all[r]);
      const float inside = quad_sum(mass.inside[b][r]);
      if (first_row + r * 8 < count) recall += inside / all;
    }
#pragma unroll
    for (int lane = 4; lane < 32; lane *= 2) recall += __shfl_xor_sync(0xffffffffu, recall, lane);
    if (threadIdx.x % 32 == 0) shared[b * kWarps + threadIdx.x / 32] = recall;
  }
  __syncthreads();
  if (threadIdx.x < kBands) {
    const float* sums = shared + threadIdx.x * kWarps;
    float sum = 0.f;
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp];
    partial[threadIdx.x] = sum;
  }
}

}  // namespace rainfusion
