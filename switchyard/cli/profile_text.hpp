#pragma once
// A profile as tables for the screen.

#include <string>

#include "switchyard/train/profile.hpp"

namespace switchyard {

/// Ends in a newline.
[[nodiscard]] std::string profile_text(const ProfileReport& report);

}  // namespace switchyard
