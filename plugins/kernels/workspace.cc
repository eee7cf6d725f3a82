#include "workspace.h"

#include <algorithm>

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

// What the sizes of the parts follow from. Each grows with every one of these.
struct Sizes {
  int64_t batch;
  int64_t heads;      // of all batch elements
  int64_t row_bytes;  // of a token of one head
  int64_t head_size;
  int64_t mask_words;  // of all masks
  int64_t partial_recalls;
  int64_t gathered_rows;  // of a head
  int64_t q_means;        // of a head
  int64_t k_means;
  int64_t pseudo_keys;  // of a batch element
  bool eight_bit;
  int64_t tokens;
  int64_t q_tiles;  // of a head
  int64_t k_tiles;
};

// Those of a problem, without what depends on its blocks or windows.
Sizes common_sizes(const Geometry& geometry) {
  const int64_t heads = geometry.batch_heads();
  const bool asks_arm = !geometry.always_dense() && geometry.method.bands > 0;
  return {geometry.batch,
          heads,
          int64_t{element_bytes(geometry.dtype)} * geometry.head_size,
          geometry.head_size,
          0,
          asks_arm ? heads * kAxes * kSampleTiles * kMaxBands : 0,
          geometry.gathered_rows(),
          0,
          0,
          0,
          geometry.eight_bit,
          geometry.layout.tokens,
          geometry.q_tiles(),
          geometry.k_tiles()};
}

Sizes sizes_of(const Geometry& geometry) {
  Sizes sizes = common_sizes(geometry);
  if (geometry.always_dense()) return sizes;
  sizes.mask_words = geometry.mask_rows() * geometry.mask_words;
  if (geometry.method.by_windows()) {
    sizes.q_means = geometry.q_windows.windows();
    sizes.k_means = sizes.pseudo_keys = geometry.k_windows.windows();
  } else if (geometry.method.by_blocks()) {
    sizes.q_means = geometry.q_cut.blocks;
    sizes.k_means = geometry.k_cut.blocks;
  }
  return sizes;
}

void lay_out_eight_bit(const Sizes& sizes, Cutter& cutter, EightBit* parts) {
  using namespace eight_bit;
  const int64_t q_rows = sizes.heads * sizes.q_tiles * kQueries;
  const int64_t k_bytes =
      sizes.heads * sizes.k_tiles * sizes.head_size * keys_of(static_cast<int>(sizes.head_size));
  const int64_t numbers = sizes.heads * sizes.head_size;
  cutter.cut(&parts->q, q_rows * sizes.head_size);
  cutter.cut(&parts->k, k_bytes);
  cutter.cut(&parts->v, k_bytes);
  cutter.cut(&parts->q_factor, q_rows);
  cutter.cut(&parts->k_tile, sizes.heads * sizes.k_tiles);
  cutter.cut(&parts->lse_shift, sizes.heads * sizes.tokens);
  cutter.cut(&parts->partials, numbers * kPartials * ceil_div(sizes.tokens, kStatisticsTokens));
  cutter.cut(&parts->centres, numbers * kCentres);
  cutter.cut(&parts->rounded_sums, numbers * sizes.k_tiles);
}

size_t lay_out(const Sizes& sizes, void* base, Workspace* parts) {
  const int64_t gathered_bytes = sizes.heads * sizes.row_bytes * sizes.gathered_rows;
  const int64_t row = sizes.heads * sizes.head_size;  // elements of a token or block, all heads

  Workspace unused;
  Workspace& w = parts != nullptr ? *parts : unused;
  Cutter cutter(base);
  cutter.cut(&w.kind, sizes.heads);
  cutter.cut(&w.mask_index, sizes.heads);
  cutter.cut(&w.next_item, 1);
  cutter.cut(&w.masks, sizes.mask_words);
  cutter.cut(&w.gathered_count, sizes.batch);
  cutter.cut_bytes(&w.gathered_k, gathered_bytes);
  cutter.cut_bytes(&w.gathered_v, gathered_bytes);
  cutter.cut(&w.partial_recall, sizes.partial_recalls);
  cutter.cut(&w.q_means, row * sizes.q_means);
  cutter.cut(&w.k_means, row * sizes.k_means);
  cutter.cut(&w.pseudo_bias, sizes.batch * sizes.pseudo_keys);
  if (sizes.eight_bit) lay_out_eight_bit(sizes, cutter, &w.eight_bit);
  return cutter.bytes();
}

// Of every valid problem by windows whose sizes are each at most those of `largest`.
//
// Windows. None of them has more non-sink frames than `largest`, nor rows or columns, nor tokens:
// most_windows() is the bound for just that. A valid problem has at most kMaxKeyBlocks key blocks.
//
// Runs of sinks. Those before the first non-sink token and those behind the last make at most
// ceil(a / size) + ceil(b / size) <= ceil((a + b) / size) + 1 blocks, and a + b are less than the
// tokens. Without text they are `sink_frames` and `last_sink_frames` of at least two frames more.
Sizes largest_sizes(const RainfusionProblem& largest) {
  RainfusionProblem one = largest;  // its tokens in a frame, for all that is no matter of the grid
  one.grid_t = one.grid_h = 1;
  one.grid_w = largest.tokens;
  Sizes sizes = common_sizes(Geometry(one));
  const BlockShape size = block_shape(largest);
  sizes.q_tiles = ceil_div(largest.tokens, size.q) + 1;  // text and video each from its first token
  sizes.k_tiles = ceil_div(largest.tokens, size.k) + 1;
  const int64_t sink_frames = int64_t{largest.sink_frames} + largest.last_sink_frames;
  const int64_t frames = largest.grid_t - min64(sink_frames, largest.grid_t);
  if (frames < 2) return sizes;  // every one is always dense
  const Extents grid{static_cast<int32_t>(frames), largest.grid_h, largest.grid_w};
  const int64_t sinks = largest.text != RAINFUSION_TEXT_NONE
                            ? largest.tokens
                            : largest.tokens * sink_frames / (sink_frames + 2);
  const auto most = [&](int32_t block) {
    const int64_t usual = most_windows(grid, largest.tokens, block, kMostFrames);
    if (!exact_frames(largest).any()) return usual;  // else whether they are sinks the clip says
    return max64(usual, most_windows(grid, largest.tokens, block, kMostFramesBesideExact));
  };
  const int64_t q_windows = most(size.q);
  const int64_t k_windows = min64(kMaxKeyBlocks, most(size.k));
  const int64_t q_blocks = q_windows + ceil_div(sinks, size.q) + 1;
  const int64_t k_blocks = min64(kMaxKeyBlocks, k_windows + ceil_div(sinks, size.k) + 1);
  sizes.mask_words = sizes.heads * q_blocks * ceil_div(k_blocks, 32);
  sizes.q_means = q_windows;
  sizes.k_means = sizes.pseudo_keys = sizes.gathered_rows = k_windows;
  sizes.q_tiles = max64(sizes.q_tiles, q_blocks);
  sizes.k_tiles =
      max64(sizes.k_tiles, k_blocks + ceil_div(k_windows, eight_bit::keys_of(largest.head_size)));
  return sizes;
}

}  // namespace

size_t lay_out_workspace(const Geometry& geometry, void* base, Workspace* parts) {
  return lay_out(sizes_of(geometry), base, parts);
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
  std::fill_n(frame.exact_frames, RAINFUSION_EXACT_RANGES, RainfusionFrames{});
  result = validate_problem(frame);
  if (result.ok()) result = validate_exact_frames(largest);  // of all frames
  if (!result.ok()) return result;
  if (kMethods[largest.method].traits.by_windows()) {
    *bytes = lay_out(largest_sizes(largest), nullptr, nullptr);
    return {};
  }

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
