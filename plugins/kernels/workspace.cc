#include "workspace.h"

#include "common/element.h"

namespace rainfusion {
namespace {

constexpr int64_t kAlignment = 256;

class Cutter {
 public:
  explicit Cutter(void* base) : base_(static_cast<char*>(base)) {}

  // A part that is not needed is null.
  template <typename T>
  void cut(T** part, int64_t count) {
    void* start = nullptr;
    cut_bytes(&start, count * static_cast<int64_t>(sizeof(T)));
    *part = static_cast<T*>(start);
  }

  void cut_bytes(void** part, int64_t bytes) {
    *part = base_ != nullptr && bytes > 0 ? base_ + bytes_ : nullptr;
    bytes_ += ceil_div(bytes, kAlignment) * kAlignment;
  }

  size_t bytes() const { return static_cast<size_t>(bytes_); }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace

size_t lay_out_workspace(const Geometry& geometry, void* base, Workspace* parts) {
  const int64_t heads = geometry.batch_heads();
  const bool sparse = !geometry.layout.always_dense();
  const bool by_blocks = geometry.method.by_blocks();
  const int64_t mask_words = geometry.mask_rows() * geometry.mask_words;
  const int64_t partials = heads * kAxes * kSampleTiles * kMaxBands;
  const int64_t row = heads * geometry.head_size;  // elements of a token or block, all heads
  const int64_t gathered_bytes = element_bytes(geometry.dtype) * row * geometry.gathered_rows();

  Workspace unused;
  Workspace& w = parts != nullptr ? *parts : unused;
  Cutter cutter(base);
  cutter.cut(&w.kind, heads);
  cutter.cut(&w.mask_index, heads);
  cutter.cut(&w.next_item, 1);
  cutter.cut(&w.masks, sparse ? mask_words : 0);
  cutter.cut(&w.gathered_count, geometry.batch);
  cutter.cut_bytes(&w.gathered_k, gathered_bytes);
  cutter.cut_bytes(&w.gathered_v, gathered_bytes);
  cutter.cut(&w.partial_recall, sparse && !by_blocks ? partials : 0);
  cutter.cut(&w.q_means, sparse && by_blocks ? row * geometry.q_cut.blocks : 0);
  cutter.cut(&w.k_means, sparse && by_blocks ? row * geometry.k_cut.blocks : 0);
  return cutter.bytes();
}

}  // namespace rainfusion
