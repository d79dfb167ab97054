#pragma once
// Our own balance library as an implementation under test: with own_device the only files of this folder that know StepBalance.

#include <memory>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

/// Ranks are threads with a communicator each (comm/threads.hpp). Choices are those of the case, also under a selection rule.
[[nodiscard]] std::unique_ptr<Implementation> own_implementation();

}  // namespace switchyard::conform
