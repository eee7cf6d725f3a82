#include "parallel/exchange.h"

#include <string>

#include "common/element.h"
#include "validate.h"

namespace rainfusion::parallel {
namespace {

using std::to_string;

Result check_share(const RainfusionShare& share) {
  if (share.parts >= 1 && share.rank >= 0 && share.rank < share.parts) return {};
  return invalid("rank = " + to_string(share.rank) + " of parts = " + to_string(share.parts) +
                 " is none; ranks go from 0 to parts - 1");
}

Result check_enough(const char* what, int64_t count, int32_t parts) {
  if (count >= parts) return {};
  return invalid(to_string(count) + " " + what + " are fewer than the " + to_string(parts) +
                 " GPUs that share them: use from 1 to " + to_string(count) + " GPUs");
}

}  // namespace

std::vector<RainfusionTransfer> Exchange::transfers(RainfusionDirection direction) const {
  std::vector<RainfusionTransfer> found;
  const int32_t mine = own_heads();
  // Rounds in which every GPU has another partner spread the work over all links.
  for (int32_t round = 1; round < video.count; ++round) {
    const int32_t peer = (rank + round) % video.count;
    const int32_t theirs = heads.size(peer);
    const int64_t part = int64_t{own_video()} * theirs;  // own video tokens, heads of the peer
    const int64_t of_peer = int64_t{video.size(peer)} * mine;
    const int64_t in_whole = int64_t{video_begin() + video.begin(peer)} * mine;
    if (direction == RAINFUSION_TOKENS_TO_HEADS) {
      const int64_t in_sent = int64_t{own_video()} * heads.begin(peer);
      found.push_back({peer, 0, bytes(in_sent), bytes(part), bytes(in_whole), bytes(of_peer)});
      continue;
    }
    const int64_t in_arrived = int64_t{local()} * heads.begin(peer);
    const int64_t video_arrives = in_arrived + int64_t{local_video_begin()} * theirs;
    found.push_back({peer, 0, bytes(in_whole), bytes(of_peer), bytes(video_arrives), bytes(part)});
    if (text > 0) {
      const int64_t text_arrives = in_arrived + int64_t{local_text_begin()} * theirs;
      found.push_back({peer, 0, bytes(int64_t{text_begin()} * mine), bytes(int64_t{text} * mine),
                       bytes(text_arrives), bytes(int64_t{text} * theirs)});
    }
  }
  return found;
}

Result exchange_of(const RainfusionProblem* local, const RainfusionShare* share, Exchange* exchange,
                   RainfusionProblem* mine) {
  if (local == nullptr || share == nullptr) return invalid("problem or share is a null pointer");
  Result result = check_share(*share);
  if (result.ok()) result = validate_grid_extents(*local);
  if (!result.ok()) return result;
  const int64_t frame = int64_t{local->grid_h} * local->grid_w;
  if (frame > INT32_MAX || frame * local->grid_t > INT32_MAX) {
    return unsupported("the grid has more tokens than 32 bits count; split the sequence");
  }
  const auto video = static_cast<int32_t>(frame * local->grid_t);
  result = check_enough("heads", local->heads, share->parts);
  if (result.ok()) result = check_enough("video tokens", video, share->parts);
  if (!result.ok()) return result;
  const Parts tokens{video, share->parts};
  const int64_t text = int64_t{local->tokens} - tokens.size(share->rank);
  if (text < 0 || (text > 0 && local->text == RAINFUSION_TEXT_NONE)) {
    return invalid("tokens = " + to_string(local->tokens) + " on GPU " + to_string(share->rank) +
                   " of " + to_string(share->parts) + ", whose part of the " + to_string(video) +
                   " video tokens is " + to_string(tokens.size(share->rank)) +
                   ": give every GPU its part, and all of the text");
  }
  RainfusionProblem own = *local;
  const Parts heads{local->heads, share->parts};
  own.heads = heads.size(share->rank);
  own.tokens = static_cast<int32_t>(video + text);
  result = validate_problem(own);
  if (!result.ok()) return result;
  *exchange = {tokens,
               heads,
               share->rank,
               static_cast<int32_t>(text),
               local->text == RAINFUSION_TEXT_FIRST,
               local->batch,
               element_bytes(local->dtype) * local->head_size};
  if (mine != nullptr) *mine = own;
  return {};
}

}  // namespace rainfusion::parallel
