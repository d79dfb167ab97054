#include "switchyard/train/checkpoint.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/kernels/halves.hpp"
#include "switchyard/model/weights.hpp"
#include "switchyard/model/weights_file.hpp"
#include "switchyard/train/shards.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using NamedTensors = TensorMap;

constexpr const char* kFolder = "checkpoints";
constexpr std::string_view kPrefix = "step-";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConfig = "config.toml";
constexpr const char* kState = "state.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kBalance = "balance.safetensors";
constexpr const char* kPreviousCounts = "previous_counts_LE";
constexpr const char* kEmaFractions = "ema_fractions_LE";
constexpr const char* kSelectionOffsets = "selection_offsets_LE";

std::string folder_name(int64_t step) {
  std::ostringstream name;
  name << kPrefix << std::setw(8) << std::setfill('0') << step;
  return name.str();
}

/// Of the folder's name, if it is that of a checkpoint: "step-best" and "step-00000004-mine" are the user's.
std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* const begin = name.data() + kPrefix.size();
  const char* const end = name.data() + name.size();
  int64_t step = 0;
  const auto [stopped, error] = std::from_chars(begin, end, step);
  const bool is_number = error == std::errc() && stopped == end && *begin != '-';
  return is_number ? std::optional(step) : std::nullopt;
}

/// @param read  of the content of a JSON file
template <typename Read>
auto read_json(const fs::path& path, const Read& read) {
  try {
    return read(json::parse(read_file(path)));
  } catch (const json::exception& error) {
    throw DataError(join_text(path.string(), " is damaged: ", without_error_name(error.what()), "; use an earlier checkpoint"));
  }
}

/// What this rank keeps up to date of a master.
at::Tensor kept_master(const Parameter& parameter) {
  if (!is_in_halves(parameter)) return updated_rows(parameter, parameter.master);
  return joined_halves(updated_rows(parameter, parameter.compute.detach()), updated_rows(parameter, parameter.lower));
}

/// What this rank keeps of each master, joined when its turn comes.
TensorsToSave own_masters(const ParameterRefs& parameters) {
  TensorsToSave masters;
  for (const Parameter* parameter : parameters) {
    masters[parameter->name] = {master_type(*parameter), sizes_of(*parameter).vec(), [parameter] { return kept_master(*parameter); }};
  }
  return masters;
}

/// The first rank writes what all make. Where it cannot, it makes the rest all the same, for the others wait for that, and keeps the
/// `failure`. Collective
void save_whole(const fs::path& path, const TensorsToSave& tensors, const RunRanks& ranks, std::exception_ptr& failure) {
  size_t made = 0;
  if (ranks.is_first() && !failure) {
    TensorsToSave counted = tensors;
    for (auto& [name, tensor] : counted) {
      tensor.make = [&made, make = tensor.make] {
        ++made;
        return make();
      };
    }
    try {
      save_tensors(path, counted);
      return;
    } catch (const DataError&) {
      failure = std::current_exception();
    }
  }
  const std::vector<std::string> order = order_of_making(tensors);
  for (; made < order.size(); ++made) static_cast<void>(tensors.at(order[made]).make());
}

/// Of what this rank keeps, the first parameter with a value that is not finite; empty if there is none.
std::string diverged_parameter(const ParameterRefs& parameters) {
  for (const Parameter* parameter : parameters) {
    if (!at::isfinite(kept_master(*parameter)).all().item<bool>()) return parameter->name;
  }
  return {};
}

NamedTensors balance_tensors(const BalanceState& state) {
  NamedTensors tensors;
  if (state.previous_counts_LE.defined()) tensors[kPreviousCounts] = state.previous_counts_LE;
  if (state.ema_fractions_LE.defined()) tensors[kEmaFractions] = state.ema_fractions_LE;
  if (state.selection_offsets_LE.defined()) tensors[kSelectionOffsets] = state.selection_offsets_LE;
  return tensors;
}

void write_state(const fs::path& path, const CheckpointInfo& info, ComputeType compute, const AdamW& optimizer,
                 const TrainingState& state) {
  const json object = {{"step", state.step},
                       {"tokens", state.tokens},
                       {"ranks", state.ranks},
                       {"compute_type", to_string(compute)},
                       {"optimizer_steps", optimizer.steps_done()},
                       {"batcher", {{"step", state.batcher.step}, {"drawn", state.batcher.drawn_N}}},
                       {"domains", info.domains},
                       {"data_hash", info.data_hash}};
  write_file_atomically(path, object.dump(2) + "\n");
}

/// Hashes of all files that are in the folder now.
void write_manifest(const fs::path& folder, int64_t step) {
  json files = json::object();
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = {{"bytes", entry.file_size()}, {"sha256", sha256_file(entry.path())}};
  }
  const json manifest = {{"format", kCheckpointFormat}, {"step", step}, {"files", files}};
  write_file_atomically(folder / kManifest, manifest.dump(2) + "\n");
}

/// First out of the way by a rename, so that a kill leaves no half checkpoint under a name that is looked at.
void remove_checkpoint(const fs::path& checkpoint, std::vector<std::string>& notices) {
  const fs::path trash = checkpoint.parent_path() / ("." + checkpoint.filename().string() + ".removed");
  std::error_code error;
  fs::remove_all(trash, error);
  fs::rename(checkpoint, trash, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot remove the checkpoint ", checkpoint.string(), ": ", error.message());
  fs::remove_all(trash, error);
  if (!error) return;
  notices.push_back(join_text("the old checkpoint ", checkpoint.filename().string(), " could not be removed: ", error.message(), "; delete what is left "
                              "of it in ", trash.string(), ", or resume the run, which tries again"));
}

/// Damaged ones take no place of a good one: those that were passed over are removed, and those of later steps than the newest, which
/// were passed over as well, are replaced when their step comes.
void remove_old_checkpoints(const fs::path& run_folder, int64_t newest, int64_t keep_last, const std::vector<fs::path>& passed_over,
                            std::vector<std::string>& notices) {
  std::vector<fs::path> whole;
  for (const fs::path& checkpoint : list_checkpoints(run_folder)) {
    const int64_t step = step_of(checkpoint).value();
    if (step > newest) continue;
    if (step < newest && std::ranges::find(passed_over, checkpoint) != passed_over.end()) {
      remove_checkpoint(checkpoint, notices);
    } else {
      whole.push_back(checkpoint);
    }
  }
  for (size_t i = 0; i + static_cast<size_t>(keep_last) < whole.size(); ++i) remove_checkpoint(whole[i], notices);
}

/// Not its parents: where the run folder is gone, its place is not ours.
void make_folder_of_checkpoints(const fs::path& run_folder) {
  std::error_code error;
  fs::create_directory(run_folder / kFolder, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot make the folder ", (run_folder / kFolder).string(), ": ", error.message(),
                   "; the checkpoints before are kept, go on with --resume when it can be made");
}

void check_file(const fs::path& path, const json& expected) {
  std::error_code error;
  const uintmax_t found = fs::file_size(path, error);
  SWITCHYARD_CHECK(error != std::errc::no_such_file_or_directory, DataError, path.string(), " is missing");
  SWITCHYARD_CHECK(!error, DataError, path.string(), " cannot be read: ", error.message());
  const auto bytes = expected.at("bytes").get<uintmax_t>();
  SWITCHYARD_CHECK(found == bytes, DataError, path.string(), " is damaged: it has ", found, " bytes, its manifest says ", bytes);
  SWITCHYARD_CHECK(sha256_file(path) == expected.at("sha256").get<std::string>(), DataError, path.string(),
                   " is damaged: its SHA-256 is not the one in its manifest");
}

void copy_weights(const NamedTensors& tensors, Decoder& model, const fs::path& path) {
  const ParameterRefs parameters = model.parameters();
  for (const Parameter* parameter : parameters) {
    const auto found = tensors.find(parameter->name);
    SWITCHYARD_CHECK(found != tensors.end(), DataError, path.string(), " has no tensor '", parameter->name, "'");
    const at::Tensor& given = found->second;
    SWITCHYARD_CHECK(given.sizes() == sizes_of(*parameter), DataError, path.string(), ": '", parameter->name, "' is ",
                     given.sizes(), "; the model of this configuration expects ", sizes_of(*parameter));
  }
  SWITCHYARD_CHECK(tensors.size() == parameters.size(), DataError, path.string(), " holds ", tensors.size(),
                   " tensors; the model of this configuration has ", parameters.size());
  const at::NoGradGuard no_grad;
  for (Parameter* parameter : parameters) set_master(*parameter, tensors.at(parameter->name));
}

bool is_whole(const fs::path& checkpoint) {
  try {
    (void)verify_checkpoint(checkpoint);
    return true;
  } catch (const Error&) {
    return false;
  }
}

BalanceState load_balance(const fs::path& path) {
  const NamedTensors tensors = load_tensors(path).tensors;
  BalanceState state;
  const auto kept = [&](const char* name, at::Tensor& to) {  // a copy: the checkpoint may be removed
    if (tensors.contains(name)) to = tensors.at(name).clone();
  };
  kept(kPreviousCounts, state.previous_counts_LE);
  kept(kEmaFractions, state.ema_fractions_LE);
  kept(kSelectionOffsets, state.selection_offsets_LE);
  return state;
}

}  // namespace

std::vector<fs::path> list_checkpoints(const fs::path& run_folder) {
  std::vector<fs::path> found;
  std::error_code error;
  fs::directory_iterator entry(run_folder / kFolder, error);
  if (error == std::errc::no_such_file_or_directory) return found;
  // A folder that cannot be read is not an empty one: the run would start anew.
  while (!error && entry != fs::directory_iterator()) {
    if (step_of(entry->path()) && entry->is_directory(error)) found.push_back(entry->path());
    if (!error) entry.increment(error);
  }
  SWITCHYARD_CHECK(!error, DataError, "cannot read the checkpoints in ", (run_folder / kFolder).string(), ": ", error.message());
  std::ranges::sort(found, {}, [](const fs::path& checkpoint) { return std::pair(step_of(checkpoint), checkpoint); });
  return found;
}

fs::path state_file(const fs::path& checkpoint) { return checkpoint / kState; }

SavedCheckpoint save_checkpoint(const fs::path& run_folder, const CheckpointInfo& info, Decoder& model, const AdamW& optimizer,
                                const TrainingState& state, RunRanks& ranks, const std::vector<fs::path>& passed_over) {
  ranks.together([&] {
    const std::string diverged = diverged_parameter(model.parameters());
    SWITCHYARD_CHECK(diverged.empty(), StateError, "after step ", state.step, " '", diverged,
                     "' has values that are not finite, so it was not saved: training has diverged. Lower the learning rate; "
                     "the checkpoints before are kept");
  });
  const fs::path target = run_folder / kFolder / folder_name(state.step);
  SavedCheckpoint saved{ranks.is_first() ? target : fs::path()};
  std::optional<StagedFolder> folder;  // of the first rank
  ranks.together([&] {
    if (!ranks.is_first()) return;
    make_folder_of_checkpoints(run_folder);
    if (fs::exists(target)) {
      if (is_whole(target)) return;  // training is a function of the step, so its content would be the same
      remove_checkpoint(target, saved.notices);
    }
    folder.emplace(target);
  });
  if (ranks.sum(folder ? 1 : 0) == 0) return saved;
  const fs::path files = folder ? folder->path() : fs::path();
  const OwnRowsByName rows = kept_rows(model.parameters());
  std::exception_ptr failure;
  save_whole(files / kModel, whole_tensors(own_masters(model.parameters()), rows, ranks.comm()), ranks, failure);
  save_whole(files / kOptimizer, whole_tensors(to_save(optimizer.moments()), rows, ranks.comm()), ranks, failure);
  ranks.together([&] {
    if (failure) std::rethrow_exception(failure);
    if (!folder) return;
    save_tensors(files / kBalance, balance_tensors(state.balance), {});
    write_state(files / kState, info, model.compute_type(), optimizer, state);
    write_file_atomically(files / kConfig, to_toml(info.config));
    write_manifest(files, state.step);
    folder->commit();
    remove_old_checkpoints(run_folder, state.step, info.config.checkpoint.keep_last, passed_over, saved.notices);
  });
  return saved;
}

CheckpointInfo verify_checkpoint(const fs::path& checkpoint) {
  const fs::path manifest_file = checkpoint / kManifest;
  read_json(manifest_file, [&](const json& manifest) {
    const auto format = manifest.at("format").get<int64_t>();
    SWITCHYARD_CHECK(format == kCheckpointFormat, DataError, manifest_file.string(), " has format ", format,
                     "; this version reads format ", kCheckpointFormat);
    for (const auto& [name, expected] : manifest.at("files").items()) check_file(checkpoint / name, expected);
    for (const char* name : {kModel, kOptimizer, kBalance, kState, kConfig}) {
      SWITCHYARD_CHECK(manifest.at("files").contains(name), DataError, manifest_file.string(), " does not list ", name);
    }
  });
  CheckpointInfo info;
  read_config(parse_config_file(checkpoint / kConfig), info.config);
  read_json(state_file(checkpoint), [&](const json& state) {
    info.domains = state.at("domains").get<std::vector<std::string>>();
    info.data_hash = state.at("data_hash").get<std::string>();
    info.compute_type = state.value("compute_type", std::string());
  });
  return info;
}

std::string checkpoint_hash(const fs::path& checkpoint) { return sha256_file(checkpoint / kManifest); }

void load_checkpoint(const fs::path& checkpoint, Decoder& model, AdamW& optimizer, TrainingState& state) {
  TrainingState loaded;
  int64_t optimizer_steps = 0;
  read_json(state_file(checkpoint), [&](const json& object) {
    loaded.step = object.at("step").get<int64_t>();
    loaded.tokens = object.at("tokens").get<int64_t>();
    loaded.ranks = object.value("ranks", int64_t{1});  // runs before there were ranks do not say
    loaded.batcher.step = object.at("batcher").at("step").get<int64_t>();
    loaded.batcher.drawn_N = object.at("batcher").at("drawn").get<std::vector<int64_t>>();
    optimizer_steps = object.at("optimizer_steps").get<int64_t>();
  });
  loaded.balance = load_balance(checkpoint / kBalance);
  optimizer.restore(take_own(load_tensors(checkpoint / kOptimizer).tensors, kept_rows(model.parameters())), optimizer_steps);
  copy_weights(take_own(load_tensors(checkpoint / kModel).tensors, sharded_rows(model.parameters())), model, checkpoint / kModel);
  state = std::move(loaded);
}

FoundCheckpoint find_checkpoint(const fs::path& run_folder) {
  std::vector<fs::path> all = list_checkpoints(run_folder);
  SWITCHYARD_CHECK(!all.empty(), DataError, run_folder.string(),
                   " has no checkpoint to resume from; start the run anew in another folder, or remove this one");
  std::vector<std::string> notices;
  std::vector<fs::path> passed_over;
  for (auto path = all.rbegin(); path != all.rend(); ++path) {
    try {
      return {*path, verify_checkpoint(*path), notices, passed_over};
    } catch (const DataError& error) {
      passed_over.push_back(*path);
      notices.push_back(join_text("checkpoint ", path->filename().string(), " was passed over: ", error.what()));
    }
  }
  std::string message = join_text("no checkpoint of ", run_folder.string(), " can be used");
  for (const std::string& notice : notices) message += "\n  " + notice;
  throw DataError(message);
}

std::vector<ConfigDifference> check_resume_config(const RunConfig& saved, const RunConfig& given) {
  std::vector<ConfigDifference> allowed;
  std::string refused;
  for (const ConfigDifference& difference : compare(saved, given)) {
    if (may_change_on_resume(difference.key)) {
      allowed.push_back(difference);
    } else {
      refused += join_text("\n  ", difference.key, " was ", difference.before, ", now ", difference.after);
    }
  }
  SWITCHYARD_CHECK(refused.empty(), ConfigError, "a resumed run cannot change what it is; given other values for:",
                   refused, "\n  start a new run for another configuration");
  return allowed;
}

Decoder load_checkpoint_model(const fs::path& checkpoint, ComputeType compute) {
  const CheckpointInfo info = verify_checkpoint(checkpoint);
  Decoder model(info.config.model, compute, static_cast<int64_t>(info.domains.size()),
                static_cast<uint64_t>(info.config.seed));
  copy_weights(load_tensors(checkpoint / kModel).tensors, model, checkpoint / kModel);
  const std::string diverged = diverged_parameter(model.parameters());
  SWITCHYARD_CHECK(diverged.empty(), DataError, (checkpoint / kModel).string(), ": '", diverged,
                   "' has values that are not finite; use an earlier checkpoint");
  return model;
}

}  // namespace switchyard
