#include "switchyard/measure/arm_kind.hpp"

#include <array>
#include <utility>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr std::array<std::pair<ArmKind, const char*>, 3> kKinds = {
    {{ArmKind::Trained, "trained"}, {ArmKind::Floor, "floor"}, {ArmKind::Ceiling, "ceiling"}}};

}  // namespace

std::string to_string(const ArmKind& kind) {
  for (const auto& [known, name] : kKinds) {
    if (known == kind) return name;
  }
  throw UsageError("an arm's kind that is none of the enum's");
}

void parse(std::string_view text, ArmKind& kind) {
  std::vector<std::string> names;
  for (const auto& [known, name] : kKinds) {
    names.emplace_back(name);
    if (text != name) continue;
    kind = known;
    return;
  }
  throw ConfigError(unknown_name("kind of arm", text, names));
}

}  // namespace switchyard
