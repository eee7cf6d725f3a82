// What a CTA of the portable kernel knows of its keys where heads are computed in windows.
#pragma once

#include <cuda_runtime.h>

#include "sm80/box_rows.cuh"
#include "sm80/key_value_copy.cuh"
#include "sm80/window_span.cuh"

namespace rainfusion::sm80 {

// Rows of a whole key window to tokens, counted from its first one: of the windows that 128 keys
// are enough for. Larger ones find their rows by arithmetic.
template <int kTileN>
using BoxTable = int32_t[(128 + kTileN - 1) / kTileN * kTileN];

template <int kRows>
__device__ __forceinline__ void fill_table(int32_t (&table)[kRows], const FastCut& cut) {
  const BoxRows rows = cut.rows(Extents{0, 0, 0});
  for (int row = threadIdx.x; row < kRows; row += kThreads) {
    table[row] = rows.token(row) - rows.first;
  }
}

// In shared memory, because registers are full; one thread writes it.
struct WindowKeys {
  // Of the head, and of its pseudo-keys.
  RowSource<int32_t> keys[2];
  RowSource<int32_t> values[2];
  const uint32_t* mask;  // mask row of the first query window that has keys, null for a run
  const float* bias;     // of the batch element's pseudo-keys
  int32_t other;         // words to the mask row of the other query window, 0 for none
  int32_t limit;         // kv_len, 0 for rows that begin past it
  int32_t before;        // run [0, before)
  int32_t after;         // run [after, limit)

  template <typename Element, int kHeadSize>
  static __device__ WindowKeys of(const WindowParams& params, const WindowSpan& q) {
    constexpr int kBytes = ElementTraits<Element>::kBytes;
    const AttentionParams& p = params.attention;
    WindowKeys keys{};
    keys.keys[0] = {static_cast<const char*>(p.k) + head_offset<Element>(p.k_strides, q),
                    static_cast<int32_t>(kBytes * p.k_strides.token)};
    keys.values[0] = {static_cast<const char*>(p.v) + head_offset<Element>(p.v_strides, q),
                      static_cast<int32_t>(kBytes * p.v_strides.token)};
    const int64_t head = q.batch * p.heads + q.head;
    const int64_t pseudo_keys = head * p.gathered_rows * kHeadSize * kBytes;
    keys.keys[1] = {static_cast<const char*>(p.gathered_k) + pseudo_keys, kHeadSize * kBytes};
    keys.values[1] = {static_cast<const char*>(p.gathered_v) + pseudo_keys, kHeadSize * kBytes};
    const int limit = key_count(p.kv_len, q.batch, params.k.cut.tokens);
    const bool first = q.first_token(0) < limit;
    const bool second = q.first_token(1) < limit;
    if (!first && !second) return keys;  // nothing is asked of rows past kv_len
    keys.limit = limit;
    if (q.window < 0) {
      keys.before = keys.after = limit;
      return keys;
    }
    keys.before = min(p.free_begin, limit);
    keys.after = min(p.free_end, limit);
    const int row = params.q.cut.leading_sinks + q.window + (first ? 0 : 1);
    keys.mask = p.masks + (p.mask_index[head] * static_cast<int64_t>(params.q.cut.blocks) + row) *
                              p.mask_words;
    keys.bias = p.pseudo_bias + static_cast<int64_t>(q.batch) * params.k.cut.windows();
    keys.other = first && second ? p.mask_words : 0;
    return keys;
  }
};

}  // namespace rainfusion::sm80
