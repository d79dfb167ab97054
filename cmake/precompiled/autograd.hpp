#pragma once
// For files that define differentiable operations: 3.2 CPU-seconds a file, where the header alone would cost 9.
#include "operations.hpp"

#include <torch/csrc/autograd/custom_function.h>
