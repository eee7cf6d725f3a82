// Which keys a CTA of the portable kernel attends to where heads are computed in windows, as tiles.
#pragma once

#include <cuda_runtime.h>

#include "sm80/window_keys.cuh"

namespace rainfusion::sm80 {

// Where a warp stands among its CTA's keys. In shared memory too: it is asked for once a mask word.
// All lanes read and write the same.
struct WindowQueue {
  BoxRows rows;  // of the present window, if its rows are not those of a whole box
  int32_t word;  // the present mask word
  int32_t runs;  // that were taken
  int32_t own;   // words to the mask row of the warp's query window
  bool active;   // whether the warp has rows
};

// How rows of a tile find their tokens: in a run of tokens or pseudo-keys, in a window by the table
// of whole windows, or by arithmetic.
enum class RowOrder { kRun, kBox, kCutBox };

// Tiles of at most kTileN keys: of runs of tokens, then of the windows that the CTA's query windows
// chose, then of pseudo-keys, of which each warp leaves out those that its window chose.
template <typename Config>
class WindowTiles {
 public:
  static constexpr int kTileN = Config::kTileN;

  // Of a tile: how many columns are keys, and the first pseudo-key, -1 for keys.
  struct Columns {
    int valid;
    int pseudo;
  };

  int origin = 0;  // first token of a window
  int start = 0;   // rows [start, stop) are still to come
  int stop = 0;
  RowOrder order = RowOrder::kRun;
  int gathered = 0;   // 1 where rows are pseudo-keys
  bool mine = false;  // whether the warp's query window attends to the tile

  __device__ __forceinline__ WindowTiles(const WindowParams& params, const WindowSpan& q,
                                         const WindowKeys& keys, WindowQueue& queue)
      : params_(params), keys_(keys), queue_(queue) {
    const int warp_row = threadIdx.x / 32 * 32;
    int token;
    queue.active = q.find(warp_row, &token) && token < keys.limit;
    queue.own = warp_row >= q.split ? keys.other : 0;
    queue.word = params.k.cut.leading_sinks / 32 - 1;
    queue.runs = 0;
    __syncwarp();
  }

  __device__ __forceinline__ RowSource<int32_t> keys() const { return keys_.keys[gathered]; }
  __device__ __forceinline__ RowSource<int32_t> values() const { return keys_.values[gathered]; }
  __device__ __forceinline__ const BoxRows& rows() const { return queue_.rows; }

  __device__ __forceinline__ int valid() const { return min(stop - start, kTileN); }
  __device__ __forceinline__ Columns columns() const {
    return {valid(), gathered != 0 ? start : -1};
  }

  __device__ __forceinline__ bool first(const FastCut& cut) { return next(cut); }

  __device__ __forceinline__ bool advance(const FastCut& cut) {
    start += kTileN;
    return start < stop || next(cut);
  }

  __device__ __forceinline__ void mask(const Columns& columns, Scores<kTileN>& s) const {
    if (columns.pseudo >= 0) {
      add_bias(columns.pseudo, s);
    } else {
      mask_last(columns.valid, s);
    }
  }

 private:
  __device__ __forceinline__ bool next(const FastCut& cut) {
    if (bits_ == 0) {  // else the word has more windows
      if (gathered == 0 && next_run()) return true;
      if (keys_.mask == nullptr) return false;
      if (gathered != 0 || !next_word(cut)) return next_pseudo(cut.cut);
    }
    take_window(cut);
    return true;
  }

  __device__ __forceinline__ bool next_run() {
    int runs = queue_.runs;
    if (runs == 2) return false;
    mine = queue_.active;
    do {
      start = runs == 0 ? 0 : keys_.after;
      stop = runs == 0 ? keys_.before : keys_.limit;
      ++runs;
    } while (start >= stop && runs < 2);
    __syncwarp();
    queue_.runs = runs;
    __syncwarp();
    return start < stop;
  }

  __device__ __forceinline__ void take_window(const FastCut& fast) {
    const int bit = __ffs(bits_) - 1;
    bits_ &= bits_ - 1;
    origin = __shfl_sync(0xffffffffu, lane_token_, bit);
    const int rows = __shfl_sync(0xffffffffu, lane_rows_, bit);
    start = 0;
    stop = rows & kRowsMask;
    mine = rows & kMine;
    order = RowOrder::kBox;
    if (rows & kCutBox) {
      order = RowOrder::kCutBox;
      __syncwarp();
      queue_.rows = fast.rows(fast.origin(queue_.word * 32 + bit - fast.cut.leading_sinks));
      __syncwarp();
    }
  }

  // The bits of a mask word that stand for windows.
  static __device__ __forceinline__ uint32_t windows_of_word(const WindowCut& cut, int word) {
    const int first = max(cut.leading_sinks - word * 32, 0);
    const int last = min(cut.leading_sinks + cut.windows() - word * 32, 32);
    return last <= first ? 0 : (0xffffffffu >> (32 - (last - first))) << first;
  }

  // Goes on to the next mask word with a window, if there is one; each lane finds where the window
  // of its bit lies.
  __device__ __forceinline__ bool next_word(const FastCut& fast) {
    const WindowCut& cut = fast.cut;
    const uint32_t* mask = keys_.mask;
    const int other = keys_.other;
    uint32_t first;
    uint32_t second;
    int word = queue_.word;
    do {
      ++word;
      if (word * 32 >= cut.leading_sinks + cut.windows()) return false;
      first = __ldg(mask + word);
      second = __ldg(mask + other + word);
      bits_ = (first | second) & windows_of_word(cut, word);
    } while (bits_ == 0);
    __syncwarp();
    queue_.word = word;
    __syncwarp();
    const int lane = threadIdx.x % 32;
    if (bits_ >> lane & 1) {
      const Extents at = fast.origin(word * 32 + lane - cut.leading_sinks);
      const Extents size = cut.clipped(at);
      const int last = cut.token(at.t + size.t - 1, at.h + size.h - 1, at.w + size.w - 1);
      lane_token_ = cut.token(at.t, at.h, at.w);
      lane_rows_ = last < keys_.limit ? size.volume() : cut.count_before(at, keys_.limit);
      if (!fast.has_whole_frames(at) || cut.box.volume() > kTableRows) lane_rows_ |= kCutBox;
      const uint32_t own_bits = queue_.own == 0 ? first : second;
      if (queue_.active && own_bits >> lane & 1) lane_rows_ |= kMine;
    }
    __syncwarp();
    return true;
  }

  __device__ __forceinline__ bool next_pseudo(const WindowCut& cut) {
    if (gathered == 0) {
      gathered = 1;
      order = RowOrder::kRun;
      stop = 0;
    }
    const uint32_t* mask = keys_.mask;
    const int other = keys_.other;
    while (true) {
      start = (stop + kTileN - 1) / kTileN * kTileN;
      if (start >= cut.windows()) return false;
      stop = min(start + kTileN, cut.windows());
      bool first = false;
      bool second = false;
#pragma unroll
      for (int i = 0; i < kTileN; i += 32) {
        const PseudoColumn column(cut, keys_.bias, start + i + threadIdx.x % 32);
        first |= column.left(mask);
        second |= column.left(mask + other);
      }
      first = __any_sync(0xffffffffu, first);
      second = __any_sync(0xffffffffu, second);
      mine = queue_.active && (queue_.own == 0 ? first : second);
      if (first || second) return true;
    }
  }

  // A window that a lane asks for. Without branches, so that the reads of several overlap.
  struct PseudoColumn {
    float bias;  // -infinity if it has no valid token, or there is no such window
    int bit;

    __device__ __forceinline__ PseudoColumn(const WindowCut& cut, const float* biases, int window) {
      const int there = min(window, cut.windows() - 1);
      bit = cut.leading_sinks + there;
      bias = __ldg(biases + there);
      if (window != there) bias = -INFINITY;
    }
    // What is added to the score of the pseudo-key: -infinity if its window was chosen.
    __device__ __forceinline__ float added(const uint32_t* mask) const {
      return __ldg(mask + bit / 32) >> bit % 32 & 1 ? -INFINITY : bias;
    }
    __device__ __forceinline__ bool left(const uint32_t* mask) const {
      return added(mask) > -INFINITY;
    }
  };

  __device__ __forceinline__ void add_bias(int pseudo, Scores<kTileN>& s) const {
    const int lane = threadIdx.x % 32;
    const uint32_t* mask = keys_.mask + queue_.own;
    float biases[(kTileN + 31) / 32];  // of column i * 32 + lane
#pragma unroll
    for (int i = 0; i < (kTileN + 31) / 32; ++i) {
      biases[i] = PseudoColumn(params_.k.cut, keys_.bias, pseudo + i * 32 + lane).added(mask);
    }
#pragma unroll
    for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = __shfl_sync(0xffffffffu, biases[n / 4], n % 4 * 8 + lane % 4 * 2 + i);
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m) {
          s[m][n][i] += x;
          s[m][n][i + 2] += x;
        }
      }
    }
  }

  // As mask_keys, from the last columns on: windows often fill a tile but for a few keys.
  static __device__ __forceinline__ void mask_last(int valid, Scores<kTileN>& s) {
    const int lane_column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = kTileN / 8 - 1; n >= 0; --n) {
      if (n * 8 + 8 <= valid) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool keep = n * 8 + lane_column + i % 2 < valid;
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m) s[m][n][i] = keep ? s[m][n][i] : -INFINITY;
      }
    }
  }

  static constexpr int kTableRows = sizeof(BoxTable<kTileN>) / sizeof(int32_t);
  // In lane_rows_, beside a count of rows.
  static constexpr int kRowsMask = 0xffff;
  static constexpr int kCutBox = 1 << 16;  // rows are not those of the table
  static constexpr int kMine = 1 << 17;    // the warp's query window chose it
  static_assert(kMaxWindowTokens <= kRowsMask);

  const WindowParams& params_;
  const WindowKeys& keys_;
  WindowQueue& queue_;
  // Of the window that the lane's bit of the present mask word stands for, if that is set:
  int lane_token_ = 0;  // its first token
  int lane_rows_ = 0;   // its tokens below kv_len, and flags
  uint32_t bits_ = 0;   // windows of the word still to come
};

}  // namespace rainfusion::sm80
