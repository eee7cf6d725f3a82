// Constants of the online softmax, for every attention kernel.
#pragma once

namespace rainfusion {

constexpr float kLog2E = 1.4426950408889634f;

// How far (in powers of two) scores may pass a row's reference before it is moved. Probabilities
// up to 2^8 keep their relative precision in T, and rescaling the accumulators becomes rare.
constexpr float kRescaleSlack = 8.f;

// Sums of exponentials up to which none of them is too large for float16, and for float32.
constexpr float kLargestSum = 32768.f;
constexpr float kLargestFiniteSum = 1e30f;

}  // namespace rainfusion
