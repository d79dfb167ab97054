#include "switchyard/train/update_shares.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/core/profile_scope.hpp"

namespace switchyard {
namespace {

// To divide less would cost more messages than work.
constexpr int64_t kLeastNumbers = int64_t{1} << 14;
// Of the rows of one rank, which travel in one message: MPI ends at 2 GiB. What is larger is summed in pieces (gradients.cpp).
constexpr int64_t kMostBytes = int64_t{1} << 30;

std::span<std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

// A gradient of one backward is in the compute type, a sum of several in the master's: all ranks send the wider of theirs.
std::vector<int64_t> in_master_type(const std::vector<Parameter*>& divided, Communicator& comm) {
  std::vector<int64_t> wide;
  for (const Parameter* parameter : divided) {
    wide.push_back(parameter->grad.defined() && parameter->grad.scalar_type() == master_type(*parameter) ? 1 : 0);
  }
  comm.all_reduce_sum(std::span<int64_t>(wide));
  return wide;
}

// One parameter's gradients on their way: every rank sends the others their rows. A call to those before this rank and one to
// those behind it, so that what is sent lies in one piece and this rank's own rows are not copied.
class RowsUnderWay {
 public:
  RowsUnderWay(const Parameter& parameter, at::ScalarType type, Communicator& comm)
      : rank_(comm.rank()),
        count_(parameter.update.count),
        given_(parameter.grad.defined() ? parameter.grad.to(type).contiguous() : at::zeros(sizes_of(parameter), type)) {
    std::vector<int64_t> sizes = given_.sizes().vec();
    sizes[0] = count_ * (comm.size() - 1);
    received_ = at::empty(sizes, given_.options());
    const auto row_bytes = static_cast<int64_t>(given_.nbytes()) / given_.size(0);
    std::vector<int64_t> before_R(static_cast<size_t>(comm.size())), behind_R(before_R);
    for (int64_t rank = 0; rank < comm.size(); ++rank) {
      if (rank != rank_) (rank < rank_ ? before_R : behind_R)[static_cast<size_t>(rank)] = count_ * row_bytes;
    }
    const at::Tensor to_before = given_.narrow(0, 0, rank_ * count_);
    const at::Tensor to_behind = given_.narrow(0, (rank_ + 1) * count_, given_.size(0) - (rank_ + 1) * count_);
    const at::Tensor from_before = received_.narrow(0, 0, rank_ * count_);
    const at::Tensor from_behind = received_.narrow(0, rank_ * count_, received_.size(0) - rank_ * count_);
    down_ = comm.start_all_to_all(bytes_of(to_before), before_R, bytes_of(from_behind), behind_R, CallMode::Blocking);
    up_ = comm.start_all_to_all(bytes_of(to_behind), behind_R, bytes_of(from_before), before_R, CallMode::Blocking);
  }

  std::vector<at::Tensor> parts_R() {
    down_.wait();
    up_.wait();
    std::vector<at::Tensor> result;
    for (int64_t row = 0; row < received_.size(0); row += count_) result.push_back(received_.narrow(0, row, count_));
    result.insert(result.begin() + rank_, given_.narrow(0, rank_ * count_, count_));
    return result;
  }

 private:
  int64_t rank_, count_;
  at::Tensor given_, received_;
  Pending down_, up_;
};

std::vector<Parameter*> divided_of(const ParameterRefs& parameters) {
  std::vector<Parameter*> divided;
  for (Parameter* parameter : parameters) {
    if (shares_update(*parameter)) divided.push_back(parameter);
  }
  return divided;
}

}  // namespace

void share_updates(const ParameterRefs& parameters, const Communicator& comm) {
  if (comm.size() == 1) return;
  for (Parameter* parameter : parameters) {
    const bool whole = parameter->training == Training::Trained && !is_sharded(*parameter);
    const at::Tensor& compute = parameter->compute;
    if (!whole || compute.numel() < kLeastNumbers || compute.size(0) % comm.size() != 0) continue;
    const auto wide_bytes = static_cast<int64_t>(c10::elementSize(master_type(*parameter)));
    if (compute.numel() / comm.size() > kMostBytes / wide_bytes) continue;
    const int64_t count = compute.size(0) / comm.size();
    parameter->update = {comm.rank() * count, count};
  }
}

void exchange_rows(const ParameterRefs& parameters, Communicator& comm) {
  const at::NoGradGuard no_grad;
  const std::vector<Parameter*> divided = divided_of(parameters);
  if (divided.empty()) return;
  const std::vector<int64_t> wide = in_master_type(divided, comm);
  std::vector<RowsUnderWay> under_way;
  for (size_t i = 0; i < divided.size(); ++i) {
    const Parameter& parameter = *divided[i];
    const at::ScalarType type = wide[i] > 0 ? master_type(parameter) : parameter.compute.scalar_type();
    under_way.emplace_back(parameter, type, comm);
  }
  for (size_t i = 0; i < divided.size(); ++i) {
    divided[i]->grad_parts = under_way[i].parts_R();
    divided[i]->grad.reset();
  }
}

void gather_updates(const ParameterRefs& parameters, Communicator& comm) {
  if (comm.size() == 1) return;  // and is no part of a profile
  const at::NoGradGuard no_grad;
  const PartScope part("weights over ranks");
  std::vector<Pending> under_way;
  for (const Parameter* parameter : divided_of(parameters)) {
    under_way.push_back(comm.start_all_gather_in_place(bytes_of(parameter->compute.detach()), CallMode::Blocking));
  }
  for (Pending& rows : under_way) rows.wait();
}

}  // namespace switchyard
