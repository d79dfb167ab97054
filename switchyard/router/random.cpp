// Each token goes to K distinct experts drawn uniformly, whatever it is: a null that is balanced and knows nothing.

#include <ATen/ops/empty.h>

#include <numeric>
#include <vector>

#include "switchyard/router/choice.hpp"
#include "switchyard/router/routers.hpp"

namespace switchyard {
namespace {

class RandomRouter : public Router {
 public:
  explicit RandomRouter(const RouterShape& shape) : shape_(shape) { check_router_shape("random", shape); }

  Routing route(const at::Tensor& hidden_TD, const RouteContext& context) override {
    check_route_inputs("random", shape_, hidden_TD, context);
    const int64_t num_tokens = hidden_TD.size(0);
    const uint64_t key = stream_key("router.random", context);
    at::Tensor ids_TK = at::empty({num_tokens, shape_.num_chosen}, at::kLong);
    int64_t* id = ids_TK.mutable_data_ptr<int64_t>();
    std::vector<int64_t> experts_E(static_cast<size_t>(shape_.num_experts));
    for (int64_t token = 0; token < num_tokens; ++token) {
      Rng stream = token_stream(key, context, token);
      std::iota(experts_E.begin(), experts_E.end(), int64_t{0});
      // The first K swaps of a Fisher-Yates shuffle.
      for (size_t k = 0; k < static_cast<size_t>(shape_.num_chosen); ++k) {
        std::swap(experts_E[k], experts_E[k + stream.below(experts_E.size() - k)]);
        *id++ = experts_E[k];
      }
    }
    return equal_weight_routing(ids_TK, shape_, hidden_TD, context);
  }

 private:
  RouterShape shape_;
};

}  // namespace

std::unique_ptr<Router> make_random_router(const RouterConfig&, const RouterShape& shape, Rng&) {
  return std::make_unique<RandomRouter>(shape);
}

}  // namespace switchyard
