// What sets the methods apart, once: a new method is a row here, and its rule in plan/decide.cu if
// it is not one of these.
#pragma once

#include <cstdint>

#include "common/sparsity.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion {

constexpr int kMaxBands = 3;  // that a method tries along an axis

// How a head's kind and mask are found.
enum class Rule : int32_t {
  kAlpha,    // temporal, then spatial, where the recall of a band reaches alpha; else textural
  kTwoWay,   // temporal or spatial, by the larger recall
  kBlocks,   // each query block chooses its own key blocks, by products of block means
  kWindows,  // each query window chooses its own key windows; the others count by their means
};

struct MethodTraits {
  Rule rule;
  bool textural;              // whether a head may be textural
  int32_t bands;              // tried along each axis, by a rule that looks at axes
  int32_t widths[kMaxBands];  // of the bands in millionths, ascending; 0 = as the sparsity says

  RAINFUSION_HOST_DEVICE constexpr bool by_blocks() const { return rule == Rule::kBlocks; }
  RAINFUSION_HOST_DEVICE constexpr bool by_windows() const { return rule == Rule::kWindows; }

  // Width of a band in millionths.
  RAINFUSION_HOST_DEVICE int64_t band_at(float sparsity, int band) const {
    return widths[band] != 0 ? widths[band] : band_of(clamp_sparsity(sparsity));
  }
};

struct Method {
  const char* name;  // of the ONNX attribute
  MethodTraits traits;
};

// In the order of RainfusionMethod.
constexpr Method kMethods[] = {
    {"rainfusion", {Rule::kAlpha, true, 1, {0}}},
    {"rainfusion_two_way", {Rule::kTwoWay, false, 1, {0}}},
    {"rainfusion_plus", {Rule::kAlpha, true, 3, {kBandUnit / 8, kBandUnit / 4, kBandUnit / 2}}},
    {"rainfusion2", {Rule::kBlocks, false, 0, {}}},
    {"piecewise", {Rule::kWindows, false, 0, {}}},
};
constexpr int kMethodCount = sizeof(kMethods) / sizeof(kMethods[0]);
static_assert(kMethodCount == RAINFUSION_METHOD_PIECEWISE + 1, "a row for every method");

}  // namespace rainfusion
