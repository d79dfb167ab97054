#include "switchyard/train/update_shares.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/accumulate.hpp"

namespace switchyard {
namespace {

// To divide less would cost more messages than work.
constexpr int64_t kLeastNumbers = int64_t{1} << 14;

std::span<std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

// A gradient of one backward is in the compute type, a sum of several in the master's: all ranks send the wider of theirs.
std::vector<int64_t> in_master_type(const std::vector<Parameter*>& divided, Communicator& comm) {
  std::vector<int64_t> wide;
  for (const Parameter* parameter : divided) {
    wide.push_back(parameter->grad.defined() && parameter->grad.scalar_type() == parameter->master.scalar_type() ? 1 : 0);
  }
  comm.all_reduce_sum(std::span<int64_t>(wide));
  return wide;
}

at::Tensor sum_of_rows(const Parameter& parameter, at::ScalarType type, Communicator& comm) {
  const at::Tensor given = parameter.grad.defined() ? parameter.grad.to(type).contiguous()
                                                    : at::zeros_like(parameter.master, type);
  std::vector<int64_t> sizes = given.sizes().vec();
  sizes[0] = parameter.update.count;
  sizes.insert(sizes.begin(), comm.size());
  const at::Tensor parts = at::empty(sizes, given.options());
  const std::vector<int64_t> bytes_R(static_cast<size_t>(comm.size()), static_cast<int64_t>(parts[0].nbytes()));
  comm.all_to_all(bytes_of(given), bytes_R, bytes_of(parts), bytes_R);
  at::Tensor sum = parts[0].to(parameter.master.scalar_type());
  for (int64_t rank = 1; rank < comm.size(); ++rank) accumulate(sum, parts[rank]);
  return sum;
}

std::vector<Parameter*> divided_of(const ParameterRefs& parameters) {
  std::vector<Parameter*> divided;
  for (Parameter* parameter : parameters) {
    if (shares_update(*parameter)) divided.push_back(parameter);
  }
  return divided;
}

}  // namespace

void share_updates(const ParameterRefs& parameters, const Communicator& comm) {
  for (Parameter* parameter : parameters) {
    const at::Tensor& master = parameter->master;
    const bool whole = parameter->training == Training::Trained && !is_sharded(*parameter);
    const bool has_copy = parameter->compute.scalar_type() != master.scalar_type();
    if (!whole || !has_copy || master.numel() < kLeastNumbers || master.size(0) % comm.size() != 0) continue;
    const int64_t count = master.size(0) / comm.size();
    parameter->update = {comm.rank() * count, count};
  }
}

void sum_own_rows(const ParameterRefs& parameters, Communicator& comm) {
  const at::NoGradGuard no_grad;
  const std::vector<Parameter*> divided = divided_of(parameters);
  if (divided.empty()) return;
  const std::vector<int64_t> wide = in_master_type(divided, comm);
  for (size_t i = 0; i < divided.size(); ++i) {
    Parameter& parameter = *divided[i];
    parameter.grad = sum_of_rows(parameter, (wide[i] > 0 ? parameter.master : parameter.compute).scalar_type(), comm);
  }
}

void gather_updates(const ParameterRefs& parameters, Communicator& comm) {
  const at::NoGradGuard no_grad;
  const PartScope part("weights over ranks");
  for (const Parameter* parameter : divided_of(parameters)) {
    const at::Tensor compute = parameter->compute.detach();
    const int64_t count = parameter->update.count;
    for (int64_t root = 0; root < comm.size(); ++root) comm.broadcast(bytes_of(compute.narrow(0, root * count, count)), root);
  }
}

}  // namespace switchyard
