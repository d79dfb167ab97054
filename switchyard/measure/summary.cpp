#include "switchyard/measure/summary.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8) by the modified Lentz method; converges
// fast for x < (a + 1) / (a + b + 2).
double beta_fraction(double x, double a, double b) {
  constexpr double kTiny = 1e-300;
  constexpr int kTerms = 10000;
  const auto away_from_zero = [](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double c = 1.0;
  double d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
  double result = d;
  for (int m = 1; m <= kTerms; ++m) {
    const double even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
    d = 1.0 / away_from_zero(1.0 + even * d);
    c = away_from_zero(1.0 + even / c);
    result *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
    d = 1.0 / away_from_zero(1.0 + odd * d);
    c = away_from_zero(1.0 + odd / c);
    result *= d * c;
    if (std::abs(d * c - 1.0) < std::numeric_limits<double>::epsilon()) break;
  }
  return result;
}

// Regularized incomplete beta function I_x(a, b); y = 1 - x is given too because it may be tiny.
double incomplete_beta(double x, double y, double a, double b) {
  if (x <= 0.0) return 0.0;
  if (y <= 0.0) return 1.0;
  if (x > (a + 1.0) / (a + b + 2.0)) return 1.0 - incomplete_beta(y, x, b, a);
  const double log_front = std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log(y);
  return std::exp(log_front) * beta_fraction(x, a, b) / a;
}

// P(X > t) for t >= 0.
double upper_tail(double t, double degrees) {
  const double square = t * t;
  return 0.5 * incomplete_beta(degrees / (degrees + square), square / (degrees + square), 0.5 * degrees, 0.5);
}

}  // namespace

double student_t_probability(double t, double degrees) {
  SWITCHYARD_CHECK(degrees > 0.0, UsageError, "Student's t with ", degrees, " degrees of freedom; expected more than 0");
  const double tail = upper_tail(std::abs(t), degrees);
  return t > 0.0 ? 1.0 - tail : tail;
}

double student_t_quantile(double probability, double degrees) {
  SWITCHYARD_CHECK(probability > 0.0 && probability < 1.0, UsageError, "Student's t quantile of ", probability,
                   "; expected a probability between 0 and 1");
  SWITCHYARD_CHECK(degrees > 0.0, UsageError, "Student's t with ", degrees, " degrees of freedom; expected more than 0");
  const double tail = std::min(probability, 1.0 - probability);
  if (tail == 0.5) return 0.0;
  double low = 0.0;
  double high = 1.0;
  while (upper_tail(high, degrees) > tail && high < 1e150) {
    low = high;
    high *= 2.0;
  }
  // Bisection to the last bit: the tail falls monotonically, and this is called a few times per report.
  while (true) {
    const double middle = 0.5 * (low + high);
    if (middle <= low || middle >= high) break;
    (upper_tail(middle, degrees) > tail ? low : high) = middle;
  }
  return probability < 0.5 ? -high : high;
}

Summary summarize(std::span<const double> values, double confidence) {
  SWITCHYARD_CHECK(confidence > 0.0 && confidence < 1.0, UsageError, "confidence ", confidence,
                   "; expected a number between 0 and 1, such as 0.95");
  Summary summary;
  summary.count = static_cast<int64_t>(values.size());
  summary.mean = std::numeric_limits<double>::quiet_NaN();
  for (const double value : values) {
    if (!std::isfinite(value)) return summary;
  }
  if (values.empty()) return summary;
  const double count = static_cast<double>(values.size());
  // Differences from the first value: equal values have their own value as mean and deviation 0, without rounding.
  double shift = 0.0;
  for (const double value : values) shift += value - values.front();
  summary.mean = values.front() + shift / count;
  if (values.size() < 2) return summary;
  double squares = 0.0;
  for (const double value : values) squares += (value - summary.mean) * (value - summary.mean);
  summary.deviation = std::sqrt(squares / (count - 1.0));
  const double reach = student_t_quantile(0.5 + 0.5 * confidence, count - 1.0) * *summary.deviation / std::sqrt(count);
  summary.interval = Interval{summary.mean - reach, summary.mean + reach};
  return summary;
}

Summary summarize_differences(std::span<const double> left, std::span<const double> right, double confidence) {
  SWITCHYARD_CHECK(left.size() == right.size(), UsageError, "paired differences of ", left.size(), " and ", right.size(),
                   " values; expected one pair per seed");
  std::vector<double> differences;
  differences.reserve(left.size());
  for (size_t i = 0; i < left.size(); ++i) differences.push_back(left[i] - right[i]);
  return summarize(differences, confidence);
}

}  // namespace switchyard
