// The windows' geometry that kernels and host share, against a walk over the tokens.
#include <random>
#include <set>
#include <string>
#include <vector>

#include "checks.h"
#include "common/windows.h"

namespace conformance {
namespace {

using rainfusion::BlockCut;
using rainfusion::ExactFrames;
using rainfusion::Extents;
using rainfusion::most_windows;
using rainfusion::TokenLayout;
using rainfusion::WindowCut;

class Random {
 public:
  int32_t in(int32_t first, int32_t last) {
    return std::uniform_int_distribution<int32_t>(first, last)(generator_);
  }
  Extents extents(int32_t t, int32_t h, int32_t w) { return {in(1, t), in(1, h), in(1, w)}; }
  int32_t size() {
    constexpr int32_t kSizes[] = {1, 7, 64, 80, 96, 128, 192, 200, 1024};
    return kSizes[in(0, static_cast<int32_t>(std::size(kSizes)) - 1)];
  }

 private:
  std::mt19937 generator_{17};
};

TokenLayout random_layout(Random& random) {
  const Extents grid = random.extents(24, 20, 20);
  const int32_t text = random.in(0, 1) * random.in(1, 300);
  ExactFrames exact{};
  if (random.in(0, 1) == 1) {
    const int32_t begin = random.in(0, grid.t - 1);
    exact.ranges[0] = {begin, random.in(begin + 1, grid.t)};
    if (exact.ranges[0].end < grid.t) exact.ranges[1] = {grid.t - 1, grid.t};
  }
  return {int64_t{grid.volume()} + text, grid.t, grid.h, grid.w, random.in(0, 3), random.in(0, 3),
          random.in(0, 1) == 1,          exact};
}

bool is_exact_token(const TokenLayout& layout, int64_t token) {
  const int64_t frame = (token - layout.video_begin) / layout.frame;
  bool found = false;
  for (const auto& range : layout.exact.ranges) {
    found = found || (frame >= range.begin && frame < range.end);
  }
  return found;
}

// Every token is in one block, blocks ascend, and the tokens of a window ascend in its raster.
std::vector<int32_t> blocks_of_tokens(const WindowCut& cut, bool* sound) {
  std::vector<int32_t> blocks(static_cast<size_t>(cut.tokens), -1);
  const auto put = [&](int32_t token, int32_t block) {
    *sound = *sound && token >= 0 && token < cut.tokens && blocks[token] < 0;
    if (*sound) blocks[token] = block;
  };
  for (int32_t block = 0; block < cut.blocks; ++block) {
    if (cut.is_sink(block)) {
      for (int32_t i = cut.run_begin(block); i < cut.run_end(block); ++i) put(i, block);
      *sound = *sound && cut.run_begin(block) < cut.run_end(block);
      continue;
    }
    const int32_t window = block - cut.leading_sinks;
    const Extents at = cut.origin(window);
    const int32_t rows = cut.box.volume();
    int32_t last = -1;
    int32_t count = 0;
    for (int32_t row = 0; row < rows; ++row) {
      const Extents place = cut.place(row);
      const Extents size = cut.clipped(at);
      if (place.t >= size.t || place.h >= size.h || place.w >= size.w) continue;
      const int32_t token = cut.token(at.t + place.t, at.h + place.h, at.w + place.w);
      *sound = *sound && token > last && (count > 0 || token == cut.first_token(window));
      put(token, block);
      last = token;
      ++count;
    }
    *sound = *sound && count == cut.clipped(at).volume() && count > 0 && rows <= cut.size;
  }
  for (const int32_t block : blocks) *sound = *sound && block >= 0;
  return blocks;
}

void check_cuts(Report& report) {
  report.begin("cuts into windows");
  Random random;
  for (int i = 0; i < 300; ++i) {
    const TokenLayout layout = random_layout(random);
    const WindowCut q_cut(layout, random.size());
    const WindowCut k_cut(layout, random.size());
    const std::string what = std::to_string(k_cut.grid.t) + "x" + std::to_string(k_cut.grid.h) +
                             "x" + std::to_string(k_cut.grid.w) + " in " +
                             std::to_string(k_cut.size);
    bool sound = true;
    const auto q_blocks = blocks_of_tokens(q_cut, &sound);
    const auto k_blocks = blocks_of_tokens(k_cut, &sound);
    if (!report.expect(sound, "tokens of " + what)) continue;

    std::vector<int32_t> below(static_cast<size_t>(k_cut.windows()), 0);
    const int32_t limit = random.in(0, k_cut.tokens);
    std::set<std::pair<int32_t, int32_t>> shared;
    std::set<int32_t> exact;
    for (int32_t token = 0; token < k_cut.tokens; ++token) {
      const int32_t window = k_blocks[token] - k_cut.leading_sinks;
      const bool sink = token < k_cut.free_begin || token >= k_cut.free_end;
      const int32_t place = token - k_cut.free_begin;
      const int32_t frame = k_cut.grid.h * k_cut.grid.w;
      const int32_t block =
          sink
              ? k_cut.run_of(token)
              : k_cut.block_of({place / frame, place % frame / k_cut.grid.w, place % k_cut.grid.w});
      sound = sound && sink == k_cut.is_sink(k_blocks[token]) && block == k_blocks[token];
      if (sink) continue;
      below[window] += token < limit ? 1 : 0;
      if (is_exact_token(layout, token)) exact.insert(window);
      shared.emplace(q_blocks[token] - q_cut.leading_sinks, window);
    }
    report.expect(sound, "sinks and blocks of tokens of " + what);
    bool counts = true;
    bool meetings = true;
    bool exactness = true;
    for (int32_t k = 0; k < k_cut.windows(); ++k) {
      counts = counts && k_cut.count_below(k, limit) == below[k];
      exactness = exactness && rainfusion::is_exact(layout, k_cut, k) == (exact.count(k) == 1);
      const int32_t q = random.in(0, q_cut.windows() - 1);
      meetings = meetings && windows_meet(q_cut, k_cut, q, k) == (shared.count({q, k}) == 1);
    }
    for (const auto& [q, k] : shared) meetings = meetings && windows_meet(q_cut, k_cut, q, k);
    const BlockCut runs(layout, q_cut.size);
    bool blocks = true;
    for (int32_t token = 0; token < runs.tokens; ++token) {
      const int32_t block = runs.block_of(token);
      blocks = blocks && runs.begin(block) <= token && token < runs.end(block);
    }
    report.expect(blocks, "blocks of tokens in " + std::to_string(runs.size));
    report.expect(counts, "tokens below " + std::to_string(limit) + " of " + what);
    report.expect(meetings, "shared tokens of " + what);
    report.expect(exactness, "exact frames of " + what);
  }
}

void check_bound(Report& report) {
  report.begin("most windows");
  Random random;
  for (int i = 0; i < 2000; ++i) {
    const Extents largest = random.extents(40, 90, 90);
    const Extents grid =
        random.in(0, 2) == 0 ? largest : random.extents(largest.t, largest.h, largest.w);
    const int32_t size = random.size();
    const int64_t tokens = grid.volume() + random.in(0, 1) * random.in(0, 5000);
    // With an exact frame, whose windows are short, and without.
    const ExactFrames exact{{{0, random.in(0, 1)}}};
    const TokenLayout layout{tokens, grid.t, grid.h, grid.w, 0, 0, false, exact};
    const WindowCut cut(layout, size);
    const int64_t most = most_windows(largest, tokens, size, most_frames(layout));
    report.expect(cut.windows() <= most, std::to_string(cut.windows()) + " windows of " +
                                             std::to_string(size) + " are more than " +
                                             std::to_string(most));
  }
  // Extents that no clip has together.
  constexpr int32_t kHuge = INT32_MAX;
  const int64_t most = most_windows({kHuge, kHuge, kHuge}, 7200, 80, rainfusion::kMostFrames);
  report.expect(most > 0 && most >= WindowCut({7200, 2, 60, 60, 0, 0, false}, 80).windows(),
                "extents without an end: " + std::to_string(most));
}

}  // namespace

void check_windows_geometry(Report& report) {
  check_cuts(report);
  check_bound(report);
}

}  // namespace conformance
