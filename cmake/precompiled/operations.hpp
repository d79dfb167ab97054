#pragma once
// For files that compute with tensors: 1.7 CPU-seconds a file.
#include "tensor.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
