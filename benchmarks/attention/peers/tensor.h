#pragma once

#include <cstdint>

// [batch, heads, rows, columns], whose columns lie one after another; bindings.py has its twin.
struct PeerTensor {
  void* data;
  int64_t batch_stride, head_stride, row_stride;  // in elements
};
