#include "switchyard/train/adamw.hpp"

#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kLargestExactStep = int64_t{1} << 24;  // ATen wants the step number as fp32

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

double global_gradient_norm(const ParameterRefs& parameters) {
  const at::NoGradGuard no_grad;
  double sum_of_squares = 0.0;
  for (const Parameter* parameter : parameters) {
    if (!parameter->grad.defined()) continue;
    const double norm = at::linalg_vector_norm(parameter->grad, 2).item<double>();
    SWITCHYARD_CHECK(std::isfinite(norm), StateError, "the gradient of '", parameter->name, "' has norm ", norm,
                     "; expected a finite number. Lower the learning rate, or look for bad values in the data");
    sum_of_squares += norm * norm;
  }
  return std::sqrt(sum_of_squares);
}

void clip_gradients(const ParameterRefs& parameters, double norm, double clip_norm) {
  if (clip_norm <= 0.0 || norm <= clip_norm) return;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const Parameter* parameter : parameters) {
    if (parameter->grad.defined()) gradients.push_back(parameter->grad);
  }
  at::_foreach_mul_(gradients, clip_norm / norm);
}

AdamW::AdamW(const ParameterRefs& parameters, const OptimizerConfig& config) : config_(config), groups_(2) {
  groups_[0].weight_decay = config.weight_decay;
  for (Parameter* parameter : parameters) {
    if (parameter->training == Training::Frozen) continue;
    Group& group = parameter->decay == Decay::Yes ? groups_[0] : groups_[1];
    group.parameters.push_back(parameter);
    group.first.push_back(at::zeros_like(parameter->master));
    group.second.push_back(at::zeros_like(parameter->master));
  }
}

void AdamW::step(double learning_rate) {
  const at::NoGradGuard no_grad;
  SWITCHYARD_CHECK(steps_done_ < kLargestExactStep, StateError, "AdamW can count ", kLargestExactStep, " steps");
  ++steps_done_;
  for (Group& group : groups_) step_group(group, learning_rate);
}

void AdamW::step_group(Group& group, double learning_rate) {
  if (group.parameters.empty()) return;
  std::vector<at::Tensor> masters;
  std::vector<at::Tensor> gradients;
  const at::Tensor step = at::full({}, steps_done_, at::TensorOptions(at::kFloat));
  for (const Parameter* parameter : group.parameters) {
    masters.push_back(parameter->master);
    gradients.push_back(parameter->grad.defined() ? parameter->grad : at::zeros_like(parameter->master));
  }
  const std::vector<at::Tensor> steps(masters.size(), step);
  at::_fused_adamw_(masters, gradients, group.first, group.second, /*max_exp_avg_sqs=*/{}, steps, learning_rate,
                    config_.beta1, config_.beta2, group.weight_decay, config_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
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
