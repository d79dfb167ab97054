#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <system_error>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/measure/run_log_lines.hpp"

namespace switchyard {
namespace {

bool is_kept(const LogLine& line, int64_t keep_until_step) {
  if (line.is_broken()) return false;
  // A start names the first step it is going to do, every other record the steps that are done.
  return line.kind == "start" ? line.step - 1 <= keep_until_step : line.step <= keep_until_step;
}

/// "2-4, 9" of steps in ascending order.
std::string list_of_steps(const std::vector<int64_t>& steps) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < steps.size();) {
    const size_t first = i++;
    while (i < steps.size() && steps[i] == steps[i - 1] + 1) ++i;
    const bool is_one = i == first + 1;
    parts.push_back(is_one ? join_text(steps[first]) : join_text(steps[first], "-", steps[i - 1]));
  }
  return join_text(steps.size() == 1 ? "step " : "steps ", comma_list(parts));
}

/// What a resumed run keeps of its log.
struct KeptLog {
  std::vector<LogLine> lines;
  std::vector<std::string> mended;  // what was found broken
};

/// Where nothing that is kept comes after them, lines that cannot be read are those of a process that could not write.
void cut_broken_end(KeptLog& kept, int64_t keep_until_step) {
  const auto is_last = [&](const LogLine& line) { return is_kept(line, keep_until_step); };
  const auto end = std::find_if(kept.lines.rbegin(), kept.lines.rend(), is_last).base();
  for (auto line = kept.lines.begin(); line != end; ++line) refuse_broken(*line);
  const auto broken = std::find_if(end, kept.lines.end(), [](const LogLine& line) { return line.is_broken(); });
  if (broken != kept.lines.end()) {
    kept.mended.push_back(join_text(broken->where, " could not be read (a full disk or a power cut leaves that): the run log was cut off "
                                    "behind the steps that the checkpoint has"));
  }
  std::erase_if(kept.lines, [&](const LogLine& line) { return !is_kept(line, keep_until_step); });
}

/// A run goes on from what the process did that came last.
void keep_last_of_each_step(KeptLog& kept) {
  std::map<int64_t, size_t> last_of;
  for (size_t i = 0; i < kept.lines.size(); ++i) {
    if (kept.lines[i].kind == "step") last_of[kept.lines[i].step] = i;
  }
  std::vector<int64_t> doubled;
  std::vector<LogLine> lines;
  for (size_t i = 0; i < kept.lines.size(); ++i) {
    const int64_t step = kept.lines[i].step;
    if (kept.lines[i].kind == "step" && last_of.at(step) != i) {
      doubled.push_back(step);
    } else {
      lines.push_back(std::move(kept.lines[i]));
    }
  }
  kept.lines = std::move(lines);
  std::ranges::sort(doubled);
  doubled.erase(std::unique(doubled.begin(), doubled.end()), doubled.end());
  if (doubled.empty()) return;
  kept.mended.push_back(join_text("the run log had ", list_of_steps(doubled), " more than once; the last line of each was kept"));
}

void tell_missing_steps(KeptLog& kept, int64_t keep_until_step) {
  std::vector<int64_t> there;
  for (const LogLine& line : kept.lines) {
    if (line.kind == "step") there.push_back(line.step);
  }
  std::ranges::sort(there);
  std::vector<int64_t> missing;
  for (int64_t step = 1; step <= keep_until_step; ++step) {
    if (!std::ranges::binary_search(there, step)) missing.push_back(step);
  }
  if (missing.empty()) return;
  kept.mended.push_back(join_text("the run log lacks ", list_of_steps(missing), " of the ", keep_until_step,
                                  " that were done; the weights have them, curves and times do not"));
}

/// @param path  need not be there
KeptLog keep_log(const std::filesystem::path& path, int64_t keep_until_step) {
  KeptLog kept;
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    SWITCHYARD_CHECK(std::filesystem::is_regular_file(path, error), DataError, "cannot write the run log ", path.string(),
                     ": not a regular file");
    kept.lines = read_log_lines(path);
    cut_broken_end(kept, keep_until_step);
    keep_last_of_each_step(kept);
    std::string text;
    for (const LogLine& line : kept.lines) text += line.text + "\n";
    write_file_atomically(path, text);
  }
  tell_missing_steps(kept, keep_until_step);
  return kept;
}

}  // namespace

RunLogWriter::RunLogWriter(const std::filesystem::path& path, int64_t keep_until_step)
    : path_(path), mended_(keep_log(path, keep_until_step).mended), file_(path) {}

void RunLogWriter::add(const StartRecord& record) { add_line(to_json_line(record)); }
void RunLogWriter::add(const StepRecord& record) { add_line(to_json_line(record)); }
void RunLogWriter::add(const EvaluationRecord& record) { add_line(to_json_line(record)); }
void RunLogWriter::add(const NoticeRecord& record) { add_line(to_json_line(record)); }
void RunLogWriter::add(const EndRecord& record) { add_line(to_json_line(record)); }

void RunLogWriter::add_line(const std::string& line) {
  const int reason = file_.append(line + "\n");
  SWITCHYARD_CHECK(reason == 0, DataError, "cannot write the run log ", path_.string(), ": ", std::generic_category().message(reason),
                   "; the disk may be full: free space and resume the run");
}

void RunLogWriter::check_in_place() const {
  SWITCHYARD_CHECK(file_.is_in_place(), DataError, "the run log ", path_.string(), " was moved or removed while the run wrote to it, so what "
                   "comes after is not there. Put it back, or go on without those steps, with --resume from the last checkpoint");
}

}  // namespace switchyard
