// The producer warp of a kernel by windows: takes query windows, and runs of sinks, from the queue
// and brings their tiles to shared memory. A window is a box of the grid, which the copy engine
// brings as consecutive rows of a tile.
#pragma once

#include "common/queue.cuh"
#include "tma/copy.cuh"
#include "tma/shared.cuh"
#include "tma/tensor_map.h"

namespace rainfusion::tma {

template <typename Shape>
class WindowProducer {
 public:
  using Storage = Shared<Shape>;
  using Queries = QueryTile<Shape>;
  using Keys = KeyTile<Shape>;
  static constexpr int kKeys = Shape::kKeys;
  static constexpr int kWords = Storage::kRowWords;
  static constexpr uint32_t kStaleQueries = 1u << 31;

  __device__ WindowProducer(const WindowParams& params, Storage& shared)
      : params_(params), p_(params.attention), shared_(shared) {}

  __device__ void run() {
    const bool dense = p_.kind[0] != RAINFUSION_KIND_WINDOWS;  // all heads are, or none
    const int items = p_.batch * p_.heads * (dense ? p_.q_cut.blocks : p_.q_windows.blocks);
    int upcoming = leads() ? take_item(p_.next_item) : 0;
    for (;;) {
      const int item = __shfl_sync(0xffffffffu, upcoming, 0);
      if (item >= items) break;
      if (leads()) upcoming = take_item(p_.next_item);
      const WindowItem q(p_, item, dense);
      limit_ = key_count(p_.kv_len, q.batch, p_.q_cut.tokens);
      if (q.window) {
        attend_window(q);
      } else {
        attend_run(q, dense);
      }
    }
    if (leads()) publish({Work::kEnd});
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  // Rows of sinks, or of a dense head: they attend to every key, those at or past kv_len to
  // nothing.
  __device__ void attend_run(const WindowItem& q, bool dense) {
    const int begin = dense ? p_.q_cut.begin(q.block) : p_.q_windows.run_begin(q.block);
    const int end = dense ? p_.q_cut.end(q.block) : p_.q_windows.run_end(q.block);
    const int stop = begin < limit_ ? limit_ : 0;
    const Work work{tiles(0, stop), q.batch, q.head, begin, end - begin};
    if (leads()) publish(work);
    load_run(0, stop, work);
  }

  // Rows of a window: sinks, chosen windows, and pseudo-keys of the others.
  __device__ void attend_window(const WindowItem& q) {
    const WindowCut& cut = p_.q_windows;
    const Extents origin = cut.origin(q.block - cut.leading_sinks);
    const int64_t head = static_cast<int64_t>(q.batch) * p_.heads + q.head;
    const uint32_t* mask = p_.masks + (head * cut.blocks + q.block) * p_.mask_words;
    const int begin = cut.token(origin.t, origin.h, origin.w);
    Work work{0, q.batch, q.head, begin, WindowRows::pack(cut.clipped(origin))};
    const int before = min(cut.free_begin, limit_);
    const int pseudo = limit_ > 0 ? p_.k_windows.windows() : 0;
    work.tiles =
        tiles(0, before) + count_chosen(mask) + tiles(cut.free_end, limit_) + tiles(0, pseudo);
    if (stale_ & kStaleQueries) clear_behind_queries();
    if (leads()) publish(work, &origin);
    load_run(0, before, work);
    load_chosen(mask, work);
    load_run(cut.free_end, limit_, work);
    for (int first = 0; first < pseudo; first += kKeys) load_pseudo(mask, first, work);
  }

  // By the warp, before its first window: query rows behind a window become zeros, and stay so, as
  // runs of sinks come before windows. The rows of a warp move their references together
  // (sm90/softmax.cuh): with rows of whatever block was here before, the last bits of a result
  // would depend on which CTA took what.
  __device__ void clear_behind_queries() {
    stale_ &= ~kStaleQueries;
    if (leads()) barrier_wait(shared_.q_empty, q_phase_ ^ 1);
    __syncwarp();
    clear_rows<Queries>(shared_.q, p_.q_windows.box.volume());
    __syncwarp();
  }

  // By the warp: rows of a tile from `first` on become zeros, before what the copy engine and the
  // tensor cores do with it.
  template <typename Tile>
  static __device__ void clear_rows(char* tile, int first) {
    for (int i = first * Tile::kChunks + threadIdx.x % 32; i < Tile::kRows * Tile::kChunks;
         i += 32) {
      *reinterpret_cast<uint4*>(tile + Tile::offset(i / Tile::kChunks, i % Tile::kChunks)) =
          uint4{};
    }
    fence_async_proxy();
  }

  static __device__ __forceinline__ int tiles(int start, int stop) {
    return stop > start ? (stop - start + kKeys - 1) / kKeys : 0;
  }

  // Word `lane` of the 32 mask words from `first` on, without the bits of sinks.
  __device__ __forceinline__ uint32_t window_word(const uint32_t* mask, int first) const {
    const WindowCut& cut = p_.k_windows;
    const int word = first + threadIdx.x % 32;
    const int skip = cut.leading_sinks - word * 32;                  // bits of leading sinks
    const int rest = cut.leading_sinks + cut.windows() - word * 32;  // bits before trailing ones
    if (skip >= 32 || rest <= 0) return 0;
    uint32_t bits = mask[word];
    if (skip > 0) bits &= ~0u << skip;
    return rest >= 32 ? bits : bits & ((1u << rest) - 1);
  }

  __device__ __forceinline__ int mask_words() const {
    return (p_.k_windows.leading_sinks + p_.k_windows.windows() + 31) / 32;
  }

  __device__ __forceinline__ int count_chosen(const uint32_t* mask) const {
    int count = 0;
    for (int first = 0; first < mask_words(); first += 32) {
      count += __popc(window_word(mask, first));
    }
    return __reduce_add_sync(0xffffffffu, count);
  }

  __device__ void load_chosen(const uint32_t* mask, const Work& work) {
    const int k_head = place_of_head(params_.k_boxes, work);
    const int v_head = place_of_head(params_.v_boxes, work);
    for (int first = 0; first < mask_words(); first += 32) {
      const uint32_t own = window_word(mask, first);
      uint32_t words = __ballot_sync(0xffffffffu, own != 0);
      for (; words != 0; words &= words - 1) {
        const int word = __ffs(words) - 1;
        uint32_t bits = __shfl_sync(0xffffffffu, own, word);
        for (; bits != 0; bits &= bits - 1) {
          const int block = (first + word) * 32 + __ffs(bits) - 1;
          load_window(block - p_.k_windows.leading_sinks, k_head, v_head);
        }
      }
    }
  }

  // Hands the consumers their next work, and its query tile: a window at `origin`, or a run.
  __device__ void publish(const Work& work, const Extents* origin = nullptr) {
    barrier_wait(shared_.q_empty, q_phase_ ^ 1);
    q_phase_ ^= 1;
    shared_.work = work;
    if (work.tiles <= 0) {
      barrier_arrive(shared_.q_full);
    } else if (origin != nullptr) {
      barrier_arrive_expect(shared_.q_full, p_.q_windows.box.volume() * Queries::kHeadBytes);
      copy_box<Queries>(params_.q_boxes, shared_.q, shared_.q_full, *origin,
                        place_of_head(params_.q_boxes, work));
    } else {
      barrier_arrive_expect(shared_.q_full, Queries::kBytes);
      copy_rows(params_.q, shared_.q, shared_.q_full, work.begin, work);
    }
  }

  // Keys [start, stop) of the raster.
  __device__ void load_run(int start, int stop, const Work& work) {
    for (; start < stop; start += kKeys) {
      if (leads()) load_rows(params_.k, params_.v, start, min(stop - start, kKeys), work);
      stale_ |= 1u << place_.stage;
      next_stage();
    }
  }

  // Where all lanes are, whichever of them has brought the tile.
  __device__ __forceinline__ void next_stage() {
    __syncwarp();
    place_.advance();
  }

  // By one lane: a tile that begins at row `start` and whose `valid` says what is in it.
  __device__ __forceinline__ void load_rows(const CUtensorMap& k, const CUtensorMap& v, int start,
                                            int valid, const Work& work) {
    const int stage = place_.stage;
    barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
    shared_.valid[stage] = valid;
    barrier_arrive_expect(shared_.k_full[stage], Keys::kBytes);
    copy_rows(k, shared_.k[stage], shared_.k_full[stage], start, work);
    barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
    barrier_arrive_expect(shared_.v_full[stage], Keys::kBytes);
    copy_rows(v, shared_.v[stage], shared_.v_full[stage], start, work);
  }

  // The same as p_.k_windows.origin(window), without a division: once a tile.
  __device__ __forceinline__ Extents key_origin(int window) const {
    const WindowCut& cut = p_.k_windows;
    const int row = params_.k_row.divide(window);
    const int frame = params_.k_column.divide(row);
    return {frame * cut.box.t, (row - frame * cut.counts.h) * cut.box.h,
            (window - row * cut.counts.w) * cut.box.w};
  }

  // By the warp: a key window of a head, whose place in the maps is given.
  __device__ __forceinline__ void load_window(int window, int k_head, int v_head) {
    const WindowCut& cut = p_.k_windows;
    const Extents origin = key_origin(window);
    const bool ragged = origin.h + cut.box.h > cut.grid.h || origin.w + cut.box.w > cut.grid.w;
    // Where frames alone are cut off, what is left are the first rows.
    const int frames = min(cut.box.t, cut.grid.t - origin.t);
    const int keys = frames * cut.box.h * cut.box.w;
    int valid = keys == kKeys ? kKeys : keys | kTileClean;
    if (stale_ >> place_.stage & 1 && cut.box.volume() < kKeys) clear_behind_keys();
    if (ragged || limit_ < cut.free_end) valid = hand_over_rows(origin);
    if (leads()) {
      const int stage = place_.stage;
      const uint32_t bytes = cut.box.volume() * Keys::kHeadBytes;
      barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
      shared_.valid[stage] = valid;
      barrier_arrive_expect(shared_.k_full[stage], bytes);
      copy_box<Keys>(params_.k_boxes, shared_.k[stage], shared_.k_full[stage], origin, k_head);
      barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
      barrier_arrive_expect(shared_.v_full[stage], bytes);
      copy_box<Keys>(params_.v_boxes, shared_.v[stage], shared_.v_full[stage], origin, v_head);
    }
    next_stage();
  }

  // By the warp: rows behind the next tile's window, which were a whole tile's, become zeros. They
  // are no keys, but a NaN there, perhaps another clip's, would reach the products.
  __device__ void clear_behind_keys() {
    const int stage = place_.stage;
    stale_ &= ~(1u << stage);
    if (leads()) {
      barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
      barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
    }
    __syncwarp();
    clear_rows<Keys>(shared_.k[stage], p_.k_windows.box.volume());
    clear_rows<Keys>(shared_.v[stage], p_.k_windows.box.volume());
    __syncwarp();
  }

  // By the warp: which rows of the next tile, a window at the edge of the grid or of kv_len, are
  // keys. Returns its `valid`.
  __device__ __forceinline__ int hand_over_rows(const Extents& origin) {
    const WindowCut& cut = p_.k_windows;
    const Extents inside = cut.clipped(origin);
    uint32_t rows[kWords];
    mark_rows(origin, inside, rows);
    float bias[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      bias[i] = rows[i] >> threadIdx.x % 32 & 1 ? 0.f : -INFINITY;
    }
    hand_over(bias);
    // Rows outside the grid are zeros, and so are those behind a window that does not fill its
    // tile.
    const bool padded = limit_ < cut.free_end;
    if (padded && leads()) {
      barrier_wait(shared_.v_empty[place_.stage], place_.phase ^ 1);
      for (int i = 0; i < kWords; ++i) shared_.rows[place_.stage][i] = rows[i];
    }
    __syncwarp();
    return inside.volume() | kTileBias | (padded ? kTileRows : kTileClean) |
           (p_.kv_len != nullptr ? kTileNan : 0);
  }

  // A bit for every row of a window's tile that is a token below kv_len.
  __device__ __forceinline__ void mark_rows(const Extents& origin, const Extents& inside,
                                            uint32_t (&rows)[kWords]) const {
    const WindowCut& cut = p_.k_windows;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int row = i * 32 + threadIdx.x % 32;
      const Extents at = cut.place(row);
      const bool real = at.t < inside.t && at.h < inside.h && at.w < inside.w &&
                        cut.token(origin.t + at.t, origin.h + at.h, origin.w + at.w) < limit_;
      rows[i] = __ballot_sync(0xffffffffu, real);
    }
  }

  // By the warp: the bias of the next tile, lane + 32 * i of it in bias[i].
  __device__ __forceinline__ void hand_over(const float (&bias)[kWords]) {
    const int lane = threadIdx.x % 32;
    barrier_wait(shared_.bias_empty[bias_place_.stage], bias_place_.phase ^ 1);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if (i * 32 + lane < kKeys) shared_.bias[bias_place_.stage][i * 32 + lane] = bias[i];
    }
    barrier_arrive(shared_.bias_full[bias_place_.stage]);
    bias_place_.advance();
  }

  // By the warp: pseudo-keys of windows from `first` on, a tile of them.
  __device__ void load_pseudo(const uint32_t* mask, int first, const Work& work) {
    const int lane = threadIdx.x % 32;
    const int windows = p_.k_windows.windows();
    const float* biases = p_.pseudo_bias + static_cast<int64_t>(work.batch) * windows;
    float bias[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int window = first + i * 32 + lane;
      const int bit = p_.k_windows.leading_sinks + window;
      const bool real = window < windows && (mask[bit / 32] >> bit % 32 & 1) == 0;
      bias[i] = real ? biases[window] : -INFINITY;
    }
    hand_over(bias);
    if (leads()) {
      load_rows(params_.gathered_k, params_.gathered_v, first, kKeys | kTileBias | kTileClean,
                work);
    }
    stale_ |= 1u << place_.stage;
    next_stage();
  }

  static __device__ __forceinline__ void copy_rows(const CUtensorMap& map, void* tile,
                                                   Barrier& full, int row, const Work& work) {
    copy_box_of_map(map, tile, full, 0, row, 0, work.head, work.batch);
  }

  static __device__ __forceinline__ int place_of_head(const BoxMap& boxes, const Work& work) {
    return work.head * boxes.head_step + work.batch * boxes.batch_step;
  }

  template <typename Tile>
  static __device__ __forceinline__ void copy_box(const BoxMap& boxes, char* tile, Barrier& full,
                                                  const Extents& origin, int head) {
#pragma unroll
    for (int column = 0; column < Tile::kColumns; ++column) {
      copy_box_of_map(boxes.map, tile + column * Tile::kColumnBytes, full,
                      column * Tile::kColumnElements, origin.w, origin.h, origin.t, head);
    }
  }

  const WindowParams& params_;
  const AttentionParams& p_;
  Storage& shared_;
  RingPlace<Shape::kStages> place_;
  RingPlace<Shape::kStages> bias_place_;
  uint32_t q_phase_ = 0;
  int limit_ = 0;  // kv_len
  // Where rows behind a window's are not zeros yet: a bit a stage, and one for the query tile.
  uint32_t stale_ = kStaleQueries;
};

}  // namespace rainfusion::tma
