// The best of a warp's scores as bits of a mask row, exactly: what select_blocks.cu and
// select_windows.cu share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rainfusion {

// Unsigned integers in the order of the floats.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The `keep`-th largest of a warp's scores, found from its highest bit down.
inline __device__ uint32_t kth_largest(const uint32_t* scores, int blocks, int keep) {
  uint32_t threshold = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = threshold | 1u << bit;
    int count = 0;
    for (int k = threadIdx.x % 32; k < blocks; k += 32) count += scores[k] >= candidate;
    if (__reduce_add_sync(0xffffffffu, count) >= keep) threshold = candidate;
  }
  return threshold;
}

// Lowest `count` set bits of a word.
inline __device__ uint32_t lowest_bits(uint32_t word, int count) {
  if (__popc(word) <= count) return word;
  uint32_t kept = 0;
  for (int i = 0; i < count; ++i) {
    kept |= word & (~word + 1);
    word &= word - 1;
  }
  return kept;
}

// Mask row of a warp: the `keep` largest of `count` scores, the first ones of equals, and the
// blocks of which `always` says so. Score i is that of block first + i; `scored` says which blocks
// have one. `keep` is at most how many scores are not 0.
template <typename Scored, typename Always>
__device__ void write_mask_row(const uint32_t* scores, int count, int keep, int first,
                               const Scored& scored, const Always& always, int words,
                               uint32_t* row) {
  const int lane = threadIdx.x % 32;
  const uint32_t threshold = keep > 0 ? kth_largest(scores, count, keep) : 0xffffffffu;
  int above = 0;
  for (int i = lane; i < count; i += 32) above += scores[i] > threshold;
  int ties = keep - __reduce_add_sync(0xffffffffu, above);
  for (int word = 0; word < words; ++word) {
    const int block = word * 32 + lane;
    const uint32_t score = scored(block) ? scores[block - first] : 0;
    const bool candidate = keep > 0 && scored(block);
    const uint32_t larger = __ballot_sync(0xffffffffu, candidate && score > threshold);
    const uint32_t equal = lowest_bits(__ballot_sync(0xffffffffu, candidate && score == threshold),
                                       ties > 0 ? ties : 0);
    const uint32_t kept_always = __ballot_sync(0xffffffffu, always(block));
    ties -= __popc(equal);
    if (lane == 0) row[word] = larger | equal | kept_always;
  }
}

}  // namespace rainfusion
