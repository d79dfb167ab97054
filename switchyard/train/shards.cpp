#include "switchyard/train/shards.hpp"

#include <ATen/ops/empty.h>

#include <span>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

/// An all-to-all in which only the first rank receives.
at::Tensor gather_rows(const at::Tensor& own, const OwnRows& rows, Communicator& comm) {
  const at::Tensor sent = own.contiguous();
  std::vector<int64_t> to_R(static_cast<size_t>(comm.size()), 0);
  std::vector<int64_t> from_R = to_R;
  const auto bytes = static_cast<int64_t>(sent.nbytes());
  to_R[0] = bytes;
  std::vector<int64_t> sizes = own.sizes().vec();
  sizes[0] = 0;
  if (comm.rank() == 0) {
    sizes[0] = rows.whole;
    from_R.assign(from_R.size(), bytes);  // the ranks hold equally many rows
  }
  at::Tensor whole = at::empty(sizes, own.options());
  const std::span<const std::byte> send(static_cast<const std::byte*>(sent.const_data_ptr()), sent.nbytes());
  const std::span<std::byte> receive(static_cast<std::byte*>(whole.mutable_data_ptr()), whole.nbytes());
  comm.all_to_all(send, to_R, receive, from_R);
  return comm.rank() == 0 ? whole : own;
}

// Of the parameter and its moments.
void set_rows(OwnRowsByName& rows, const Parameter& parameter, const OwnRows& own) {
  for (const char* suffix : {"", ".first", ".second"}) rows[parameter.name + suffix] = own;
}

}  // namespace

OwnRowsByName sharded_rows(const ParameterRefs& parameters) {
  OwnRowsByName rows;
  for (const Parameter* parameter : parameters) {
    if (!is_sharded(*parameter)) continue;
    set_rows(rows, *parameter, {parameter->shard.begin, sizes_of(*parameter)[0], parameter->shard.whole});
  }
  return rows;
}

OwnRowsByName kept_rows(const ParameterRefs& parameters) {
  OwnRowsByName rows = sharded_rows(parameters);
  for (const Parameter* parameter : parameters) {
    if (!shares_update(*parameter)) continue;
    set_rows(rows, *parameter, {parameter->update.begin, parameter->update.count, sizes_of(*parameter)[0]});
  }
  return rows;
}

TensorMap gather_whole(const TensorMap& own, const OwnRowsByName& rows, Communicator* comm) {
  TensorMap whole;
  for (const auto& [name, tensor] : own) {
    const auto found = rows.find(name);
    whole[name] = found == rows.end() || comm == nullptr ? tensor : gather_rows(tensor, found->second, *comm);
  }
  return whole;
}

TensorMap take_own(const TensorMap& whole, const OwnRowsByName& rows) {
  TensorMap own;
  for (const auto& [name, tensor] : whole) {
    const auto found = rows.find(name);
    if (found == rows.end()) {
      own[name] = tensor;
      continue;
    }
    const OwnRows& part = found->second;
    SWITCHYARD_CHECK(tensor.dim() >= 1 && tensor.size(0) == part.whole, DataError, "'", name, "' is ", tensor.sizes(),
                     "; the model of this configuration expects ", part.whole, " rows");
    own[name] = tensor.narrow(0, part.begin, part.count);
  }
  return own;
}

}  // namespace switchyard
