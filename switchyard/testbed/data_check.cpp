#include "switchyard/testbed/data_check.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/data/few_documents.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/testbed/alike.hpp"
#include "switchyard/testbed/run_folder.hpp"
#include "switchyard/train/data_fit.hpp"
#include "switchyard/train/evaluate.hpp"
#include "switchyard/train/memory_need.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// All that decides what a run reads of its data set: runs that agree in it are looked at once.
std::string data_key(const RunConfig& config) {
  return join_text(to_toml(config.data), config.evaluation.sequences_per_domain, " ", config.model.vocab_size, " ",
                   config.model.num_moe_layers());
}

// The runs check the tokens themselves.
const Dataset& open_once(std::map<std::string, Dataset>& open, const std::string& path) {
  const auto found = open.find(path);
  return found != open.end() ? found->second : open.try_emplace(path, fs::path(path), ShardCheck::Structure).first->second;
}

template <typename Check>
void check_run(const PlannedRun& run, const Check& check) {
  try {
    check();
  } catch (const UsageError& error) {
    throw UsageError(join_text("run ", run.name, ": ", error.what()));
  } catch (const DataError& error) {
    throw DataError(join_text("run ", run.name, ": ", error.what()));
  }
}

}  // namespace

void check_needs(const fs::path& folder, const std::vector<PlannedRun>& runs) {
  std::map<std::string, Dataset> open;
  std::set<std::string> seen;
  for (const PlannedRun& run : runs) {
    if (read_finished_log(folder / run.name)) continue;
    check_run(run, [&] { check_memory(run.config, resolve_compute_type(run.config.execution.dtype), 1, 1, machine_memory()); });
    if (!seen.insert(data_key(run.config)).second) continue;
    const Dataset& dataset = open_once(open, run.config.data.path);
    check_run(run, [&] { check_data_of_run(run.config, dataset); });
  }
}

std::vector<std::string> document_notes(const std::vector<PlannedRun>& runs) {
  std::map<std::string, Dataset> open;
  std::map<std::string, std::string> text_of;                // by data_key
  std::map<std::string, std::vector<std::string>> arms_of;  // by text
  for (const PlannedRun& run : runs) {
    const auto [known, is_new] = text_of.try_emplace(data_key(run.config));
    try {
      if (is_new) {
        const HeldoutSet heldout = load_heldout(open_once(open, run.config.data.path), run.config);
        known->second = few_documents_text(count_documents(heldout), DocumentsOf::Evaluation);
      }
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): finished runs, whose results stand without their data
    }
    arms_of[known->second].push_back(run.arm);
  }
  std::vector<std::string> notes;
  for (const auto& [text, arms] : arms_of) {
    if (text.empty()) continue;
    notes.push_back(join_text("Held-out text", arms_of.size() == 1 ? "" : " of " + arms_text(arms), ": ", text, "."));
  }
  return notes;
}

}  // namespace switchyard
