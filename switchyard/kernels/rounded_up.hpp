#pragma once

#include <concepts>
#include <type_traits>

namespace switchyard {

/// The smallest multiple of `unit` that is not below `count`.
template <std::integral Number>
[[nodiscard]] constexpr Number rounded_up(Number count, std::type_identity_t<Number> unit) {
  return (count + unit - 1) / unit * unit;
}

}  // namespace switchyard
