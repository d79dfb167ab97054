#include "switchyard/model/weights.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/accumulate.hpp"
#include "switchyard/kernels/halves.hpp"

namespace switchyard {
namespace {

void draw(const WeightSource& source, const NamedTensor& part) {
  Rng rng(source.seed, "init", {hash_text(part.name)});
  if (part.tensor.scalar_type() == at::kFloat) {
    rng.fill_normal(part.tensor, source.deviation);
  } else {
    part.tensor.copy_(rng.normal_tensor(part.tensor.sizes(), source.deviation));
  }
}

Parameter with_master(const std::string& name, at::Tensor master) {
  Parameter parameter;
  parameter.name = name;
  parameter.master = std::move(master);
  return parameter;
}

}  // namespace

Parameter WeightSource::matrix(const std::string& name, c10::IntArrayRef sizes, const std::vector<Part>& parts) const {
  Parameter parameter = with_master(name, at::empty(sizes, master_type));
  const std::vector<Part> named = parts.empty() ? std::vector<Part>{{name, sizes[0]}} : parts;
  for (const NamedTensor& part : matrix_parts(parameter.master, named)) draw(*this, part);
  attach_compute(parameter, compute_type);
  return parameter;
}

Parameter WeightSource::expert_matrices(const std::string& name, int64_t num_experts, int64_t columns,
                                        const std::string& prefix, const std::vector<Part>& parts) const {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  const int64_t num_ranks = expert_ranks == nullptr ? 1 : expert_ranks->size();
  SWITCHYARD_CHECK(num_experts % num_ranks == 0, ConfigError, "model.num_experts is ", num_experts, ", which ", num_ranks,
                   " ranks cannot hold evenly; expected a multiple of ", num_ranks, ", or execution.experts = \"replicated\"");
  const int64_t own_experts = num_experts / num_ranks;
  Parameter parameter = with_master(name, at::empty({own_experts, rows, columns}, master_type));
  if (num_ranks > 1) parameter.shard = {expert_ranks->rank() * own_experts, num_experts};
  for (const NamedTensor& part : expert_parts(parameter.master, prefix, parts, parameter.shard.begin)) draw(*this, part);
  attach_compute(parameter, compute_type);
  return parameter;
}

Parameter WeightSource::norm(const std::string& name, int64_t width) const {
  Parameter parameter = with_master(name, at::ones({width}, master_type));
  parameter.decay = Decay::No;
  attach_compute(parameter, master_type);
  return parameter;
}

std::vector<NamedTensor> matrix_parts(const at::Tensor& matrix, const std::vector<WeightSource::Part>& parts) {
  std::vector<NamedTensor> views;
  int64_t row = 0;
  for (const WeightSource::Part& part : parts) {
    views.push_back({part.name, matrix.narrow(0, row, part.rows)});
    row += part.rows;
  }
  return views;
}

std::vector<NamedTensor> expert_parts(const at::Tensor& matrices_E, const std::string& prefix,
                                      const std::vector<WeightSource::Part>& parts, int64_t first_expert) {
  std::vector<NamedTensor> views;
  for (int64_t expert = 0; expert < matrices_E.size(0); ++expert) {
    for (const NamedTensor& part : matrix_parts(matrices_E.select(0, expert), parts)) {
      views.push_back({join_text(prefix, first_expert + expert, ".", part.name), part.tensor});
    }
  }
  return views;
}

void attach_compute(Parameter& parameter, at::ScalarType compute_type) {
  const c10::NoGradGuard no_grad;
  const at::ScalarType master_type = parameter.master.scalar_type();
  if (master_type == compute_type) {
    parameter.compute = parameter.master.detach();
  } else {
    SWITCHYARD_CHECK(master_type == at::kFloat && compute_type == at::kBFloat16, UsageError, "'", parameter.name, "' is ",
                     master_type, " and was to compute in ", compute_type, "; expected the same type, or BFloat16 beside Float");
    parameter.compute = at::empty_like(parameter.master, compute_type);
    parameter.lower = at::empty_like(parameter.master, at::kShort);
    split_halves(parameter.master, parameter.compute, parameter.lower);
    parameter.master.reset();
  }
  parameter.compute.set_requires_grad(parameter.training == Training::Trained);
}

at::Tensor master_of(const Parameter& parameter) {
  return is_in_halves(parameter) ? joined_halves(parameter.compute, parameter.lower) : parameter.master;
}

void set_master(Parameter& parameter, const at::Tensor& values) {
  const c10::NoGradGuard no_grad;
  SWITCHYARD_CHECK(values.sizes() == sizes_of(parameter), ShapeError, "'", parameter.name, "' is ", sizes_of(parameter),
                   "; it was given ", values.sizes());
  if (is_in_halves(parameter)) {
    split_halves(values.to(at::kFloat).contiguous(), parameter.compute, parameter.lower);
  } else {
    parameter.master.copy_(values);
  }
}

void collect_gradient(Parameter& parameter) {
  const at::Tensor fresh = parameter.compute.grad();
  if (!fresh.defined()) return;
  const c10::NoGradGuard no_grad;
  // A step of one backward needs no pass over the gradients: they stay in the type they were computed in.
  if (parameter.grad.defined()) {
    parameter.grad = parameter.grad.to(master_type(parameter));
    accumulate(parameter.grad, fresh);
  } else {
    parameter.grad = fresh;
  }
  parameter.compute.mutable_grad().reset();
}

}  // namespace switchyard
