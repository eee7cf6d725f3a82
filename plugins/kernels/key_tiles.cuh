// Which keys a query block attends to, as tiles.
#pragma once

#include <cuda_runtime.h>

#include "query_block.cuh"

namespace rainfusion {

// Tiles of at most kTileN keys. Walks over runs [start, stop): one run of all keys, one of places
// in the table of textural rows, or one for each block whose bit is set in a mask.
template <int kTileN>
struct KeyTiles {
  int start;
  int stop;
  int key_limit;  // kv_len
  uint32_t bits;  // blocks of the present mask word still to come
  int word;
  int words;
  const uint32_t* mask;  // in shared memory; every block in it begins before key_limit

  __device__ __forceinline__ void walk_run(int count) {
    start = 0;
    stop = count;
    word = words = 0;
    bits = 0;
  }

  __device__ __forceinline__ void walk_blocks(const uint32_t* shared_mask, int mask_words,
                                              int limit) {
    start = stop = 0;
    key_limit = limit;
    bits = 0;
    word = -1;
    words = mask_words;
    mask = shared_mask;
  }

  __device__ __forceinline__ int valid() const { return min(stop - start, kTileN); }

  __device__ __forceinline__ bool first(const BlockCut& cut) {
    return start < stop || next_block(cut);
  }

  __device__ __forceinline__ bool advance(const BlockCut& cut) {
    start += kTileN;
    return start < stop || next_block(cut);
  }

  __device__ __forceinline__ bool next_block(const BlockCut& cut) {
    while (bits == 0) {
      if (++word >= words) return false;
      bits = mask[word];
    }
    const int block = word * 32 + __ffs(bits) - 1;
    bits &= bits - 1;
    start = cut.begin(block);
    stop = min(cut.end(block), key_limit);
    return true;
  }
};

// Copies a row of a block mask to shared memory, without the blocks that begin at or past `keys`.
// Returns the number of words. Ends with a barrier.
__device__ inline int stage_mask(uint32_t* shared, const uint32_t* row, const BlockCut& cut,
                                 int keys) {
  const int blocks = cut.blocks_below(keys);
  const int words = (blocks + 31) / 32;
  for (int i = threadIdx.x; i < words; i += blockDim.x) {
    const int rest = blocks - i * 32;
    shared[i] = row[i] & (rest >= 32 ? 0xffffffffu : (1u << rest) - 1);
  }
  __syncthreads();
  return words;
}

// Chooses the walk of a query block. True if its tiles are places in the table of rows. Query
// blocks that begin past kv_len attend to nothing: their output is not specified, and 0 is cheap.
template <int kTileN>
__device__ __forceinline__ bool choose_keys(KeyTiles<kTileN>& tiles, const AttentionParams& p,
                                            const QueryBlock& q, char* list) {
  int keys = key_count(p.kv_len, q.batch, p.cut.tokens);
  if (p.cut.begin(q.block) >= keys) keys = 0;
  const int batch_head = q.batch * p.heads + q.head;
  const int kind = p.kind[batch_head];
  if (q.sink || kind == RAINFUSION_KIND_DENSE || keys == 0) {
    tiles.walk_run(keys);
    return false;
  }
  if (kind == RAINFUSION_KIND_TEXTURAL) {
    tiles.walk_run(p.textural_count[q.batch]);
    return true;
  }
  const int64_t row = static_cast<int64_t>(p.mask_index[batch_head]) * p.cut.blocks + q.block;
  uint32_t* mask = reinterpret_cast<uint32_t*>(list);
  tiles.walk_blocks(mask, stage_mask(mask, p.masks + row * p.mask_words, p.cut, keys), keys);
  return false;
}

}  // namespace rainfusion
