#include "workspace.h"

namespace rainfusion {
namespace {

constexpr int64_t kAlignment = 256;

class Cutter {
 public:
  explicit Cutter(void* base) : base_(static_cast<char*>(base)) {}

  // A part that is not needed is null.
  template <typename T>
  void cut(T** part, int64_t count) {
    *part = base_ != nullptr && count > 0 ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
  }

  size_t bytes() const { return static_cast<size_t>(bytes_); }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace

size_t lay_out_workspace(const Geometry& geometry, int head_size, void* base, Workspace* parts) {
  const int64_t heads = geometry.batch_heads();
  const int64_t blocks = geometry.cut.blocks;
  const bool sparse = !geometry.layout.always_dense();
  const bool by_blocks = geometry.method == RAINFUSION_METHOD_RAINFUSION2;
  const bool textural = sparse && !by_blocks && geometry.method != RAINFUSION_METHOD_TWO_WAY;
  const int64_t mask_words = geometry.masks() * blocks * geometry.mask_words;
  // The smallest stride, 2, has the most keys.
  const int64_t table = textural_keys(geometry.layout, 2) + kTablePadding;
  const int64_t partials = heads * kSamples * kSampleTiles * kMaxBands;
  const int64_t means = heads * blocks * head_size;

  Workspace unused;
  Workspace& w = parts != nullptr ? *parts : unused;
  Cutter cutter(base);
  cutter.cut(&w.kind, heads);
  cutter.cut(&w.mask_index, heads);
  cutter.cut(&w.next_item, 1);
  cutter.cut(&w.masks, sparse ? mask_words : 0);
  cutter.cut(&w.textural_count, geometry.batch);
  cutter.cut(&w.textural_rows, textural ? table : 0);
  cutter.cut(&w.partial_recall, sparse && !by_blocks ? partials : 0);
  cutter.cut(&w.q_means, sparse && by_blocks ? means : 0);
  cutter.cut(&w.k_means, sparse && by_blocks ? means : 0);
  return cutter.bytes();
}

}  // namespace rainfusion
