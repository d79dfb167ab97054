#include "switchyard/measure/arm_kind.hpp"

#include <array>

#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kKinds = std::to_array<Spelling<ArmKind>>(
    {{ArmKind::Trained, "trained"}, {ArmKind::Floor, "floor"}, {ArmKind::Ceiling, "ceiling"}});

}  // namespace

std::string to_string(const ArmKind& kind) { return spelling_of(kKinds, kind); }
void parse(std::string_view text, ArmKind& kind) { kind = from_spelling("kind of arm", kKinds, text); }

}  // namespace switchyard
