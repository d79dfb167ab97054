#include "model/tiny.hpp"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "switchyard/core/rng.hpp"

namespace switchyard::testing {

ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 19;
  config.width = 12;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_width = 6;
  config.num_experts = 4;
  config.num_chosen = 2;
  config.expert_width = 5;
  config.dense_width = 7;
  config.rope_theta = 1e4;
  config.init_deviation = 0.4;
  config.router.init_deviation = 0.4;
  return config;
}

Batch random_batch(int64_t rows, int64_t positions, int64_t vocabulary, uint64_t stream) {
  Rng rng(11, "batch", {stream});
  Batch batch;
  at::Tensor text = at::zeros({rows, positions + 1}, at::kLong);
  for (int64_t i = 0; i < text.numel(); ++i) {
    text.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(vocabulary)));
  }
  batch.ids_BS = text.narrow(1, 0, positions).clone();
  batch.targets_BS = text.narrow(1, 1, positions).clone();
  batch.segment_T = at::arange(rows, at::kLong).repeat_interleave(positions);
  batch.domain_T = at::zeros({rows * positions}, at::kLong);
  batch.document_T = batch.segment_T.clone();
  batch.segment_tokens.assign(static_cast<size_t>(rows), positions);
  batch.segment_micro_batch.assign(static_cast<size_t>(rows), 0);
  return batch;
}

Batch padded_batch(int64_t rows, int64_t positions, int64_t vocabulary, uint64_t stream, int64_t padded) {
  Batch batch = random_batch(rows, positions, vocabulary, stream);
  const int64_t begin = rows * positions - padded;
  batch.ids_BS.view({-1}).narrow(0, begin, padded).fill_(0);
  batch.targets_BS.view({-1}).narrow(0, begin, padded).fill_(kIgnoredTarget);
  for (const at::Tensor& label : {batch.segment_T, batch.domain_T, batch.document_T}) label.narrow(0, begin, padded).fill_(-1);
  batch.segment_tokens.back() -= padded;
  return batch;
}

double run_step(Decoder& model, const Batch& batch, const ForwardContext& context) {
  const at::Tensor loss = model.loss_sum(model.forward(batch, context), batch.targets_BS.reshape({-1}));
  loss.backward();
  model.collect_gradients();
  return loss.item<double>();
}

std::vector<NamedTensor> gradients_of(Decoder& model) {
  std::vector<NamedTensor> gradients;
  for (const Parameter* parameter : model.parameters()) {
    gradients.push_back({parameter->name, parameter->grad.defined() ? parameter->grad.clone() : at::Tensor()});
  }
  return gradients;
}

}  // namespace switchyard::testing
