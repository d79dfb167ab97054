#pragma once
// Statistics over seeds.

#include <cstdint>
#include <optional>
#include <span>

namespace switchyard {

/// An interval for a mean.
struct Interval {
  double lower = 0.0;
  double upper = 0.0;
};

struct Summary {
  int64_t count = 0;
  double mean = 0.0;                 // NaN for no values
  std::optional<double> deviation;   // sample standard deviation (n - 1); from 2 values on
  std::optional<Interval> interval;  // mean -+ t * deviation / sqrt(n), n - 1 degrees of freedom; from 2 values on
};

/// A value that is not finite (a run that diverged) makes the mean NaN and leaves no deviation and no interval.
/// @param confidence  in (0, 1)
/// @throws UsageError for another confidence
[[nodiscard]] Summary summarize(std::span<const double> values, double confidence = 0.95);

/// Summary of left[i] - right[i]: the two arms on the same seed i.
/// @throws UsageError when the lengths differ
[[nodiscard]] Summary summarize_differences(std::span<const double> left, std::span<const double> right,
                                            double confidence = 0.95);

/// P(X <= t) for Student's t (Abramowitz and Stegun 26.7.1, by the incomplete beta function 26.5.8). Relative error of the
/// nearer tail (against 40 digits): below 1e-13 for up to 100 degrees, 1e-9 for up to 1e6. Offered to callers; here only the
/// tests need it, to prove its inverse.
/// @param degrees  of freedom, > 0
[[nodiscard]] double student_t_probability(double t, double degrees);

/// Its inverse.
/// @param probability  in (0, 1)
/// @throws UsageError for another probability or degrees <= 0
[[nodiscard]] double student_t_quantile(double probability, double degrees);

}  // namespace switchyard
