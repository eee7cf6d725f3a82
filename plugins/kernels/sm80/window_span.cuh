// Which query rows a CTA of the portable kernel holds where heads are computed in windows.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"
#include "sm80/box_rows.cuh"
#include "sm80/tile.cuh"

namespace rainfusion::sm80 {

// What the kernel by windows takes.
struct WindowParams {
  AttentionParams attention;
  FastCut q;
  FastCut k;
  int32_t pitch;  // rows from query window to query window: whole warps, and half a CTA at least

  explicit WindowParams(const AttentionParams& params)
      : attention(params),
        q(params.q_windows),
        k(params.k_windows),
        pitch(static_cast<int32_t>(
            max64(kTileM / 2, ceil_div(params.q_windows.box.volume(), kWarpRows) * kWarpRows))) {}
};

// Rows of a head, at most kTileM: a run of tokens (sinks, which come first because they attend to
// everything and are long, or any where all heads are dense), or rows of one query window or of two
// neighbours. A warp's 32 rows lie in one window.
struct WindowSpan {
  int batch;
  int head;
  int begin;   // of a run: its first token; else the first row, counted from that of `window`
  int rows;    // of a run; 0 where there is nothing to do
  int window;  // the first one, -1 for a run
  int split;   // rows [split, kTileM) are of the second window
  BoxRows boxes[2];
  int tokens[2];  // of the two windows, which are their first rows; 0 where there is none

  static __host__ __device__ int spans(int rows) { return (rows + kTileM - 1) / kTileM; }

  // Of a head, runs and windows.
  static __host__ __device__ int runs(const WindowCut& cut, bool dense) {
    return dense ? spans(cut.tokens) : spans(cut.free_begin) + spans(cut.tokens - cut.free_end);
  }
  static __host__ __device__ int window_spans(const WindowParams& p, bool dense) {
    return dense ? 0 : spans(p.q.cut.windows() * p.pitch);
  }
  // Enough whatever the sparsity, which is on the device.
  static int most(const WindowParams& p) {
    const int dense = runs(p.q.cut, true);
    const int sparse = runs(p.q.cut, false) + window_spans(p, false);
    return dense > sparse ? dense : sparse;
  }

  // Divides a lot: one thread does it for its CTA.
  __device__ WindowSpan(const WindowParams& params, int index)
      : rows(0), window(-1), split(kTileM), boxes{BoxRows::run(), BoxRows::run()}, tokens{0, 0} {
    const AttentionParams& p = params.attention;
    const WindowCut& cut = params.q.cut;
    const bool dense = p.kind[0] == RAINFUSION_KIND_DENSE;
    const int run_ctas = p.batch * p.heads * runs(cut, dense);
    const bool run = index < run_ctas;
    const int of_head = run ? runs(cut, dense) : window_spans(params, dense);
    const int rest = run ? index : index - run_ctas;
    if (of_head == 0 || rest >= p.batch * p.heads * of_head) return;
    const int batch_head = rest / of_head;
    const int span = rest - batch_head * of_head;
    batch = batch_head / p.heads;
    head = batch_head - batch * p.heads;
    if (!run) {
      rows = kTileM;
      window = span * kTileM / params.pitch;
      begin = span * kTileM - window * params.pitch;
      split = min(params.pitch - begin, kTileM);
      for (int i = 0; i < 2 && window + i < cut.windows(); ++i) {
        const Extents at = cut.origin(window + i);
        boxes[i] = params.q.rows(at);
        tokens[i] = cut.clipped(at).volume();
      }
    } else {
      const int leading = dense ? spans(cut.tokens) : spans(cut.free_begin);
      const int last = span >= leading ? cut.tokens : dense ? cut.tokens : cut.free_begin;
      begin = span >= leading ? cut.free_end + (span - leading) * kTileM : span * kTileM;
      rows = min(kTileM, last - begin);
      tokens[0] = begin + rows;
    }
  }

  // The token of a row, if it is one: the last rows of a window may not be.
  __device__ __forceinline__ bool find(int row, int* token) const {
    const int second = row >= split;
    const int place = second ? row - split : begin + row;
    *token = boxes[second].token(place);
    return place < tokens[second];
  }

  // The first token that the CTA holds of its first or second window, INT32_MAX for none. They rise
  // from row to row.
  __device__ __forceinline__ int first_token(int second) const {
    const int row = second == 0 ? 0 : split;
    int token;
    return row < kTileM && find(row, &token) ? token : INT32_MAX;
  }
};

}  // namespace rainfusion::sm80
