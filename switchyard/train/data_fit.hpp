#pragma once
// Whether a run and its data set go together.

#include "switchyard/data/dataset.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

/// @throws ConfigError for another vocabulary, and for a model without experts
void check_fits(const RunConfig& config, const Dataset& dataset);

/// All that a run asks of its data set before it starts: vocabulary, domains, text enough to train and evaluate on.
/// @throws ConfigError, UsageError, DataError: what the run would throw
void check_data_of_run(const RunConfig& config, const Dataset& dataset);

}  // namespace switchyard
