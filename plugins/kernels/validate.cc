#include "validate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "common/params.h"
#include "common/variants.h"
#include "sm80/launch.h"

namespace rainfusion {
namespace {

using std::to_string;

// A sane limit far above any GPU's memory; products of two extents stay inside 64 bits.
constexpr int64_t kMaxTokens = INT32_MAX;
constexpr int64_t kMaxTokenStrideBytes = INT64_C(1) << 30;  // kernels take it in 32 bits
constexpr int64_t kMaxBatchHeads = 65535;

std::string grid_text(const RainfusionProblem& p) {
  return "(" + to_string(p.grid_t) + ", " + to_string(p.grid_h) + ", " + to_string(p.grid_w) + ")";
}

Result validate_grid(const RainfusionProblem& p) {
  const Result result = validate_grid_extents(p);
  if (!result.ok()) return result;
  const int64_t frame = static_cast<int64_t>(p.grid_h) * p.grid_w;
  if (frame > kMaxTokens || frame * p.grid_t > kMaxTokens) {
    return invalid("grid (T, H, W) = " + grid_text(p) + " holds more than 2^31 - 1 tokens");
  }
  const int64_t video = frame * p.grid_t;
  const int64_t text = p.tokens - video;
  if (text < 0) {
    return invalid("tokens = " + to_string(p.tokens) +
                   " is less than T * H * W = " + to_string(video) + " of grid " + grid_text(p) +
                   "; pass the grid after patching or the whole sequence");
  }
  if (p.text == RAINFUSION_TEXT_NONE && text > 0) {
    return invalid(
        "tokens = " + to_string(p.tokens) + " is " + to_string(text) +
        " more than T * H * W = " + to_string(video) + " of grid " + grid_text(p) +
        ", but text is \"none\"; set text to \"first\" or \"last\", or correct the grid");
  }
  return {};
}

// "64, 96 and 128"
std::string head_sizes_text() {
  std::string text;
  for (int i = 0; i < kHeadSizeCount; ++i) {
    text += (i == 0 ? "" : i + 1 < kHeadSizeCount ? ", " : " and ") + to_string(kHeadSizes[i]);
  }
  return text;
}

Result validate_enums(const RainfusionProblem& p) {
  if (p.text < RAINFUSION_TEXT_NONE || p.text > RAINFUSION_TEXT_LAST) {
    return invalid("text = " + to_string(p.text) + " is not a RainfusionText (0, 1 or 2)");
  }
  if (p.method < 0 || p.method >= kMethodCount) {
    return invalid("method = " + to_string(p.method) + " is not a RainfusionMethod (0 to " +
                   to_string(kMethodCount - 1) + ")");
  }
  if (element_bytes(p.dtype) == 0) {
    return unsupported("dtype = " + to_string(p.dtype) +
                       " has no kernel; cast q, k and v to float16 (0) or bfloat16 (1)");
  }
  return validate_head_size(p.head_size);
}

// What 8 bits are not computed for is an error, never 16 bits instead.
Result validate_precision(const RainfusionProblem& p) {
  if (p.precision == RAINFUSION_PRECISION_16BIT) return {};
  if (p.precision != RAINFUSION_PRECISION_8BIT) {
    return invalid("precision = " + to_string(p.precision) +
                   " is not a RainfusionPrecision (0 or 1)");
  }
  if (!eight_bit::has_head_size(p.head_size)) {
    return unsupported("head_size = " + to_string(p.head_size) +
                       " has no 8-bit kernel; 64 and 128 do, use precision 16bit");
  }
  if (kMethods[p.method].traits.textural) {
    return unsupported(std::string("method ") + kMethods[p.method].name +
                       " has no 8-bit kernel: textural heads have none; use piecewise or "
                       "rainfusion2, or precision 16bit");
  }
  const BlockShape most = eight_bit::block_shape(p.head_size);
  const BlockShape blocks = block_shape(p);
  if (blocks.q > most.q || blocks.k > most.k) {
    return unsupported("blocks of " + to_string(blocks.q) + " x " + to_string(blocks.k) +
                       " have no 8-bit kernel; use at most " + to_string(most.q) + " x " +
                       to_string(most.k) + ", or precision 16bit");
  }
  return {};
}

Result validate_attributes(const RainfusionProblem& p) {
  if (p.sink_frames < 0) {
    return invalid("sink_frames = " + to_string(p.sink_frames) + " is below 0; 0 means none");
  }
  if (p.last_sink_frames < 0) {
    return invalid("last_sink_frames = " + to_string(p.last_sink_frames) +
                   " is below 0; 0 means none");
  }
  if (!(p.alpha >= 0.f && p.alpha <= 1.f)) {
    return invalid("alpha = " + to_string(p.alpha) + " is a recall and must be in [0, 1]");
  }
  if (!(p.softmax_scale >= 0.f) || std::isinf(p.softmax_scale)) {
    return invalid("softmax_scale = " + to_string(p.softmax_scale) +
                   " must be positive and finite, or 0 for 1 / sqrt(head_size)");
  }
  return {};
}

std::string range_text(const RainfusionFrames& range) {
  return "[" + to_string(range.begin) + ", " + to_string(range.end) + ")";
}

// A shape belongs to the problem and not to a GPU: it must be one that the portable kernel
// computes.
Result validate_blocks(const RainfusionProblem& p) {
  RainfusionProblem without = p;
  without.block_q = without.block_k = 0;
  const BlockShape usual = block_shape(without);
  if (p.block_k < 0) {
    return invalid("block_k = " + to_string(p.block_k) + " is below 1; 0 means the default, " +
                   to_string(usual.k) + " at head size " + to_string(p.head_size));
  }
  if (p.block_q < 0 || !sm80::runs(p.head_size, block_shape(p))) {
    return unsupported("block_q = " + to_string(p.block_q) + " has no kernel; use a multiple of " +
                       to_string(sm80::kWarpRows) + " that is at least " +
                       to_string(sm80::kTileM / 2) + ", or 0 for the default, " +
                       to_string(usual.q));
  }
  if (kMethods[p.method].traits.by_windows()) {
    const BlockShape blocks = block_shape(p);
    const bool wide = blocks.q > kMaxWindowTokens;
    if (wide || blocks.k > kMaxWindowTokens) {
      return unsupported(
          (wide ? "block_q = " + to_string(blocks.q) : "block_k = " + to_string(blocks.k)) +
          " is more than a window of method " + kMethods[p.method].name + " may have, " +
          to_string(kMaxWindowTokens) + " tokens");
    }
  }
  return {};
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

Result validate_rows(const char* name, const void* pointer, const RainfusionStrides& strides,
                     const RainfusionProblem& p) {
  if (pointer == nullptr) return invalid(std::string(name) + " is a null pointer");
  if (!aligned(pointer)) {
    return invalid(std::string(name) + " is not aligned to 16 bytes; copy it to aligned memory");
  }
  const int chunk = kChunkBytes / element_bytes(p.dtype);
  const bool in_chunks = (p.batch == 1 || strides.batch % chunk == 0) &&
                         (p.heads == 1 || strides.head % chunk == 0) && strides.token % chunk == 0;
  if (!in_chunks) {
    return invalid(std::string(name) + " has strides (batch " + to_string(strides.batch) +
                   ", head " + to_string(strides.head) + ", token " + to_string(strides.token) +
                   ") that are not all multiples of " + to_string(chunk) +
                   " elements; copy it to a contiguous tensor");
  }
  const int64_t most = kMaxTokenStrideBytes / element_bytes(p.dtype);
  if (strides.token < 0 || strides.token > most) {
    return invalid(std::string(name) + " has token stride " + to_string(strides.token) +
                   " outside [0, " + to_string(most) + "]; copy it to a contiguous tensor");
  }
  return {};
}

}  // namespace

Result validate_head_size(int32_t head_size) {
  const auto* const end = std::end(kHeadSizes);
  if (std::find(std::begin(kHeadSizes), end, head_size) != end) return {};
  return unsupported("head_size = " + to_string(head_size) + " has no kernel; kernels exist for " +
                     head_sizes_text());
}

Result validate_exact_frames(const RainfusionProblem& p) {
  int32_t behind = 0;  // the range before
  bool ended = false;
  for (const RainfusionFrames& range : p.exact_frames) {
    const bool none = range.begin == 0 && range.end == 0;
    if (!none && (ended || range.begin < behind || range.end <= range.begin)) {
      return invalid("exact_frames has " + range_text(range) +
                     ", which is empty, out of order or behind a {0, 0}; give ranges [begin, end) "
                     "in their order");
    }
    if (range.end > p.grid_t) {
      return invalid("exact_frames has " + range_text(range) + ", and the clip " +
                     to_string(p.grid_t) + " latent frames; give frames of the clip");
    }
    ended = none;
    behind = range.end;
  }
  if (p.exact_frames[0].end > 0 && kMethods[p.method].traits.textural) {
    return unsupported(std::string("method ") + kMethods[p.method].name +
                       " has no exact_frames: textural heads have none; use piecewise, "
                       "rainfusion2 or rainfusion_two_way");
  }
  return {};
}

Result validate_grid_extents(const RainfusionProblem& p) {
  if (p.grid_t >= 1 && p.grid_h >= 1 && p.grid_w >= 1) return {};
  return invalid("grid (T, H, W) = " + grid_text(p) +
                 " has a size below 1; pass the token grid after patching");
}

Result validate_problem(const RainfusionProblem& p) {
  if (p.batch < 1 || p.heads < 1) {
    return invalid("batch = " + to_string(p.batch) + " and heads = " + to_string(p.heads) +
                   " must be at least 1");
  }
  if (static_cast<int64_t>(p.batch) * p.heads > kMaxBatchHeads) {
    return invalid("batch * heads = " + to_string(static_cast<int64_t>(p.batch) * p.heads) +
                   " is above 65535; split the batch");
  }
  Result result = validate_enums(p);
  if (result.ok()) result = validate_grid(p);
  if (result.ok()) result = validate_attributes(p);
  if (result.ok()) result = validate_exact_frames(p);
  if (result.ok()) result = validate_blocks(p);
  if (result.ok()) result = validate_precision(p);
  if (!result.ok()) return result;
  const Geometry geometry(p);
  // Of the two ways to cut the tokens that methods by windows know.
  const int32_t blocks = std::max(geometry.k_blocks(), geometry.k_cut.blocks);
  if (blocks > kMaxKeyBlocks) {
    return unsupported("tokens = " + to_string(p.tokens) + " make " + to_string(blocks) +
                       " key blocks of " + to_string(geometry.k_cut.size) + "; at most " +
                       to_string(kMaxKeyBlocks) + " are supported, split the sequence");
  }
  return {};
}

Result validate_tensors(const RainfusionProblem& problem, const RainfusionTensors& tensors,
                        bool attention) {
  Result result = validate_rows("q", tensors.q, tensors.q_strides, problem);
  if (result.ok()) result = validate_rows("k", tensors.k, tensors.k_strides, problem);
  if (result.ok() && attention) {
    result = validate_rows("v", tensors.v, tensors.v_strides, problem);
    if (result.ok()) result = validate_rows("out", tensors.out, tensors.out_strides, problem);
  }
  if (result.ok() && tensors.sparsity == nullptr) {
    return invalid("sparsity is a null pointer; it is a float32 on the device, 0 for dense");
  }
  return result;
}

}  // namespace rainfusion
