// The caller's workspace: how it is cut into parts, and what bounds it.
//
// A cut that takes more bytes needs another RAINFUSION_WORKSPACE_LAYOUT (rainfusion.h): engines
// that were built before do not have them. tests/plugin/test_workspace.py notices.
#pragma once

#include <cstddef>

#include "common/params.h"
#include "common/result.h"

namespace rainfusion {

// Bytes needed for any sparsity. With a base address also sets the parts of `parts`.
size_t lay_out_workspace(const Geometry& geometry, void* base, Workspace* parts);

// Bytes that are enough for every valid problem of these attributes whose sizes are each at most
// those of `largest`.
Result bound_workspace(const RainfusionProblem& largest, size_t* bytes);

}  // namespace rainfusion
