// One tensor's way between tokens and heads: where each of its rows lies, and what goes to whom.
//
// A row is the head_size elements of a token and head. There are four buffers:
//
//   tensor   [batch, heads, local tokens]         all heads of the tokens of this GPU
//   sent     for each GPU j: [own video tokens, batch, heads of j]
//   whole    [all tokens, batch, own heads]       what attention reads and writes, by strides
//   arrived  for each GPU j: [local tokens, batch, heads of j]
//
// With the token outermost in `whole`, the parts of all GPUs lie in it one behind the other, in the
// order of the raster, the text before or behind them. So what arrives needs no copy before
// attention, and what attention wrote none before it is sent. Every GPU has the text's q, k and v
// of all heads and needs nobody for them; what becomes of them under its heads it sends to all.
#pragma once

#include <cstdint>
#include <vector>

#include "common/result.h"
#include "parallel/parts.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {

struct Exchange {
  Parts video;
  Parts heads;
  int32_t rank;
  int32_t text;  // tokens
  bool text_first;
  int32_t batch;
  int32_t row_bytes;

  RAINFUSION_HOST_DEVICE int32_t own_video() const { return video.size(rank); }
  RAINFUSION_HOST_DEVICE int32_t own_heads() const { return heads.size(rank); }
  RAINFUSION_HOST_DEVICE int32_t local() const { return own_video() + text; }
  RAINFUSION_HOST_DEVICE int32_t tokens() const { return video.total + text; }
  RAINFUSION_HOST_DEVICE int32_t text_begin() const { return text_first ? 0 : video.total; }
  RAINFUSION_HOST_DEVICE int32_t video_begin() const { return text_first ? text : 0; }
  RAINFUSION_HOST_DEVICE int32_t local_video_begin() const { return text_first ? text : 0; }
  RAINFUSION_HOST_DEVICE int32_t local_text_begin() const { return text_first ? 0 : own_video(); }

  RAINFUSION_HOST_DEVICE bool is_text(int32_t token) const {
    const int32_t index = token - local_text_begin();
    return index >= 0 && index < text;
  }

  // The token of the whole sequence that a local one is.
  RAINFUSION_HOST_DEVICE int32_t whole_token(int32_t token) const {
    if (is_text(token)) return text_begin() + token - local_text_begin();
    return video_begin() + video.begin(rank) + token - local_video_begin();
  }

  // Places in rows. `head` counts all heads.
  RAINFUSION_HOST_DEVICE int64_t tensor_row(int32_t b, int32_t head, int32_t token) const {
    return (static_cast<int64_t>(b) * heads.total + head) * local() + token;
  }
  RAINFUSION_HOST_DEVICE int64_t whole_row(int32_t b, int32_t head, int32_t token) const {
    const int64_t first = (static_cast<int64_t>(whole_token(token)) * batch + b) * own_heads();
    return first + head - heads.begin(rank);
  }
  RAINFUSION_HOST_DEVICE int64_t sent_row(int32_t b, int32_t head, int32_t token) const {
    return row_of_part(b, head, token - local_video_begin(), own_video());
  }
  RAINFUSION_HOST_DEVICE int64_t arrived_row(int32_t b, int32_t head, int32_t token) const {
    return row_of_part(b, head, token, local());
  }

  int64_t tensor_bytes() const { return bytes(int64_t{local()} * heads.total); }
  int64_t whole_bytes() const { return bytes(int64_t{tokens()} * own_heads()); }
  int64_t arrived_bytes() const { return tensor_bytes(); }

  // What goes to each other GPU and comes from it.
  std::vector<RainfusionTransfer> transfers(RainfusionDirection direction) const;

 private:
  RAINFUSION_HOST_DEVICE int64_t row_of_part(int32_t b, int32_t head, int32_t token,
                                             int32_t tokens_of_part) const {
    const int32_t owner = heads.owner(head);
    const int64_t first = static_cast<int64_t>(tokens_of_part) * batch * heads.begin(owner);
    const int64_t place = (static_cast<int64_t>(token) * batch + b) * heads.size(owner);
    return first + place + head - heads.begin(owner);
  }

  int64_t bytes(int64_t rows_of_a_clip) const { return rows_of_a_clip * batch * row_bytes; }
};

// Checks a shared problem; finds its exchange and what this GPU attends to.
Result exchange_of(const RainfusionProblem* local, const RainfusionShare* share, Exchange* exchange,
                   RainfusionProblem* mine);

}  // namespace rainfusion::parallel
