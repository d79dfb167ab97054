#include "switchyard/train/step_profiler.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

namespace profiler = torch::autograd::profiler;
using Clock = std::chrono::steady_clock;

constexpr std::string_view kNodePrefix = "autograd::engine::evaluate_function: ";

int64_t now_ns() { return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count(); }

double measure_peak(ComputeType compute) {
  constexpr int64_t kSide = 1024;
  constexpr int kRepeats = 8;
  const at::NoGradGuard no_grad;
  const at::ScalarType type = compute == ComputeType::Float64 ? at::kDouble
                              : compute == ComputeType::BFloat16 ? at::kBFloat16
                                                                 : at::kFloat;
  // Real numbers: on equal ones the processor switches less, clocks higher, and no product of a model would ever be as fast.
  const at::Tensor a = Rng(1, "peak").normal_tensor({kSide, kSide}, 1.0).to(type);
  double best = 0.0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const int64_t begin = now_ns();
    const at::Tensor product = at::mm(a, a);
    best = std::max(best, 2.0 * kSide * kSide * kSide / (1e-9 * static_cast<double>(now_ns() - begin)));
  }
  return best;
}

const std::set<torch::profiler::impl::ActivityType>& activities() {
  static const std::set<torch::profiler::impl::ActivityType> processor = {torch::profiler::impl::ActivityType::CPU};
  return processor;
}

// "torch::autograd::CppNode<switchyard::(anonymous namespace)::ExpertsFunction>" is the backward of ours.
std::string short_name(const std::string& name) {
  constexpr std::string_view kOwnNode = "torch::autograd::CppNode<";
  if (!name.starts_with(kOwnNode)) return name;
  const size_t begin = name.rfind("::") + 2;
  return name.substr(begin, name.size() - 1 - begin) + " backward";
}

ProfileEvent event_of(const profiler::KinetoEvent& given) {
  ProfileEvent event{.name = short_name(given.name()), .thread = given.startThreadId(), .begin_ns = static_cast<int64_t>(given.startNs()),
                     .end_ns = static_cast<int64_t>(given.endNs()), .sequence = given.sequenceNr(),
                     .flops = static_cast<int64_t>(given.flops())};
  const auto scope = static_cast<at::RecordScope>(given.scope());
  if (scope == at::RecordScope::USER_SCOPE) event.kind = ProfileKind::Part;
  if (scope == at::RecordScope::BACKWARD_FUNCTION) event.kind = ProfileKind::Backward;
  if (event.name.starts_with(kNodePrefix)) {  // the engine's own work around a node, such as adding up gradients
    event.kind = ProfileKind::Backward;
    event.name = "autograd engine";
  }
  return event;
}

}  // namespace

StepProfiler::StepProfiler(ComputeType compute) : peak_(measure_peak(compute)) {
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO, /*report_input_shapes=*/true,
                                                     /*profile_memory=*/false, /*with_stack=*/false, /*with_flops=*/true);
  profiler::prepareProfiler(config, activities());
  profiler::enableProfiler(config, activities());
}

StepProfiler::~StepProfiler() {
  if (recording_) static_cast<void>(profiler::disableProfiler());
}

ProfileReport StepProfiler::finish(int64_t steps, double flops, const std::filesystem::path& trace) {
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  recording_ = false;
  std::vector<ProfileEvent> events;
  for (const profiler::KinetoEvent& event : result->events()) events.push_back(event_of(event));
  ProfileReport report = summarize_profile(std::move(events), steps);
  report.flops = flops;
  report.peak = peak_;
  result->save(trace.string());
  SWITCHYARD_CHECK(std::filesystem::exists(trace), DataError, "the trace ", trace.string(),
                   " could not be written; look for a full disk or a folder that may not be written to");
  return report;
}

}  // namespace switchyard
