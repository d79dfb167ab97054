#pragma once
// What program, on what machine: written into every run, so that a number can be traced.

#include <string>

namespace switchyard {

struct BuildInfo {
  std::string version;        // of Switchyard
  std::string commit;         // "git describe --always --dirty" at build time; "unknown" outside a repository
  std::string torch_version;  // of the headers it was compiled against
  std::string processor;      // model name and number of logical processors of this machine
};
[[nodiscard]] BuildInfo build_info();

}  // namespace switchyard
