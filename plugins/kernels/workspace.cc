#include "workspace.h"

#include "common/element.h"
#include "validate.h"

namespace rainfusion {
namespace {

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
    bytes_ += ceil_div(bytes, RAINFUSION_WORKSPACE_ALIGNMENT) * RAINFUSION_WORKSPACE_ALIGNMENT;
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

Result bound_workspace(const RainfusionProblem& largest, size_t* bytes) {
  Result result = validate_grid_extents(largest);
  if (!result.ok()) return result;
  if (largest.tokens < 1) {
    return invalid("tokens = " + std::to_string(largest.tokens) + " must be at least 1");
  }
  // All tokens in one frame: are the attributes valid, and is that many tokens within the limits?
  RainfusionProblem frame = largest;
  frame.grid_t = 1;
  frame.grid_h = 1;
  frame.grid_w = largest.tokens;
  result = validate_problem(frame);
  if (!result.ok()) return result;

  // The workspace grows with batch * heads, with the blocks and with the checkerboard keys. Of all
  // problems with at most S tokens in at most T frames, none has more of either than one of T
  // frames of 1 x w, w the first odd number of at least S / T, and a token of text:
  //
  // Blocks. Any cut of s <= S tokens into text and video makes at most ceil(s / size) + 1 blocks.
  // This one makes 1 + ceil(T * w / size), and T * w >= S.
  //
  // Checkerboard keys. t frames of h * w' tokens, f of them sinks, have at most
  // (t - f) * (h * w' + 1) / 2 at the smallest stride, 2. Since t <= T and t * h * w' <= S,
  //   (t - f) * h * w' = t * h * w' * (1 - f / t) <= S * (1 - f / T) <= (T - f) * w,
  // and (T - f) * (w + 1) / 2 is what T frames of 1 x w have, w being odd.
  const int64_t frames = min64(largest.grid_t, largest.tokens);
  const int64_t width = ceil_div(largest.tokens, frames) | 1;
  if (frames * width >= INT32_MAX) {
    return unsupported("tokens = " + std::to_string(largest.tokens) + " in " +
                       std::to_string(frames) +
                       " frames are too many to bound their workspace; split the sequence");
  }
  RainfusionProblem widest = largest;
  widest.text = RAINFUSION_TEXT_FIRST;
  widest.grid_t = static_cast<int32_t>(frames);
  widest.grid_h = 1;
  widest.grid_w = static_cast<int32_t>(width);
  widest.tokens = widest.grid_t * widest.grid_w + 1;
  *bytes = lay_out_workspace(Geometry(widest), nullptr, nullptr);
  return {};
}

}  // namespace rainfusion
