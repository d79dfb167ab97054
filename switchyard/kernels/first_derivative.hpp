#pragma once
// The fused operations can be differentiated once: each backward is plain arithmetic on numbers, which autograd does not see.

#include <c10/core/GradMode.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

/// The first thing that the backward of such an operation does. Under create_graph=true its results would enter the graph as
/// constants, and a second derivative (a gradient penalty, a Hessian product) would be wrong without a word.
/// @param instead  what to use where second derivatives are wanted
/// @throws UsageError under create_graph=true, which is when autograd runs a backward with grad mode enabled
inline void refuse_second_derivative(const char* operation, const char* instead) {
  SWITCHYARD_CHECK(!c10::GradMode::is_enabled(), UsageError, operation, ": its backward was run with create_graph=true, ",
                   "but second derivatives of it are not built; use create_graph=false, or ", instead);
}

}  // namespace switchyard
