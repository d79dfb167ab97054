#pragma once
// The factories of all routers, one line each; router/table.cpp names them.

#include <memory>

#include "switchyard/router/router.hpp"

namespace switchyard {

using RouterFactory = std::unique_ptr<Router>(const RouterConfig&, const RouterShape&, Rng& init);

RouterFactory make_top_k_router;
RouterFactory make_frozen_random_router;
RouterFactory make_random_router;
RouterFactory make_prescribed_router;
RouterFactory make_prescribed_shuffled_router;

}  // namespace switchyard
