#pragma once
// The types the kernels know: bf16, fp32 and double, and what each accumulates in.

#include <c10/core/ScalarType.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

/// fp32 for bf16 and fp32, double for double. Throws ShapeError for any other type.
[[nodiscard]] inline at::ScalarType wide_type(at::ScalarType type) {
  SWITCHYARD_CHECK(type == at::kBFloat16 || type == at::kFloat || type == at::kDouble, ShapeError, "kernel given ", type,
                   "; expected BFloat16, Float or Double");
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace switchyard
