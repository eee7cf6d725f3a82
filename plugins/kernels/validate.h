// Checks of what callers hand in; every message names the value and the remedy.
#pragma once

#include "common/result.h"

namespace rainfusion {

Result validate_problem(const RainfusionProblem& problem);

// Parts of the above, for those who do not know all of a problem.
Result validate_head_size(int32_t head_size);
Result validate_grid_extents(const RainfusionProblem& problem);
Result validate_exact_frames(const RainfusionProblem& problem);

// `attention` asks for v and out too.
Result validate_tensors(const RainfusionProblem& problem, const RainfusionTensors& tensors,
                        bool attention);

}  // namespace rainfusion
