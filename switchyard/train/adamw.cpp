#include "switchyard/train/adamw.hpp"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <span>
#include <string>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/adamw.hpp"

namespace switchyard {
namespace {

constexpr const char* kPart = "optimizer";

void check_moment(const std::map<std::string, at::Tensor>& moments, const std::string& name, const at::Tensor& like) {
  const auto found = moments.find(name);
  SWITCHYARD_CHECK(found != moments.end(), DataError, "optimizer state has no tensor '", name,
                   "'; expected the two moments of every trained parameter");
  const at::Tensor& given = found->second;
  SWITCHYARD_CHECK(given.sizes() == like.sizes() && given.scalar_type() == like.scalar_type(), DataError,
                   "optimizer state '", name, "' is ", given.scalar_type(), " ", given.sizes(), "; expected ",
                   like.scalar_type(), " ", like.sizes());
}

}  // namespace

double global_gradient_norm(const ParameterRefs& parameters, Communicator& comm) {
  const at::NoGradGuard no_grad;
  const PartScope part(kPart);
  double squares_of_all = 0.0;
  double squares_of_parts = 0.0;  // of what ranks hold or sum in parts
  std::string problem;
  for (const Parameter* parameter : parameters) {
    const std::vector<at::Tensor> parts = gradient_parts(*parameter);
    if (parts.empty()) continue;
    const double squares = sum_of_squares(parts);
    if (!std::isfinite(squares) && problem.empty()) {
      problem = join_text("the gradient of '", parameter->name, "' has norm ", std::sqrt(squares),
                          "; expected a finite number. Lower the learning rate, or look for bad values in the data");
    }
    (is_sharded(*parameter) || shares_update(*parameter) ? squares_of_parts : squares_of_all) += squares;
  }
  SWITCHYARD_CHECK(problem.empty() || comm.size() > 1, StateError, problem);
  comm.all_reduce_sum(std::span(&squares_of_parts, 1));
  // Others learn of bad values in rows that only this rank has from the sum.
  if (!std::isfinite(squares_of_all + squares_of_parts)) throw_if_any(comm, problem);
  return std::sqrt(squares_of_all + squares_of_parts);
}

double clip_scale(double norm, double clip_norm) { return clip_norm <= 0.0 || norm <= clip_norm ? 1.0 : clip_norm / norm; }

AdamW::AdamW(const ParameterRefs& parameters, const OptimizerConfig& config) : config_(config), groups_(2) {
  groups_[0].weight_decay = config.weight_decay;
  for (Parameter* parameter : parameters) {
    if (parameter->training == Training::Frozen) continue;
    Group& group = parameter->decay == Decay::Yes ? groups_[0] : groups_[1];
    group.parameters.push_back(parameter);
    const at::ScalarType type = config.moments == MomentType::Full ? master_type(*parameter) : at::kBFloat16;
    group.first.push_back(at::zeros(updated_rows(*parameter, upper_or_whole(*parameter)).sizes(), type));
    group.second.push_back(at::zeros_like(group.first.back()));
  }
}

void AdamW::step(double learning_rate, double gradient_scale) {
  const PartScope part(kPart);
  ++steps_done_;
  const auto t = static_cast<double>(steps_done_);
  AdamWFactors factors;
  factors.gradient_scale = gradient_scale;
  factors.beta1 = config_.beta1;
  factors.beta2 = config_.beta2;
  factors.rate = learning_rate / (1.0 - std::pow(config_.beta1, t));
  factors.root_scale = 1.0 / std::sqrt(1.0 - std::pow(config_.beta2, t));
  factors.epsilon = config_.epsilon;
  for (const Group& group : groups_) {
    factors.keep = 1.0 - learning_rate * group.weight_decay;
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      const Parameter& parameter = *group.parameters[i];
      const at::Tensor weights = updated_rows(parameter, upper_or_whole(parameter));
      const at::Tensor lower = is_in_halves(parameter) ? updated_rows(parameter, parameter.lower) : at::Tensor();
      std::vector<at::Tensor> parts = gradient_parts(parameter);
      if (parts.empty()) parts.push_back(at::zeros_like(weights));
      adamw_update({weights.detach(), lower, group.first[i], group.second[i], parts}, factors);
    }
  }
}

std::map<std::string, at::Tensor> AdamW::moments() const {
  std::map<std::string, at::Tensor> result;
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      result[group.parameters[i]->name + ".first"] = group.first[i];
      result[group.parameters[i]->name + ".second"] = group.second[i];
    }
  }
  return result;
}

void AdamW::restore(const std::map<std::string, at::Tensor>& moments, int64_t steps_done) {
  const at::NoGradGuard no_grad;
  const auto own = this->moments();
  for (const auto& [name, tensor] : own) check_moment(moments, name, tensor);
  for (const auto& [name, tensor] : moments) {
    SWITCHYARD_CHECK(own.contains(name), DataError, "optimizer state holds '", name,
                     "', which is no moment of a trained parameter of this model");
  }
  for (const auto& [name, tensor] : own) tensor.copy_(moments.at(name));
  steps_done_ = steps_done;
}

}  // namespace switchyard
