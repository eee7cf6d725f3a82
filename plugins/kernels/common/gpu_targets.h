// Which GPUs code compiled for a list of targets runs on: CUDA's rules of compatibility.
#pragma once

#include <cstddef>
#include <string_view>

namespace rainfusion {

// One target: machine code, "sm_80", or PTX, "compute_80". Machine code runs on later GPUs of its
// major version, PTX on all later ones. With the suffix "a" either runs on that GPU alone, with "f"
// on later ones of its major version.
constexpr bool target_runs_on(std::string_view target, int major, int minor) {
  constexpr std::string_view kCode = "sm_";
  constexpr std::string_view kPtx = "compute_";
  const bool ptx = target.substr(0, kPtx.size()) == kPtx;
  if (!ptx && target.substr(0, kCode.size()) != kCode) return false;
  target.remove_prefix(ptx ? kPtx.size() : kCode.size());
  int number = 0;
  for (; !target.empty() && target.front() >= '0' && target.front() <= '9';
       target.remove_prefix(1)) {
    number = number * 10 + (target.front() - '0');
  }
  const bool same_major = major == number / 10;
  const bool later_minor = same_major && minor >= number % 10;
  if (target == "a") return same_major && minor == number % 10;
  if (target == "f") return later_minor;
  return target.empty() && number > 0 && (later_minor || (ptx && major > number / 10));
}

// Whether any of `targets`, which spaces separate, runs on a GPU of this compute capability.
constexpr bool targets_run_on(std::string_view targets, int major, int minor) {
  while (!targets.empty()) {
    const std::size_t space = targets.find(' ');
    if (target_runs_on(targets.substr(0, space), major, minor)) return true;
    if (space == std::string_view::npos) return false;
    targets.remove_prefix(space + 1);
  }
  return false;
}

}  // namespace rainfusion
