#pragma once
// Records the experts that a pre-pass chose and hands them to the second forward. T tokens, E experts, K chosen.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "switchyard/core/routing.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard {

/// Tokens whose K most probable experts are another set than ids_TK; 0 for routers without probabilities, whose choices are
/// functions of the token and cannot differ.
[[nodiscard]] int64_t count_other_choices(const Routing& routing, const at::Tensor& ids_TK);

class ChoiceRecorder {
 public:
  /// Makes the forward with this context record its choices. The recorder must outlive the forward.
  /// @throws UsageError during the forward when a router does not choose a fixed number of experts
  void record(size_t forward, ForwardContext& context);
  [[nodiscard]] bool has(size_t forward) const { return ids_LTK_.contains(forward); }
  /// Makes the forward with this context use them, and counts what it would have chosen otherwise.
  void replay(size_t forward, ForwardContext& context);
  [[nodiscard]] int64_t differences() const { return differences_; }

 private:
  std::map<size_t, std::vector<at::Tensor>> ids_LTK_;  // per forward, one tensor a MoE layer
  int64_t differences_ = 0;
};

}  // namespace switchyard
