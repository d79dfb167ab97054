#pragma once
// What `switchyard conform` prints.

#include <vector>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/conform/suite.hpp"

namespace switchyard {

/// A table of checks by subjects with reasons below, or JSON. Returns kExitFailed if a check fails, else kExitDone.
int print_conformance(const std::vector<conform::Result>& results, OutputFormat format, Session& session);

}  // namespace switchyard
