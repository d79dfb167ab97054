#include "switchyard/cli/profile_text.hpp"

#include "switchyard/cli/terminal.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/testbed/number_text.hpp"

namespace switchyard {
namespace {

constexpr size_t kKernelsShown = 16;  // the rest is in summary.json

std::string milliseconds(double seconds) { return number_text(1e3 * seconds, 2); }
std::string percent(double share) { return number_text(100.0 * share, 1); }

}  // namespace

std::string profile_text(const ProfileReport& report) {
  using enum Align;
  std::vector<std::vector<std::string>> parts = {{"part", "forward ms", "backward ms", "% of step"}};
  for (const PartTime& part : report.parts) {
    parts.push_back({part.name, milliseconds(part.forward), milliseconds(part.backward), percent(part.total() / report.seconds)});
  }
  std::vector<std::vector<std::string>> kernels = {{"operation", "calls", "ms", "% of step", "GFLOP/s"}};
  for (const KernelTime& kernel : report.kernels) {
    if (kernels.size() > kKernelsShown) break;
    const bool known = kernel.flops > 0.0 && kernel.seconds > 0.0;
    kernels.push_back({kernel.name, number_text(kernel.calls, 0), milliseconds(kernel.seconds),
                       percent(kernel.seconds / report.seconds),
                       known ? number_text(1e-9 * kernel.flops / kernel.seconds, 0) : "-"});
  }
  return join_text("steps ", report.first_step, " to ", report.first_step + report.steps - 1, ": ",
                   milliseconds(report.seconds), " ms a step (with the profiler's own cost), ",
                   number_text(1e-9 * report.flops / report.seconds, 0), " GFLOP/s in matrix products, ",
                   percent(report.share_of_peak()), " % of the ", number_text(1e-9 * report.peak, 0),
                   " of a large product here\n\n", table_text(parts, {Left, Right, Right, Right}), "\n",
                   table_text(kernels, {Left, Right, Right, Right, Right}));
}

}  // namespace switchyard
