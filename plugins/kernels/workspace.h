// The one place that cuts the caller's workspace into parts.
#pragma once

#include <cstddef>

#include "common/params.h"

namespace rainfusion {

// Bytes needed for any sparsity. With a base address also sets the parts of `parts`.
size_t lay_out_workspace(const Geometry& geometry, void* base, Workspace* parts);

}  // namespace rainfusion
