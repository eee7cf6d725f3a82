// Constants of the online softmax.
#pragma once

namespace rainfusion {

constexpr float kLog2E = 1.4426950408889634f;

// How far (in powers of two) scores may pass a row's reference before it is moved, where maxima are
// known (the portable kernel, recalls). Probabilities up to 2^8 keep their relative precision in T,
// and rescaling the accumulators becomes rare.
constexpr float kRescaleSlack = 8.f;

}  // namespace rainfusion
