#include "switchyard/model/decoder_layer.hpp"

#include "switchyard/core/profile_scope.hpp"

namespace switchyard {
namespace {

constexpr const char* kResidualPart = "norm and residual";

std::variant<FeedForward, MoeLayer> make_feed_forward(const ModelConfig& config, std::optional<int64_t> moe_layer,
                                                      int64_t num_domains, const std::string& prefix,
                                                      const WeightSource& source) {
  if (moe_layer) return MoeLayer(config, *moe_layer, num_domains, prefix, source);
  return FeedForward(config.width, config.dense_width, prefix, source);
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, std::optional<int64_t> moe_layer, int64_t num_domains,
                           const std::string& prefix, const WeightSource& source)
    : epsilon_(config.norm_epsilon),
      attention_norm_(source.norm(prefix + "input_layernorm.weight", config.width)),
      feed_forward_norm_(source.norm(prefix + "post_attention_layernorm.weight", config.width)),
      attention_(config, prefix + "self_attn.", source),
      feed_forward_(make_feed_forward(config, moe_layer, num_domains, prefix + "mlp.", source)) {}

at::Tensor DecoderLayer::forward(const at::Tensor& hidden_TD, const LayerInput& input, LayerRun run) {
  const ResidualNorm before = norm(hidden_TD, at::Tensor(), attention_norm_);
  const ResidualNorm attended = norm(before.hidden_TD, attend(before.normed_TD, input), feed_forward_norm_);
  const at::Tensor added_TD = feed_forward(attended.normed_TD, input, run);
  const PartScope part(kResidualPart);
  return attended.hidden_TD.add(added_TD);
}

ResidualNorm DecoderLayer::norm(const at::Tensor& hidden_TD, const at::Tensor& added_TD, const Parameter& weight) const {
  const PartScope part(kResidualPart);
  return residual_rms_norm(hidden_TD, added_TD, weight.compute, epsilon_);
}

at::Tensor DecoderLayer::feed_forward(const at::Tensor& normed_TD, const LayerInput& input, LayerRun run) {
  if (MoeLayer* moe = std::get_if<MoeLayer>(&feed_forward_)) return moe->forward(normed_TD, input, run);
  const PartScope part("dense feed-forward");
  return std::get<FeedForward>(feed_forward_).forward(normed_TD);
}

at::Tensor DecoderLayer::attend(const at::Tensor& normed_TD, const LayerInput& input) const {
  const PartScope part("attention");
  return attention_.forward(normed_TD, input);
}

ParameterRefs DecoderLayer::parameters() {
  ParameterRefs all = {&attention_norm_};
  const auto add = [&](const ParameterRefs& some) { all.insert(all.end(), some.begin(), some.end()); };
  add(attention_.parameters());
  all.push_back(&feed_forward_norm_);
  add(std::visit([](auto& part) { return part.parameters(); }, feed_forward_));
  return all;
}

std::vector<NamedTensor> DecoderLayer::named_weights(const MasterValues& values) const {
  std::vector<NamedTensor> all = {{attention_norm_.name, values(attention_norm_)}};
  const auto add = [&](const std::vector<NamedTensor>& some) { all.insert(all.end(), some.begin(), some.end()); };
  add(attention_.named_weights(values));
  all.push_back({feed_forward_norm_.name, values(feed_forward_norm_)});
  add(std::visit([&](const auto& part) { return part.named_weights(values); }, feed_forward_));
  return all;
}

}  // namespace switchyard
