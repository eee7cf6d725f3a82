#include <memory>

#include "checks.h"
#include "common/geometry.h"
#include "common/windows.h"
#include "device.h"
#include "rainfusion_layer.h"
#include "reference.h"
#include "suite.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

// Odd on every axis; the text and the last video block are short.
constexpr Size kClip{2, 2, 5, 9, 11, 37, 64};

// TensorRT cuts workspaces out of a larger one, on 16-byte borders as far as seen.
constexpr size_t kMisalignment = 16;

// Largest relative error of an output. q, k and v are exact in both computations; what differs is
// the rounding of the probabilities and of the output to 16 bits, 2^-9 in bf16 and 2^-11 in fp16
// with random signs. The bounds are some four times that.
double tolerance(DataType type) { return type == DataType::kBF16 ? 1e-2 : 2e-3; }

// Rounding to 8 bits costs below .04 on random normal tensors (docs/rainfusion.md); some four
// times that.
constexpr double kEightBitTolerance = 0.15;

const char* name_of(DataType type) { return type == DataType::kBF16 ? "bf16" : "fp16"; }

// A layer with its engine, its inputs and its buffers on the device.
class Layer {
 public:
  Layer(trt_host::PluginLibrary& library, const Size& size, DataType type, const std::string& text,
        const std::string& method, const std::vector<int32_t>& lengths, uint32_t seed,
        float late_gain = 1.0F, int64_t bits = 0, int32_t last_sink_frames = 0,
        const std::vector<int32_t>& exact_frames = {})
      : size(size),
        type(type),
        lengths(lengths),
        q(random_numbers(count(), type, seed)),
        k(with_late_gain(random_numbers(count(), type, seed + 1), size, type, late_gain)),
        v(random_numbers(count(), type, seed + 2)),
        q_(q.bits),
        k_(k.bits),
        v_(v.bits),
        out_(count() * sizeof(uint16_t)),
        sparsity_(std::vector<float>{0.0F}),
        kv_len_(lengths),
        bits_(16 * sizeof(float)),
        has_bits_(bits > 0) {
    Fields attributes = make_attributes(text, method);
    std::vector<Range> inputs = make_inputs(size, type, !lengths.empty());
    std::vector<Dims> shapes = size.inputs(!lengths.empty());
    if (has_bits_) {
      attributes.text("precision", "8bit");
      inputs.push_back({{1, {8}}, {1, {8}}, {1, {16}}, DataType::kFLOAT});
      shapes.push_back({1, {bits}});
    }
    if (last_sink_frames > 0) attributes.number("last_sink_frames", last_sink_frames);
    if (!exact_frames.empty()) attributes.integers("exact_frames", exact_frames);
    Builder builder(rainfusion_creator(library), attributes);
    Engine engine;
    const std::string step = builder.build(inputs, &engine);
    if (!step.empty()) throw std::runtime_error("refused at " + step + library.log().all());
    workspace_ = std::make_unique<DeviceBuffer>(engine.workspace + kMisalignment);
    context_ = std::make_unique<Context>(rainfusion_creator(library), engine);
    if (!*context_ || !context_->set_shapes(shapes)) {
      throw std::runtime_error("no context" + library.log().all());
    }
    out_.fill(0xFF);  // NaN, so that a row that is not written shows
  }

  void set_sparsity(float sparsity) { sparsity_.upload(std::vector<float>{sparsity}); }

  bool enqueue(const Stream& stream) {
    std::vector<const void*> inputs{q_.get(), k_.get(), v_.get(), nullptr, sparsity_.get()};
    if (!lengths.empty()) inputs.push_back(kv_len_.get());
    if (has_bits_) inputs.push_back(bits_.get());
    auto* const workspace = static_cast<char*>(workspace_->get()) + kMisalignment;
    return context_->enqueue(inputs, out_.get(), workspace, stream.get());
  }

  std::vector<uint16_t> output() const { return out_.download<uint16_t>(); }
  size_t count() const { return size.batch * size.heads * size.tokens() * size.head_size; }

  // The library's own word on which block pairs its heads keep, [B, N, q_blocks, k_blocks].
  std::vector<uint8_t> block_mask(trt_host::PluginLibrary& library, RainfusionProblem problem,
                                  int64_t block_pairs) {
    DeviceBuffer mask(static_cast<size_t>(size.batch * size.heads * block_pairs));
    RainfusionPlan plan{};
    plan.block_mask = mask.as<uint8_t>();
    const RainfusionStrides strides{size.heads * size.tokens() * size.head_size,
                                    size.tokens() * size.head_size, size.head_size};
    RainfusionTensors tensors{};
    tensors.q = q_.get();
    tensors.k = k_.get();
    tensors.q_strides = tensors.k_strides = strides;
    tensors.sparsity = sparsity_.as<float>();
    tensors.kv_len = lengths.empty() ? nullptr : kv_len_.as<int32_t>();
    size_t bytes = 0;
    library.symbol<decltype(rainfusion_workspace_size)>("rainfusion_workspace_size")(&problem,
                                                                                     &bytes);
    DeviceBuffer workspace(bytes);
    auto* const classify = library.symbol<decltype(rainfusion_classify)>("rainfusion_classify");
    const Stream stream;
    if (classify(&problem, &tensors, &plan, workspace.get(), bytes, stream.get()) !=
        RAINFUSION_SUCCESS) {
      throw std::runtime_error("rainfusion_classify failed");
    }
    stream.synchronize();
    return mask.download<uint8_t>();
  }

  Size size;
  DataType type;
  std::vector<int32_t> lengths;
  Numbers q;
  Numbers k;
  Numbers v;

 private:
  DeviceBuffer q_;
  DeviceBuffer k_;
  DeviceBuffer v_;
  DeviceBuffer out_;
  DeviceBuffer sparsity_;
  DeviceBuffer kv_len_;
  DeviceBuffer bits_;  // never read
  bool has_bits_;
  std::unique_ptr<DeviceBuffer> workspace_;
  std::unique_ptr<Context> context_;
};

std::vector<uint16_t> run(Layer& layer, float sparsity) {
  const Stream stream;
  layer.set_sparsity(sparsity);
  if (!layer.enqueue(stream)) throw std::runtime_error("enqueue failed");
  stream.synchronize();
  return layer.output();
}

// Where two outputs differ first and how often, for a reader; empty if nowhere.
std::string first_difference(const std::vector<uint16_t>& found,
                             const std::vector<uint16_t>& expected, const Size& size) {
  size_t count = 0;
  std::string first;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found[i] == expected[i]) continue;
    if (count++ > 0) continue;
    const size_t row = i / static_cast<size_t>(size.head_size);
    const auto tokens = static_cast<size_t>(size.tokens());
    first = "head " + std::to_string(row / tokens) + ", token " + std::to_string(row % tokens) +
            ": bits " + std::to_string(found[i]) + ", not " + std::to_string(expected[i]);
  }
  return count == 0 ? first : std::to_string(count) + " elements differ; " + first;
}

void expect_near(Report& report, const Layer& layer, const std::vector<uint16_t>& output,
                 const std::vector<float>& expected, const std::string& what) {
  const double error =
      relative_error(layer.size, to_floats(output, layer.type), expected, layer.lengths);
  report.expect(error <= tolerance(layer.type),
                what + " " + name_of(layer.type) + ": relative error " + std::to_string(error));
}

void check_dense(trt_host::PluginLibrary& library, Report& report) {
  report.begin("dense");
  for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
    for (const int64_t head_size : {64, 96, 128}) {
      for (const std::string text : {"none", "first", "last"}) {
        for (const bool cut : {false, true}) {
          Size size = kClip;
          size.head_size = head_size;
          if (text == "none") size.text_tokens = 0;
          const int32_t tokens = static_cast<int32_t>(size.tokens());
          const std::vector<int32_t> lengths =
              cut ? std::vector<int32_t>{tokens, tokens - 21} : std::vector<int32_t>{};
          Layer layer(library, size, type, text, "rainfusion", lengths, 1);
          const auto keep = [&](int64_t batch, int64_t, int64_t, int64_t key) {
            return lengths.empty() || key < lengths[batch];
          };
          expect_near(report, layer, run(layer, 0.0F),
                      attention(size, layer.q.values, layer.k.values, layer.v.values, keep),
                      "D=" + std::to_string(head_size) + " text=" + text);
        }
      }
    }
  }
}

// Scores that rise by some tens, then by hundreds, when most keys have been seen: references of the
// online softmax move, and exponentials overflow.
void check_rising_scores(trt_host::PluginLibrary& library, Report& report) {
  report.begin("rising scores");
  for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
    for (const int64_t head_size : {64, 96, 128}) {
      for (const float gain : {8.0F, 64.0F}) {
        Size size = kClip;
        size.head_size = head_size;
        const int32_t tokens = static_cast<int32_t>(size.tokens());
        const std::vector<int32_t> lengths{tokens, tokens - 21};
        Layer layer(library, size, type, "last", "rainfusion", lengths, 51, gain);
        const auto keep = [&](int64_t batch, int64_t, int64_t, int64_t key) {
          return key < lengths[batch];
        };
        expect_near(report, layer, run(layer, 0.0F),
                    attention(size, layer.q.values, layer.k.values, layer.v.values, keep),
                    "D=" + std::to_string(head_size) + " gain=" + std::to_string(gain));
      }
    }
  }
}

// The block that each token is in.
std::vector<int64_t> blocks_of_tokens(const rainfusion::BlockCut& cut) {
  std::vector<int64_t> blocks;
  for (int32_t i = 0; i < cut.blocks; ++i) blocks.resize(cut.end(i), i);
  return blocks;
}

// Sinks at the end of the clip: where there are some is tested at one head size.
int32_t last_sinks_of(int64_t head_size) { return head_size == 96 ? 2 : 0; }

// Exact frames of 13: where there are some is tested at another head size. The first is a sink.
std::vector<int32_t> exact_frames_of(int64_t head_size) {
  return head_size == 128 ? std::vector<int32_t>{0, 1, 6, 7} : std::vector<int32_t>{};
}

rainfusion::ExactFrames set_exact_frames(RainfusionProblem& problem,
                                         const std::vector<int32_t>& numbers) {
  rainfusion::ExactFrames frames{};
  for (size_t i = 0; i < numbers.size() / 2; ++i) {
    problem.exact_frames[i] = {numbers[2 * i], numbers[2 * i + 1]};
    frames.ranges[i] = {numbers[2 * i], numbers[2 * i + 1]};
  }
  return frames;
}

// Whether a token is one of an exact frame and no sink.
bool is_exact_token(const rainfusion::TokenLayout& layout, int64_t token) {
  return token >= layout.free_begin() && token < layout.free_end() &&
         layout.has_exact(token, token + 1);
}

// Methods without textural heads: what the block mask says is all there is.
void check_sparse(trt_host::PluginLibrary& library, Report& report) {
  report.begin("sparse");
  const std::vector<std::pair<std::string, RainfusionMethod>> methods{
      {"rainfusion_two_way", RAINFUSION_METHOD_TWO_WAY},
      {"rainfusion2", RAINFUSION_METHOD_RAINFUSION2}};
  Size size = kClip;
  size.grid_t = 13;
  for (const auto& [method, code] : methods) {
    for (const int64_t head_size : {64, 96, 128}) {
      size.head_size = head_size;
      const DataType type = head_size == 96 ? DataType::kHALF : DataType::kBF16;
      const int32_t last = last_sinks_of(head_size);
      const std::vector<int32_t> exact = exact_frames_of(head_size);
      Layer layer(library, size, type, "first", method, {}, 11, 1.0F, 0, last, exact);
      const auto output = run(layer, 0.7F);
      const auto dtype = type == DataType::kBF16 ? RAINFUSION_BFLOAT16 : RAINFUSION_FLOAT16;
      RainfusionProblem problem = size.problem(RAINFUSION_TEXT_FIRST, code, dtype);
      problem.last_sink_frames = last;
      const rainfusion::TokenLayout layout(size.tokens(), size.grid_t, size.grid_h, size.grid_w, 1,
                                           last, true, set_exact_frames(problem, exact));
      const auto shape = rainfusion::block_shape(static_cast<int32_t>(head_size));
      const rainfusion::BlockCut q_cut(layout, shape.q);
      const rainfusion::BlockCut k_cut(layout, shape.k);
      const int64_t pairs = int64_t{q_cut.blocks} * k_cut.blocks;
      const auto mask = layer.block_mask(library, problem, pairs);
      const auto q_block = blocks_of_tokens(q_cut);
      const auto k_block = blocks_of_tokens(k_cut);
      const auto keep = [&](int64_t batch, int64_t head, int64_t query, int64_t key) {
        const int64_t pair = q_block[query] * k_cut.blocks + k_block[key];
        return mask[(batch * size.heads + head) * pairs + pair] != 0;
      };
      report.expect(std::find(mask.begin(), mask.end(), uint8_t{0}) != mask.end(),
                    method + " skips blocks");
      bool whole = true;
      for (int64_t token = 0; token < size.tokens(); ++token) {
        if (!is_exact_token(layout, token)) continue;
        for (int64_t other = 0; other < size.tokens(); ++other) {
          whole = whole && keep(0, 0, token, other) && keep(0, 0, other, token);
        }
      }
      report.expect(whole, method + " keeps exact frames");
      expect_near(report, layer, output,
                  attention(size, layer.q.values, layer.k.values, layer.v.values, keep),
                  method + " D=" + std::to_string(head_size));
    }
  }
}

// The window that each non-sink token is in, -1 for sinks.
std::vector<int32_t> windows_of_tokens(const rainfusion::WindowCut& cut) {
  std::vector<int32_t> windows(static_cast<size_t>(cut.tokens), -1);
  for (int32_t window = 0; window < cut.windows(); ++window) {
    const rainfusion::Extents at = cut.origin(window);
    const rainfusion::Extents size = cut.clipped(at);
    for (int32_t t = at.t; t < at.t + size.t; ++t) {
      for (int32_t h = at.h; h < at.h + size.h; ++h) {
        for (int32_t w = at.w; w < at.w + size.w; ++w) windows[cut.token(t, h, w)] = window;
      }
    }
  }
  return windows;
}

// `numbers` [heads, S, D] with the rounded means of each head's windows behind its tokens.
std::vector<float> with_means(const std::vector<float>& numbers, const Layer& layer,
                              const std::vector<int32_t>& window_of, int32_t windows) {
  const int64_t tokens = layer.size.tokens();
  const int64_t row = layer.size.head_size;
  std::vector<float> extended;
  for (int64_t head = 0; head < layer.size.batch * layer.size.heads; ++head) {
    const float* const rows = numbers.data() + head * tokens * row;
    extended.insert(extended.end(), rows, rows + tokens * row);
    std::vector<double> sums(static_cast<size_t>(windows * row), 0.0);
    std::vector<int32_t> counts(static_cast<size_t>(windows), 0);
    const int64_t limit = layer.lengths.empty() ? tokens : layer.lengths[head / layer.size.heads];
    for (int64_t token = 0; token < limit; ++token) {
      const int32_t window = window_of[token];
      if (window < 0) continue;
      ++counts[window];
      for (int64_t d = 0; d < row; ++d) sums[window * row + d] += rows[token * row + d];
    }
    for (int64_t i = 0; i < windows * row; ++i) {
      const double mean = counts[i / row] > 0 ? sums[i] / counts[i / row] : 0.0;
      extended.push_back(to_float(to_bits(static_cast<float>(mean), layer.type), layer.type));
    }
  }
  return extended;
}

// By windows: exact keys where the mask says so, the others by their means. Text on either side,
// windows that are cut off at every border, and a length that ends in some.
void check_windows(trt_host::PluginLibrary& library, Report& report) {
  report.begin("windows");
  Size size = kClip;
  size.grid_t = 13;
  const auto tokens = static_cast<int32_t>(size.tokens());
  for (const int64_t head_size : {64, 96, 128}) {
    for (const bool first : {false, true}) {
      size.head_size = head_size;
      const DataType type = first ? DataType::kHALF : DataType::kBF16;
      const std::vector<int32_t> lengths{tokens, tokens - 300};
      const int32_t last = last_sinks_of(head_size);
      Layer layer(library, size, type, first ? "first" : "last", "piecewise", lengths, 61, 1.0F, 0,
                  last, exact_frames_of(head_size));
      const auto output = run(layer, 0.7F);
      RainfusionProblem problem = size.problem(first ? RAINFUSION_TEXT_FIRST : RAINFUSION_TEXT_LAST,
                                               RAINFUSION_METHOD_PIECEWISE,
                                               first ? RAINFUSION_FLOAT16 : RAINFUSION_BFLOAT16);
      problem.last_sink_frames = last;
      const rainfusion::TokenLayout layout(tokens, size.grid_t, size.grid_h, size.grid_w, 1, last,
                                           first,
                                           set_exact_frames(problem, exact_frames_of(head_size)));
      const auto shape = rainfusion::block_shape(static_cast<int32_t>(head_size));
      const rainfusion::WindowCut q_cut(layout, shape.q);
      const rainfusion::WindowCut k_cut(layout, shape.k);
      const int64_t pairs = int64_t{q_cut.blocks} * k_cut.blocks;
      const auto mask = layer.block_mask(library, problem, pairs);
      const auto q_window = windows_of_tokens(q_cut);
      const auto k_window = windows_of_tokens(k_cut);
      const auto chosen = [&](int64_t head, int64_t query, int32_t window) {
        const int64_t q_block = q_cut.leading_sinks + q_window[query];
        return mask[head * pairs + q_block * k_cut.blocks + k_cut.leading_sinks + window] != 0;
      };
      const auto bias = [&](int64_t batch, int64_t head, int64_t query, int64_t key) {
        const bool is_pseudo = key >= tokens;
        if (!is_pseudo && key >= lengths[batch]) return -INFINITY;
        const auto window = is_pseudo ? static_cast<int32_t>(key) - tokens : k_window[key];
        if (window < 0 || q_window[query] < 0) return is_pseudo ? -INFINITY : 0.0F;
        if (chosen(batch * size.heads + head, query, window) == is_pseudo) return -INFINITY;
        return is_pseudo ? std::log(static_cast<float>(k_cut.count_below(window, lengths[batch])))
                         : 0.0F;
      };
      report.expect(std::find(mask.begin(), mask.end(), uint8_t{0}) != mask.end(),
                    "windows are skipped");
      bool whole = true;
      for (int64_t token = 0; token < lengths[1]; ++token) {
        if (!is_exact_token(layout, token)) continue;
        for (int64_t other = 0; other < lengths[1]; ++other) {
          if (k_window[other] < 0) continue;
          whole = whole && chosen(size.heads, token, k_window[other]) &&
                  chosen(size.heads, other, k_window[token]);
        }
      }
      report.expect(whole, "windows of exact frames are kept");
      expect_near(
          report, layer, output,
          biased_attention(size, tokens + k_cut.windows(), layer.q.values,
                           with_means(layer.k.values, layer, k_window, k_cut.windows()),
                           with_means(layer.v.values, layer, k_window, k_cut.windows()), bias),
          "D=" + std::to_string(head_size) + " text=" + (first ? "first" : "last"));
    }
  }
}

// An engine of 8 bits: 16 of them are those of a layer without, bit by bit, 8 are near the exact
// result and not the same; and a graph keeps the precision that it was captured in.
void check_eight_bit(trt_host::PluginLibrary& library, Report& report) {
  report.begin("8 bits");
  if (const std::string refused = eight_bit_refusal(library); !refused.empty()) {
    std::printf("8 bits left out: %s\n", refused.c_str());
    return;
  }
  for (const int64_t head_size : {64, 128}) {
    for (const bool cut : {false, true}) {
      Size size = kClip;
      size.grid_t = 13;
      size.head_size = head_size;
      const auto tokens = static_cast<int32_t>(size.tokens());
      const std::vector<int32_t> lengths =
          cut ? std::vector<int32_t>{tokens, tokens - 300} : std::vector<int32_t>{};
      const auto layer = [&](int64_t bits) {
        return Layer(library, size, DataType::kBF16, "last", "piecewise", lengths, 71, 1.0F, bits);
      };
      Layer plain = layer(0);
      Layer wide = layer(16);
      Layer narrow = layer(8);
      for (const float sparsity : {0.0F, 0.7F}) {
        const auto expected = run(plain, sparsity);
        const std::string differs = first_difference(run(wide, sparsity), expected, size);
        report.expect(differs.empty(), "16 bits of an 8-bit engine, D=" +
                                           std::to_string(head_size) + (cut ? ", kv_len" : "") +
                                           " at " + std::to_string(sparsity) + ": " + differs);
      }
      const auto keep = [&](int64_t batch, int64_t, int64_t, int64_t key) {
        return lengths.empty() || key < lengths[batch];
      };
      const auto output = run(narrow, 0.0F);
      const double error = relative_error(
          size, to_floats(output, DataType::kBF16),
          attention(size, plain.q.values, plain.k.values, plain.v.values, keep), lengths);
      report.expect(error <= kEightBitTolerance && error > tolerance(DataType::kBF16),
                    "D=" + std::to_string(head_size) + ": error " + std::to_string(error));
      const Stream stream;
      const Graph graph(stream, [&] { return narrow.enqueue(stream); });
      for (const float sparsity : {0.7F, 0.0F}) {
        narrow.set_sparsity(sparsity);
        graph.launch(stream);
        stream.synchronize();
        report.expect(narrow.output() == run(narrow, sparsity), "graph replay in 8 bits");
      }
    }
  }
}

// One captured graph serves every sparsity, and gives what a plain call gives, bit by bit.
void check_capture(trt_host::PluginLibrary& library, Report& report) {
  report.begin("graph replay");
  for (const auto& [method, code] : methods_of(library)) {
    Layer layer(library, kClip, DataType::kBF16, "last", method, {532, 500}, 21);
    const Stream stream;
    const Graph graph(stream, [&] { return layer.enqueue(stream); });
    for (const float sparsity : {0.0F, 0.5F, 0.8F, 0.0F}) {
      layer.set_sparsity(sparsity);
      graph.launch(stream);
      stream.synchronize();
      const auto replayed = layer.output();
      report.expect(replayed == run(layer, sparsity), method + " at " + std::to_string(sparsity));
    }
  }
}

void check_two_contexts(trt_host::PluginLibrary& library, Report& report) {
  report.begin("two contexts");
  Size other = kClip;
  other.grid_w = 7;
  Layer first(library, kClip, DataType::kHALF, "last", "rainfusion", {}, 31);
  Layer second(library, other, DataType::kBF16, "first", "rainfusion2", {}, 41);
  const auto expected_first = run(first, 0.5F);
  const auto expected_second = run(second, 0.5F);
  const Stream one;
  const Stream two;
  bool done = true;
  for (int i = 0; i < 20; ++i) done = done && first.enqueue(one) && second.enqueue(two);
  report.expect(done, "enqueue in turn");
  one.synchronize();
  two.synchronize();
  report.expect(first.output() == expected_first, "first context");
  report.expect(second.output() == expected_second, "second context");
}

}  // namespace

void check_execution(trt_host::PluginLibrary& library, Report& report) {
  library.log().clear();
  for (auto* const check : {check_dense, check_rising_scores, check_sparse, check_windows,
                            check_eight_bit, check_capture, check_two_contexts}) {
    check(library, report);
  }
  report.expect(library.log().errors() == 0, "errors in the log:" + library.log().all());
}

}  // namespace conformance
