#include "switchyard/train/data_fit.hpp"

#include "switchyard/core/error.hpp"
#include "switchyard/data/batcher.hpp"
#include "switchyard/train/evaluate.hpp"

namespace switchyard {

void check_fits(const RunConfig& config, const Dataset& dataset) {
  SWITCHYARD_CHECK(config.model.vocab_size == dataset.vocab_size(), ConfigError, "model.vocab_size is ",
                   config.model.vocab_size, "; the data set ", dataset.folder().string(), " has ", dataset.vocab_size(),
                   " tokens: set model.vocab_size = ", dataset.vocab_size());
  SWITCHYARD_CHECK(config.model.num_moe_layers() > 0, ConfigError,
                   "model.dense_layers leaves no layer with experts; expected at least one of ", config.model.num_layers);
}

void check_data_of_run(const RunConfig& config, const Dataset& dataset) {
  check_fits(config, dataset);
  const Batcher batcher(dataset, config.data.batcher, static_cast<uint64_t>(config.seed));
  (void)load_heldout(dataset, config);
}

}  // namespace switchyard
