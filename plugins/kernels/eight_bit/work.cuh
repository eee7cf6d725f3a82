// Which rows a query block has in 8 bits, and which key tiles it attends to: the one rule of every
// 8-bit attention kernel.
#pragma once

#include "common/key_list.cuh"
#include "common/ptx.cuh"
#include "common/query_items.cuh"

namespace rainfusion::eight_bit {

// The key blocks of a head that a query block may attend to: [0, leading), [first, last) and
// [last, end) of its cut; those of a mask among them, where there is one.
struct KeyBlocks {
  const uint32_t* mask;
  int leading;
  int first;
  int last;
  int end;
  int own;  // the one with the middle token of the query block

  // Word `word` of them, a bit a block.
  __device__ __forceinline__ uint32_t word(int word) const {
    const uint32_t allowed = below(leading, word) | (below(last, word) & ~below(first, word)) |
                             (below(end, word) & ~below(last, word));
    return allowed == 0 || mask == nullptr ? allowed : allowed & mask[word];
  }
  __device__ __forceinline__ int words() const { return (end + 31) / 32; }

  // Keys near the queries go first: where their scores are the largest, references seldom move
  // later, and the heaviest key's probability is a power of two, which e4m3 has.
  __device__ __forceinline__ bool begin_with_own() const {
    return own < end && (word(own / 32) >> own % 32 & 1) != 0;
  }
  // Those that come after it.
  __device__ __forceinline__ uint32_t word_without_own(int index) const {
    return index == own / 32 ? word(index) & ~(1u << own % 32) : word(index);
  }

 private:
  static __device__ __forceinline__ uint32_t below(int block, int word) {
    const int bits = block - word * 32;
    return bits >= 32 ? ~0u : bits <= 0 ? 0 : (1u << bits) - 1;
  }
};

__device__ __forceinline__ int blocks_of(int tokens, int size) {
  return tokens > 0 ? (tokens + size - 1) / size : 0;
}

// What an item of the queue asks for. Its key tiles are those of `keys` and behind them, in whole
// tiles, the pseudo-keys of all `windows`.
struct QueryWork {
  Work work;  // but for the number of tiles, which nobody has counted
  int block;  // of its query tile
  KeyBlocks keys;
  int windows;  // 0 where the rows attend to every key, or to none

  static __device__ __forceinline__ int items(const AttentionParams& p, bool by_windows) {
    return p.batch * p.heads * (by_windows ? p.q_windows.blocks : p.q_cut.blocks);
  }

  static __device__ __forceinline__ QueryWork of_block(const AttentionParams& p, int item) {
    const QueryBlock q(p, item);
    const int begin = p.q_cut.begin(q.block);
    const KeyList keys(p, q.batch, q.head, q.block, begin, q.sink);
    const int blocks = p.k_cut.blocks_below(keys.limit);
    const int rows = p.q_cut.end(q.block) - begin;
    return {{0, q.batch, q.head, begin, rows},
            q.block,
            {keys.mask, 0, 0, blocks, blocks, p.k_cut.block_of(begin + rows / 2)},
            0};
  }

  static __device__ __forceinline__ QueryWork of_window(const AttentionParams& p, int item) {
    const WindowItem q(p, item, false);
    const WindowCut& cut = p.q_windows;
    const WindowCut& keys = p.k_windows;
    const int limit = key_count(p.kv_len, q.batch, cut.tokens);
    Work work{0, q.batch, q.head, 0, 0};
    const uint32_t* mask = nullptr;
    int stop = limit;
    int own = 0;
    if (q.window) {
      const Extents origin = cut.origin(q.block - cut.leading_sinks);
      const Extents inside = cut.clipped(origin);
      work.begin = cut.token(origin.t, origin.h, origin.w);
      work.rows = WindowRows::pack(inside);
      own = keys.block_of(
          {origin.t + inside.t / 2, origin.h + inside.h / 2, origin.w + inside.w / 2});
      const int64_t head = static_cast<int64_t>(q.batch) * p.heads + q.head;
      mask = p.masks + (head * cut.blocks + q.block) * p.mask_words;
    } else {
      work.begin = cut.run_begin(q.block);
      work.rows = cut.run_end(q.block) - work.begin;
      own = keys.run_of(work.begin + work.rows / 2);
      if (work.begin >= limit) stop = 0;
    }
    const int last = keys.leading_sinks + keys.windows();
    const int leading = blocks_of(min(keys.free_begin, stop), keys.size);
    const int trailing = blocks_of(stop - keys.free_end, keys.size);
    const bool video = stop > keys.free_begin;
    return {work,
            q.block,
            {mask, leading, keys.leading_sinks, video ? last : keys.leading_sinks,
             trailing > 0 ? last + trailing
             : video      ? last
                          : keys.leading_sinks,
             own},
            mask != nullptr && stop > 0 ? keys.windows() : 0};
  }
};

// What the score of a window's pseudo-key gets added, to base 2: -infinity behind the last window,
// and where the rows of `mask` attend to the window itself.
__device__ __forceinline__ float pseudo_bias(const AttentionParams& p, const uint32_t* mask,
                                             int batch, int window) {
  const int windows = p.k_windows.windows();
  const float* biases = p.pseudo_bias + static_cast<int64_t>(batch) * windows;
  const float to_base_2 = p.softmax_scale * kLog2E;
  const int bit = p.k_windows.leading_sinks + window;
  const bool left = window < windows && (mask[bit / 32] >> bit % 32 & 1) == 0;
  return left ? biases[window] * to_base_2 : -INFINITY;
}

}  // namespace rainfusion::eight_bit
