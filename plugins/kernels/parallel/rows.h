// Which row goes where in the two copies of an exchange, for the kernels and for the host.
#pragma once

#include "parallel/exchange.h"

namespace rainfusion::parallel {

// A row's place in one of two buffers, or in neither.
struct Place {
  enum Buffer { kNowhere, kOwn, kOther };  // own = `whole`, other = `sent` or `arrived`
  Buffer buffer;
  int64_t row;
};

RAINFUSION_HOST_DEVICE inline Place packed(const Exchange& e, int32_t b, int32_t head,
                                           int32_t token) {
  if (e.heads.owner(head) == e.rank) return {Place::kOwn, e.whole_row(b, head, token)};
  if (e.is_text(token)) return {Place::kNowhere, 0};  // the owner of the head has it too
  return {Place::kOther, e.sent_row(b, head, token)};
}

RAINFUSION_HOST_DEVICE inline Place unpacked(const Exchange& e, int32_t b, int32_t head,
                                             int32_t token) {
  if (e.heads.owner(head) == e.rank) return {Place::kOwn, e.whole_row(b, head, token)};
  return {Place::kOther, e.arrived_row(b, head, token)};
}

}  // namespace rainfusion::parallel
