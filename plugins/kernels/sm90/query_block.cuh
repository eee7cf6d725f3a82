// Which query block an item of the queue is.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"

namespace rainfusion::sm90 {

// Blocks of sink tokens attend to everything and come first, so that no long block is left for the
// end; the others follow head by head, for the L2 cache.
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

}  // namespace rainfusion::sm90
