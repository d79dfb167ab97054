// Used by tests/python/test_hf_parity.py:
//   model_tool export CONFIG.toml FOLDER   a random model, as a Hugging Face folder
//   model_tool logits FOLDER IDS OUT       imports FOLDER; IDS: safetensors with int64 "ids" [B, S]; OUT gets "logits" [B*S, V]
//   model_tool reexport FOLDER OUT         import, then export
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "switchyard/core/config.hpp"
#include "switchyard/model/hf_format.hpp"
#include "switchyard/model/weights_file.hpp"

namespace {

using namespace switchyard;

void export_random(const std::string& config_file, const std::string& folder) {
  ModelConfig config;
  read_config(parse_config_file(config_file), config);
  export_hf(Decoder(config, ComputeType::Float32, /*num_domains=*/1, /*seed=*/5), folder);
}

void write_logits(const std::string& folder, const std::string& ids_file, const std::string& out) {
  const c10::NoGradGuard no_grad;
  Decoder model = import_hf(folder, ComputeType::Float32);
  Batch batch;
  batch.ids_BS = load_tensors(ids_file).tensors.at("ids");
  const int64_t positions = batch.ids_BS.size(1);
  batch.segment_T = at::arange(batch.ids_BS.size(0), at::kLong).repeat_interleave(positions);
  batch.domain_T = at::zeros({batch.ids_BS.numel()}, at::kLong);
  batch.document_T = batch.segment_T;
  batch.segment_tokens.assign(static_cast<size_t>(batch.ids_BS.size(0)), positions);
  batch.segment_micro_batch.assign(static_cast<size_t>(batch.ids_BS.size(0)), 0);
  ForwardContext context;
  context.phase = RoutingPhase::Evaluate;
  save_tensors(out, {{"logits", model.logits_TV(model.forward(batch, context))}});
}

}  // namespace

int main(int count, char** values) {
  const std::vector<std::string> words(values + 1, values + count);
  try {
    if (words.size() == 3 && words[0] == "export") {
      export_random(words[1], words[2]);
    } else if (words.size() == 4 && words[0] == "logits") {
      write_logits(words[1], words[2], words[3]);
    } else if (words.size() == 3 && words[0] == "reexport") {
      export_hf(import_hf(words[1], ComputeType::Float32), words[2]);
    } else {
      std::fputs("usage: model_tool export CONFIG FOLDER | logits FOLDER IDS OUT | reexport FOLDER OUT\n", stderr);
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
