#pragma once
// Our own balance library as an implementation under test: the only file pair of this folder that knows StepBalance.

#include <memory>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

/// Ranks are played through in one process, by declaring the partition that they would make.
[[nodiscard]] std::unique_ptr<Implementation> own_implementation();

}  // namespace switchyard::conform
