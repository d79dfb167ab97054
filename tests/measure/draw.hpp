#pragma once
// Draws for properties. RapidCheck's inRange grows from its lower end over the trials, so that most trials would be 1 x 1
// tables; these are uniform from the first trial on.

#include <rapidcheck.h>

#include <cstdint>

namespace switchyard {

inline int64_t draw(int64_t begin, int64_t end) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<int64_t>(begin, end));
}

}  // namespace switchyard
