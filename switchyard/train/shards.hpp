#pragma once
// Between the parts of tensors that ranks hold and whole tensors: what makes a checkpoint the same at any number of ranks.

#include <cstdint>
#include <map>
#include <string>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/parameter.hpp"
#include "switchyard/model/weights_file.hpp"

namespace switchyard {

/// The rows that this rank holds of a divided tensor.
struct OwnRows {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t whole = 0;  // over all ranks
};
using OwnRowsByName = std::map<std::string, OwnRows>;

/// Of each sharded parameter under its name, and of its two moments.
[[nodiscard]] OwnRowsByName sharded_rows(const ParameterRefs& parameters);

/// The same, and the rows whose masters and moments this rank alone keeps up to date (train/update_shares.hpp).
[[nodiscard]] OwnRowsByName kept_rows(const ParameterRefs& parameters);

/// Tensors of which this rank makes its part, made whole on the first rank, rank after rank; elsewhere they stay parts. Those that
/// are not divided are handed through. To make a divided one is collective: all ranks make them in one order.
/// @param comm        must outlive the result
/// @param most_bytes  that the first rank takes at a time; MPI's messages end at 2 GiB
[[nodiscard]] TensorsToSave whole_tensors(TensorsToSave own, const OwnRowsByName& rows, Communicator& comm,
                                          int64_t most_bytes = int64_t{1} << 30);

/// This rank's parts of whole tensors. No messages.
/// @throws DataError naming a tensor that has another number of rows
[[nodiscard]] TensorMap take_own(const TensorMap& whole, const OwnRowsByName& rows);

}  // namespace switchyard
