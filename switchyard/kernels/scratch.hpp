#pragma once
// Memory of one task of a kernel, cut into matrices.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>

#include "switchyard/core/error.hpp"

namespace switchyard {

template <typename Value>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(at::empty({count}, c10::CppTypeToScalarType<Value>::value)) {}

  /// Uninitialised; begins on a cache line where all counts are multiples of 64 bytes.
  [[nodiscard]] Value* take(int64_t count) {
    Value* result = memory_.mutable_data_ptr<Value>() + taken_;
    taken_ += count;
    SWITCHYARD_CHECK(taken_ <= memory_.numel(), StateError, "scratch of ", memory_.numel(), " numbers was asked for ", taken_);
    return result;
  }

 private:
  at::Tensor memory_;
  int64_t taken_ = 0;
};

}  // namespace switchyard
