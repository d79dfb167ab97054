#include "switchyard/train/shards.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <span>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

/// An all-to-all in which only the first rank receives. The ranks give equally many rows.
/// @return rank after rank; undefined on the others
at::Tensor rows_to_first(const at::Tensor& own, Communicator& comm) {
  const at::Tensor sent = own.contiguous();
  std::vector<int64_t> to_R(static_cast<size_t>(comm.size()), 0);
  std::vector<int64_t> from_R = to_R;
  const auto bytes = static_cast<int64_t>(sent.nbytes());
  to_R[0] = bytes;
  at::Tensor received;
  std::span<std::byte> receive;
  if (comm.rank() == 0) {
    std::vector<int64_t> sizes = own.sizes().vec();
    sizes[0] *= comm.size();
    received = at::empty(sizes, own.options());
    receive = {static_cast<std::byte*>(received.mutable_data_ptr()), received.nbytes()};
    from_R.assign(from_R.size(), bytes);
  }
  comm.all_to_all(std::span(static_cast<const std::byte*>(sent.const_data_ptr()), sent.nbytes()), to_R, receive, from_R);
  return received;
}

at::Tensor gather_rows(const at::Tensor& own, const OwnRows& rows, Communicator& comm, int64_t most_bytes) {
  const int64_t row_bytes = std::max<int64_t>(static_cast<int64_t>(own.nbytes()) / rows.count, 1);
  const int64_t piece = std::max<int64_t>(most_bytes / (row_bytes * comm.size()), 1);
  if (piece >= rows.count) {
    const at::Tensor whole = rows_to_first(own, comm);
    return whole.defined() ? whole : own;
  }
  at::Tensor whole;
  for (int64_t begin = 0; begin < rows.count; begin += piece) {
    const int64_t some = std::min(piece, rows.count - begin);
    const at::Tensor received = rows_to_first(own.narrow(0, begin, some), comm);
    if (!received.defined()) continue;
    if (!whole.defined()) {
      std::vector<int64_t> sizes = own.sizes().vec();
      sizes[0] = rows.whole;
      whole = at::empty(sizes, own.options());
    }
    for (int64_t rank = 0; rank < comm.size(); ++rank) {
      whole.narrow(0, rank * rows.count + begin, some).copy_(received.narrow(0, rank * some, some));
    }
  }
  return whole.defined() ? whole : own;
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

TensorsToSave whole_tensors(TensorsToSave own, const OwnRowsByName& rows, Communicator& comm, int64_t most_bytes) {
  for (auto& [name, tensor] : own) {
    const auto found = rows.find(name);
    if (found == rows.end()) continue;
    const OwnRows part = found->second;
    tensor.sizes[0] = part.whole;
    tensor.make = [make = tensor.make, part, &comm, most_bytes] { return gather_rows(make(), part, comm, most_bytes); };
  }
  return own;
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
