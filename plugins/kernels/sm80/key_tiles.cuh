// Which keys a CTA of the portable kernel attends to, as tiles.
#pragma once

#include <cuda_runtime.h>

#include "common/key_list.cuh"
#include "sm80/query_span.cuh"

namespace rainfusion::sm80 {

// A mask row in shared memory; where the CTA's rows are of two query blocks, what either keeps. No
// more than that, so that two CTAs fit where a multiprocessor has 100 KB.
using StagedMask = uint32_t[kMaxMaskWords];

// Tiles of at most kTileN keys: walks over the runs of a list, or over one run [start, stop) for
// each block whose bit is set in a mask.
template <int kTileN>
class KeyTiles {
 public:
  int start = 0;
  int stop = 0;
  bool gathered = false;
  bool mine = true;  // whether the warp's query block attends to the tile

  // Ends with a barrier where the list is a mask.
  __device__ __forceinline__ KeyTiles(const AttentionParams& p, const QuerySpan& q,
                                      const KeyList& keys, StagedMask& staged)
      : keys_(keys), staged_(staged) {
    if (keys.mask == nullptr) return;
    const int blocks = p.k_cut.blocks_below(keys.limit);
    words_ = (blocks + 31) / 32;
    for (int i = threadIdx.x; i < words_; i += kThreads) {
      const int rest = blocks - i * 32;
      const uint32_t kept = rest >= 32 ? 0xffffffffu : (1u << rest) - 1;
      const uint32_t first = keys.mask[i] & kept;
      const uint32_t second = q.blocks > 1 ? keys.mask[p.mask_words + i] & kept : first;
      staged_[i] = first | second;
    }
    if (q.blocks > 1) {
      const int row = q.begin + threadIdx.x / 32 * 32;
      own_ = keys.mask + (row >= p.q_cut.begin(q.block + 1) ? p.mask_words : 0);
    }
    __syncthreads();
  }

  __device__ __forceinline__ int valid() const { return min(stop - start, kTileN); }

  // Which columns of the present tile are keys: the first ones.
  __device__ __forceinline__ int columns() const { return valid(); }
  __device__ __forceinline__ void mask(int columns, Scores<kTileN>& s) const {
    if (columns < kTileN) mask_keys<kTileN>(s, columns);
  }

  __device__ __forceinline__ bool first(const BlockCut& cut) { return next(cut); }

  __device__ __forceinline__ bool advance(const BlockCut& cut) {
    start += kTileN;
    return start < stop || next(cut);
  }

 private:
  __device__ __forceinline__ bool next(const BlockCut& cut) {
    return keys_.mask == nullptr ? next_run() : next_block(cut);
  }

  __device__ __forceinline__ bool next_run() {
    while (run_ < KeyList::kRuns) {
      const KeyRun run = keys_.run(run_++);
      start = run.start;
      stop = run.stop;
      gathered = run.gathered;
      if (start < stop) return true;
    }
    return false;
  }

  __device__ __forceinline__ bool next_block(const BlockCut& cut) {
    while (bits_ == 0) {
      if (++word_ >= words_) return false;
      bits_ = staged_[word_];
      if (own_ != nullptr) own_bits_ = __ldg(own_ + word_);
    }
    const int bit = __ffs(bits_) - 1;
    bits_ &= bits_ - 1;
    mine = own_bits_ >> bit & 1;
    start = cut.begin(word_ * 32 + bit);
    stop = min(cut.end(word_ * 32 + bit), keys_.limit);
    return true;
  }

  const KeyList& keys_;
  StagedMask& staged_;
  uint32_t bits_ = 0;  // blocks of the present mask word still to come
  int word_ = -1;
  int words_ = 0;
  const uint32_t* own_ = nullptr;  // mask row of the warp's query block, where there are two
  uint32_t own_bits_ = 0xffffffffu;
  int run_ = 0;
};

}  // namespace rainfusion::sm80
