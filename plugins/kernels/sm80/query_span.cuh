// Which query rows a CTA of the portable kernel holds.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"
#include "sm80/tile.cuh"

namespace rainfusion::sm80 {

// Rows [begin, begin + rows) of a head, at most kTileM: sinks, which come first because they attend
// to everything and are long, or rows of one query block or of two neighbours. A warp's 32 rows lie
// in one block, whose size they divide.
struct QuerySpan {
  int batch;
  int head;
  int begin;
  int rows;
  int block;   // of the first row
  int blocks;  // 1 or 2; 1 for sinks, whose block does not matter
  bool sink;

  static __host__ __device__ int before(const BlockCut& cut) {
    return cut.leading_sinks > 0 ? cut.end(cut.leading_sinks - 1) : 0;
  }
  static __host__ __device__ int after(const BlockCut& cut) {
    return cut.trailing_sinks > 0 ? cut.begin(cut.blocks - cut.trailing_sinks) : cut.tokens;
  }
  static __host__ __device__ int spans(int rows) { return (rows + kTileM - 1) / kTileM; }
  static __host__ __device__ int sink_spans(const BlockCut& cut) {
    return spans(before(cut)) + spans(cut.tokens - after(cut));
  }
  static __host__ __device__ int sparse_spans(const BlockCut& cut) {
    return spans(after(cut) - before(cut));
  }
  static __host__ __device__ int count(const BlockCut& cut) {
    return sink_spans(cut) + sparse_spans(cut);
  }

  __device__ QuerySpan(const AttentionParams& p, int index) : block(0), blocks(1) {
    const BlockCut& cut = p.q_cut;
    const int sink_ctas = p.batch * p.heads * sink_spans(cut);
    sink = index < sink_ctas;
    const int of_head = sink ? sink_spans(cut) : sparse_spans(cut);
    const int rest = sink ? index : index - sink_ctas;
    batch = rest / of_head / p.heads;
    head = rest / of_head % p.heads;
    int span = rest % of_head;
    int first = 0;
    int last = before(cut);
    if (!sink) {
      first = last;
      last = after(cut);
    } else if (span >= spans(last)) {
      span -= spans(last);
      first = after(cut);
      last = cut.tokens;
    }
    begin = first + span * kTileM;
    rows = min(kTileM, last - begin);
    if (!sink) {
      block = cut.leading_sinks + span * kTileM / cut.size;
      blocks += (span * kTileM + rows - 1) / cut.size - span * kTileM / cut.size;
    }
  }
};

// Offset in bytes of the first row of a span's head.
template <typename Element, typename Span>
__device__ __forceinline__ int64_t head_offset(const RainfusionStrides& strides, const Span& q) {
  return ElementTraits<Element>::kBytes * (q.batch * strides.batch + q.head * strides.head);
}

}  // namespace rainfusion::sm80
