#pragma once
// tokens -> experts. A router is one file, with a class and a factory that routers.hpp, table.cpp and CMakeLists.txt name
// (docs/guides/add-a-router.md).
// T tokens, D width, E experts, K chosen per token.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/core/parameter.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/core/routing.hpp"

namespace switchyard {

enum class RoutingPhase {
  Train,     // the forward that is differentiated; also its re-run under recomputation
  Count,     // no-grad pre-pass: must choose exactly as Train will
  Evaluate,  // leaves no trace in any state
};

/// Which scores the offsets of balance/selection.hpp are added to.
enum class SelectionScore { Probs, Logits };

/// Everything a router may look at besides the hidden states. Randomness is keyed by (seed, step, position in the step,
/// layer), so a pass that is run twice chooses the same experts.
struct RouteContext {
  RoutingPhase phase = RoutingPhase::Train;
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t layer = 0;
  int64_t first_token = 0;  // number of the first token of this forward within the step
  at::Tensor position_T{};  // int64, number of each token within the step, where they are not consecutive (ranks)
  at::Tensor token_T{};     // int64 token ids
  at::Tensor domain_T{};    // int64, -1 at padding
  at::Tensor document_T{};  // int64, -1 at padding
  at::Tensor valid_T{};     // bool; undefined: all valid

  /// Identity through which gradients of a balancing loss enter (balance/inject.hpp). Undefined: none. A router passes its
  /// logits and probabilities through before it uses them, so that the path to the loss exists.
  std::function<at::Tensor(const at::Tensor& logits_TE)> through_logits{};
  std::function<at::Tensor(const at::Tensor& probs_TE)> through_probs{};

  at::Tensor selection_offsets_E{};  // fp32, added to the scores that choose, never to weights; undefined: none
  SelectionScore selection_score = SelectionScore::Probs;

  at::Tensor replay_ids_TK{};  // choices recorded by a pre-pass, to be used instead of a new choice; undefined: choose
};

/// What sizes and which layer a router is made for.
struct RouterShape {
  int64_t width = 0;        // D
  int64_t num_experts = 0;  // E
  int64_t num_chosen = 0;   // K
  int64_t num_domains = 0;  // N; 0 when the data has no labels
  int64_t layer = 0;
  std::string name_prefix{};  // of its parameters: "model.layers.0.mlp.gate"
};

/// One router of one layer. Not thread safe.
class Router {
 public:
  virtual ~Router() = default;
  /// @param hidden_TD  the layer's normed input, any floating dtype; scores are computed in fp32 (double for double input)
  [[nodiscard]] virtual Routing route(const at::Tensor& hidden_TD, const RouteContext& context) = 0;
  [[nodiscard]] virtual ParameterRefs parameters() { return {}; }
};

/// ChosenSum: weights of the chosen experts sum to 1 (HF's norm_topk_prob). For K = 1 they are constants: the text's loss does
/// not reach a learned router then.
enum class WeightNormalization { None, ChosenSum };

struct RouterConfig {
  std::string name = "top_k";
  WeightNormalization normalize = WeightNormalization::ChosenSum;
  double init_deviation = 0.02;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("name", name, "router, one of `switchyard list routers`");
    visit("normalize", normalize, "combine weights of routers with scores: none or chosen_sum (the others: 1/K)");
    visit("init_deviation", init_deviation, "deviation of the router's initial weights");
  }
  void validate(const std::string& where) const;

  bool operator==(const RouterConfig&) const = default;
};

[[nodiscard]] std::string to_string(const WeightNormalization& value);
void parse(std::string_view text, WeightNormalization& value);

enum class TakesBalancing { No, Yes };  // whether a balancing loss can act on this router's choices

struct RouterEntry {
  std::string_view name;
  std::string_view description;  // one line
  std::string_view source;       // arXiv id or "own"
  TakesBalancing balancing;
  std::unique_ptr<Router> (*make)(const RouterConfig&, const RouterShape&, Rng& init);
};

/// All routers, explicitly.
[[nodiscard]] const std::vector<RouterEntry>& router_table();
/// @throws ConfigError with the known names and the nearest one
[[nodiscard]] const RouterEntry& find_router(std::string_view name);

}  // namespace switchyard
