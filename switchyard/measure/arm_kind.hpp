#pragma once
// What an arm of a comparison is for.

#include <string>
#include <string_view>

namespace switchyard {

/// Floors (null routers) and ceilings (the reference) bound the trained arms; they do not compete with them.
enum class ArmKind { Trained, Floor, Ceiling };

[[nodiscard]] std::string to_string(const ArmKind& kind);  // "trained", "floor", "ceiling"
/// @throws ConfigError with the known names and the nearest one
void parse(std::string_view text, ArmKind& kind);

}  // namespace switchyard
