// The GPU: whether this library holds code for it.
#pragma once

#include "common/result.h"

namespace rainfusion {

// Unsupported if nothing that the library was compiled to runs on this compute capability.
Result check_capability(int major, int minor);

// The current device's compute capability, major * 10 + minor, once it is checked.
Result device_capability(int* capability);

// What a launch came back with, and where it found no code after all (PTX that is newer than the
// driver, or whose compilation is switched off) also what the library holds and how to build it.
Result explain_launch(Result result, int capability);

}  // namespace rainfusion
