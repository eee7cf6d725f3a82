// Which query block an item of the queue is, and how its rows are told to whom computes them.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"

namespace rainfusion {

// What is computed next: a query block.
struct Work {
  static constexpr int kEnd = -1;

  int tiles;  // of keys, 0 where the block attends to nothing; kEnd after the last block
  int batch;
  int head;
  int begin;  // its first token
  int rows;   // and how many it has
};

// The `rows` of a query window: what of its box lies in the grid, a byte for each extent and the
// sign for a mark, because a register more would not fit. `begin` of such work is the window's
// first token.
struct WindowRows {
  static __device__ __forceinline__ int pack(const Extents& inside) {
    return INT32_MIN | inside.t << 16 | inside.h << 8 | inside.w;
  }
  static __device__ __forceinline__ bool is_window(int rows) { return rows < 0; }
  static __device__ __forceinline__ bool hold(int rows, const Extents& at) {
    return at.t < (rows >> 16 & 0x7fff) && at.h < (rows >> 8 & 0xff) && at.w < (rows & 0xff);
  }
};

// Which query block an item of the queue is. Blocks of sink tokens attend to everything and come
// first, so that no long block is left for the end; the others follow head by head, for the L2
// cache.
struct QueryBlock {
  int batch;
  int head;
  int block;
  bool sink;

  __device__ QueryBlock(const AttentionParams& p, int item) {
    const int sinks = p.q_cut.sinks();
    const int sink_items = p.batch * p.heads * sinks;
    sink = item < sink_items;
    const int blocks = sink ? sinks : p.q_cut.blocks - sinks;
    const int rest = sink ? item : item - sink_items;
    const int batch_head = rest / blocks;
    batch = batch_head / p.heads;
    head = batch_head % p.heads;
    block = rest % blocks;
    if (!sink) {
      block += p.q_cut.leading_sinks;
    } else if (block >= p.q_cut.leading_sinks) {
      block += p.q_cut.blocks - sinks;
    }
  }
};

// Which query block an item of the queue is. Runs of sinks attend to everything and come first, so
// that no long block is left for the end; windows follow head by head, for the L2 cache.
struct WindowItem {
  int batch;
  int head;
  int block;  // of the window cut; of the raster where heads are dense
  bool window;

  __device__ WindowItem(const AttentionParams& p, int item, bool dense) {
    const int sinks = p.q_windows.sinks();
    const int sink_items = dense ? 0 : p.batch * p.heads * sinks;
    const bool sink = item < sink_items;
    const int blocks = dense ? p.q_cut.blocks : sink ? sinks : p.q_windows.windows();
    const int rest = sink ? item : item - sink_items;
    const int batch_head = rest / blocks;
    batch = batch_head / p.heads;
    head = batch_head % p.heads;
    block = rest % blocks;
    window = !dense && !sink;
    if (window) {
      block += p.q_windows.leading_sinks;
    } else if (sink && block >= p.q_windows.leading_sinks) {
      block += p.q_windows.windows();
    }
  }
};

}  // namespace rainfusion
