#pragma once
// An implementation that says other things about itself.

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

class Declared : public Implementation {
 public:
  Declared(std::unique_ptr<Implementation> inner, Capabilities capabilities)
      : inner_(std::move(inner)), capabilities_(std::move(capabilities)) {}

  [[nodiscard]] std::string name() const override { return inner_->name(); }
  [[nodiscard]] Capabilities capabilities() const override { return capabilities_; }
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    return inner_->run_steps(steps, saved);
  }
  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    return inner_->accumulate(parts_ME);
  }

 private:
  std::unique_ptr<Implementation> inner_;
  Capabilities capabilities_;
};

}  // namespace switchyard::conform
