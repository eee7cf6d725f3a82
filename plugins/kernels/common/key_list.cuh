// Which keys a query block attends to: the one rule of every attention kernel and of the report.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"

namespace rainfusion {

// Keys [start, stop) of K and V, or of what was gathered of them.
struct KeyRun {
  int start;
  int stop;
  bool gathered;
};

// The keys of one query block: the blocks of a mask, or runs.
struct KeyList {
  static constexpr int kRuns = 3;

  const uint32_t* mask;  // null for runs
  int limit;             // kv_len, 0 for rows that begin past it
  int before;            // run [0, before)
  int gathered;          // gathered keys [0, gathered)
  int after;             // run [after, limit)

  // Of `block`, or of a part of it that begins at token `begin`; `sink` if the block holds a sink
  // token. Rows that begin past kv_len attend to nothing: their output is not specified.
  __device__ KeyList(const AttentionParams& p, int batch, int head, int block, int begin, bool sink)
      : mask(nullptr), limit(key_count(p.kv_len, batch, p.q_cut.tokens)), gathered(0) {
    if (begin >= limit) limit = 0;
    before = after = limit;
    const int batch_head = batch * p.heads + head;
    const int kind = p.kind[batch_head];
    if (sink || kind == RAINFUSION_KIND_DENSE || limit == 0) return;
    if (kind == RAINFUSION_KIND_TEXTURAL) {
      before = min(p.free_begin, limit);
      gathered = p.gathered_count[batch];
      after = min(p.free_end, limit);
    } else {
      const int64_t row = static_cast<int64_t>(p.mask_index[batch_head]) * p.q_cut.blocks + block;
      mask = p.masks + row * p.mask_words;
    }
  }

  __device__ __forceinline__ KeyRun run(int index) const {
    if (index == 0) return {0, before, false};
    if (index == 1) return {0, gathered, true};
    return {after, limit, false};
  }

  // How many they are, counted by one thread.
  __device__ int64_t count(const BlockCut& cut) const {
    int64_t keys = 0;
    if (mask == nullptr) {
      for (int i = 0; i < kRuns; ++i) keys += run(i).stop - run(i).start;
      return keys;
    }
    for (int k = 0; k < cut.blocks && cut.begin(k) < limit; ++k) {
      if (mask[k / 32] >> k % 32 & 1) keys += min(cut.end(k), limit) - cut.begin(k);
    }
    return keys;
  }

  // Tiles of a key block's size that hold them, counted by one thread.
  __device__ int64_t tiles(const BlockCut& cut) const {
    int64_t count = 0;
    if (mask == nullptr) {
      for (int i = 0; i < kRuns; ++i) {
        count += ceil_div(max(0, run(i).stop - run(i).start), cut.size);
      }
      return count;
    }
    for (int k = 0; k < cut.blocks && cut.begin(k) < limit; ++k)
      count += mask[k / 32] >> k % 32 & 1;
    return count;
  }
};

}  // namespace rainfusion
