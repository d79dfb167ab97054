// The reference router: a token's domain says where it goes, and all experts are loaded equally. `prescribed_shuffled` is its
// null: the same table, but each document follows a random domain. Own definition.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string_view>

#include "switchyard/core/error.hpp"
#include "switchyard/router/choice.hpp"
#include "switchyard/router/prescribed_share.hpp"
#include "switchyard/router/routers.hpp"

namespace switchyard {
namespace {

enum class Labels { True, Shuffled };

constexpr std::string_view kDocumentStream = "router.shuffled_documents";
constexpr std::string_view kTokenStream = "router.prescribed";

std::string_view name_of(Labels labels) { return labels == Labels::True ? "prescribed" : "prescribed_shuffled"; }

// Systematic sampling: K points one unit (E parts) apart, the first at random, on the cumulative shares of the domain. A share
// of at most one unit holds at most one point, so the experts are distinct and each comes with exactly its share.
void sample_experts(const int64_t* units_E, int64_t num_experts, int64_t num_chosen, int64_t first_point, int64_t* ids_K) {
  int64_t point = first_point;
  int64_t covered = 0;
  int64_t found = 0;
  for (int64_t expert = 0; expert < num_experts && found < num_chosen; ++expert) {
    covered += units_E[expert];
    if (point < covered) {
      ids_K[found++] = expert;
      point += num_experts;
    }
  }
}

class PrescribedRouter : public Router {
 public:
  PrescribedRouter(Labels labels, const RouterShape& shape) : labels_(labels), shape_(shape) {
    check_router_shape(name_of(labels), shape);
    units_NE_ = prescribed_units_NE(shape.num_domains, shape.num_experts, shape.num_chosen);
  }

  Routing route(const at::Tensor& hidden_TD, const RouteContext& context) override {
    check_route_inputs(name_of(labels_), shape_, hidden_TD, context);
    const at::Tensor domain_T = domains_of(context, hidden_TD.size(0));
    const int64_t* domains = domain_T.const_data_ptr<int64_t>();
    const int64_t* units = units_NE_.const_data_ptr<int64_t>();
    const uint64_t key = stream_key(kTokenStream, context);
    at::Tensor ids_TK = at::empty({hidden_TD.size(0), shape_.num_chosen}, at::kLong);
    int64_t* ids = ids_TK.mutable_data_ptr<int64_t>();
    for (int64_t token = 0; token < hidden_TD.size(0); ++token) {
      int64_t* ids_K = ids + token * shape_.num_chosen;
      if (domains[token] < 0) {
        std::fill_n(ids_K, shape_.num_chosen, int64_t{-1});
        continue;
      }
      Rng stream = token_stream(key, context, token);
      const auto first_point = static_cast<int64_t>(stream.below(static_cast<uint64_t>(shape_.num_experts)));
      sample_experts(units + domains[token] * shape_.num_experts, shape_.num_experts, shape_.num_chosen, first_point, ids_K);
    }
    return equal_weight_routing(ids_TK, shape_, hidden_TD, context);
  }

 private:
  // Domain to follow of each token, -1 for padding; checked.
  [[nodiscard]] at::Tensor domains_of(const RouteContext& context, int64_t num_tokens) const {
    const bool shuffled = labels_ == Labels::Shuffled;
    const std::string_view what = shuffled ? "document_T" : "domain_T";
    const at::Tensor& label_T = shuffled ? context.document_T : context.domain_T;
    SWITCHYARD_CHECK(label_T.defined() && label_T.dim() == 1 && label_T.scalar_type() == at::kLong, ShapeError, "router '",
                     name_of(labels_), "', layer ", shape_.layer, ": ", what,
                     " must be an int64 tensor [T] of the batch's labels");
    const at::Tensor host_T = label_T.to(at::kCPU).contiguous();
    const at::Tensor valid_T = context.valid_T.defined() ? context.valid_T.to(at::kCPU).contiguous() : at::Tensor();
    at::Tensor domain_T = at::empty({num_tokens}, at::kLong);
    for (int64_t token = 0; token < num_tokens; ++token) {
      const int64_t label = host_T.const_data_ptr<int64_t>()[token];
      const bool valid = !valid_T.defined() || valid_T.const_data_ptr<bool>()[token];
      SWITCHYARD_CHECK(!valid || (label >= 0 && (shuffled || label < shape_.num_domains)), ShapeError, "router '",
                       name_of(labels_), "', layer ", shape_.layer, ": valid token ", token, " has ", what, " ", label,
                       "; expected a label of one of ", shape_.num_domains, " domains (documents: 0 or above)");
      domain_T.mutable_data_ptr<int64_t>()[token] = valid ? follow(label, context.seed) : -1;
    }
    return domain_T;
  }

  [[nodiscard]] int64_t follow(int64_t label, uint64_t seed) const {
    if (labels_ == Labels::True) return label;
    const uint64_t hash = hash_words({hash_text(kDocumentStream), seed, static_cast<uint64_t>(label)});
    return static_cast<int64_t>(hash % static_cast<uint64_t>(shape_.num_domains));
  }

  Labels labels_;
  RouterShape shape_;
  at::Tensor units_NE_;  // int64, share * E
};

}  // namespace

std::unique_ptr<Router> make_prescribed_router(const RouterConfig&, const RouterShape& shape, Rng&) {
  return std::make_unique<PrescribedRouter>(Labels::True, shape);
}

std::unique_ptr<Router> make_prescribed_shuffled_router(const RouterConfig&, const RouterShape& shape, Rng&) {
  return std::make_unique<PrescribedRouter>(Labels::Shuffled, shape);
}

}  // namespace switchyard
