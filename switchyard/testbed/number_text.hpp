#pragma once
// Numbers as people read them in a table.

#include <string>

namespace switchyard {

/// Fixed point with `digits` decimals, "0.419"; never "-0.000"; "-" for a value that is not finite.
[[nodiscard]] std::string number_text(double value, int digits);

}  // namespace switchyard
