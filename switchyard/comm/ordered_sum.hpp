#pragma once
// The one way in which ranks' vectors are added: element by element, rank 0 first. R: ranks.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/comm/call.hpp"

namespace switchyard {

/// output[i] = ((inputs_R[0][i] + inputs_R[1][i]) + ...) for i in [0, length). The output may be one of the inputs.
template <typename T>
void ordered_sum(std::span<const T* const> inputs_R, T* output, size_t length) {
  // Through a block on the stack: it vectorises, and an output that is also an input is read before it is written.
  constexpr size_t kBlock = 512;
  std::array<T, kBlock> sum;
  for (size_t begin = 0; begin < length; begin += kBlock) {
    const size_t count = std::min(kBlock, length - begin);
    std::copy_n(inputs_R[0] + begin, count, sum.begin());
    for (const T* input : inputs_R.subspan(1)) {
      for (size_t i = 0; i < count; ++i) sum[i] += input[begin + i];
    }
    std::copy_n(sum.begin(), count, output + begin);
  }
}

/// The same for memory whose type is known only when it runs.
inline void ordered_sum(ElementType type, std::span<const std::byte* const> inputs_R, std::span<std::byte> output) {
  const auto add = [&]<typename T>(T*) {
    std::vector<const T*> typed_R;
    for (const std::byte* input : inputs_R) typed_R.push_back(reinterpret_cast<const T*>(input));
    ordered_sum<T>(typed_R, reinterpret_cast<T*>(output.data()), output.size() / sizeof(T));
  };
  switch (type) {
    case ElementType::Int64:
      return add(static_cast<int64_t*>(nullptr));
    case ElementType::Double:
      return add(static_cast<double*>(nullptr));
    case ElementType::Float:
      return add(static_cast<float*>(nullptr));
    case ElementType::Bytes:
      return;  // the interface offers no sum of bytes
  }
}

}  // namespace switchyard
