#pragma once
// Box-Muller on many pairs of random words, in SIMD (Highway) with the instruction set chosen at run time.

#include <cstdint>

namespace switchyard {

/// For each pair of words (w, v): radius = sqrt(-2 log u) with u in (0, 1] from w, angle = 2 pi v / 2^64;
/// out[2 i], out[2 i + 1] = deviation * radius * (cos, sin)(angle), computed in double and rounded once to fp32.
/// @param radius_words, angle_words  `pairs` each
/// @param out                        2 * pairs
void normals_from_words(const uint64_t* radius_words, const uint64_t* angle_words, int64_t pairs, double deviation, float* out);

}  // namespace switchyard
