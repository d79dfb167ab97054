#pragma once
// Checkpoints: <run>/checkpoints/step-NNNNNNNN/, whole or not there (written aside, synced, renamed). docs/file-formats.md has
// every file of it. manifest.json holds the SHA-256 of all others, so damage is found before anything is used.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/balance/state.hpp"
#include "switchyard/data/batcher.hpp"
#include "switchyard/model/decoder.hpp"
#include "switchyard/train/adamw.hpp"
#include "switchyard/train/run_config.hpp"
#include "switchyard/train/run_ranks.hpp"

namespace switchyard {

inline constexpr int64_t kCheckpointFormat = 1;

/// What changes from step to step beside weights and moments.
struct TrainingState {
  int64_t step = 0;    // optimizer steps done
  int64_t tokens = 0;  // valid tokens trained on, over all ranks
  int64_t ranks = 1;   // that trained it; any other number can go on
  BalanceState balance;
  BatcherState batcher;
};

/// What a checkpoint is about, beside its numbers.
struct CheckpointInfo {
  RunConfig config;                  // resolved
  std::vector<std::string> domains;  // in the order of their labels
  std::string data_hash;             // SHA-256 of the data set's manifest
  std::string compute_type = {};     // that it was trained in, as its file says; empty in older ones. Saving takes that of the model
};

struct SavedCheckpoint {
  std::filesystem::path path;         // empty on the other ranks
  std::vector<std::string> notices = {};  // old checkpoints that could not be removed whole
};

/// Checkpoints of a run, by step; empty where there is none. Only names are looked at: "step-" and a number, nothing else.
/// @throws DataError where the folder cannot be read
[[nodiscard]] std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run_folder);

/// Writes the checkpoint of `state.step` (a whole one of that step is kept as it is, a damaged one replaced), then removes all
/// up to it but the newest `keep_last`. Collective: the first rank gathers what is divided, a tensor at a time, and writes; the file is
/// the same for any number of ranks.
/// @param passed_over  damaged ones, of the first rank: not counted, and removed where they are of an earlier step
/// The run folder must exist: where it is gone nothing is made in its place.
/// @throws StateError where a weight is not finite, DataError (disk full, no right), on ranks SharedError where it is another's: the
///         checkpoints that were there are untouched
SavedCheckpoint save_checkpoint(const std::filesystem::path& run_folder, const CheckpointInfo& info, Decoder& model,
                                const AdamW& optimizer, const TrainingState& state, RunRanks& ranks,
                                const std::vector<std::filesystem::path>& passed_over = {});

/// The file of a checkpoint that says what is not in its tensors.
[[nodiscard]] std::filesystem::path state_file(const std::filesystem::path& checkpoint);

/// Checks the manifest and every hash, and reads the configuration.
/// @throws DataError naming the file that is missing, damaged or of a format this version does not know
[[nodiscard]] CheckpointInfo verify_checkpoint(const std::filesystem::path& checkpoint);

/// SHA-256 of its manifest, and so of all that was verified.
/// @throws DataError where it cannot be read
[[nodiscard]] std::string checkpoint_hash(const std::filesystem::path& checkpoint);

/// Fills model, optimizer and state from a checkpoint that was verified; of divided parameters with this rank's part. Every rank
/// reads the files; no messages.
/// @throws DataError naming the tensor or key that is missing or does not fit
void load_checkpoint(const std::filesystem::path& checkpoint, Decoder& model, AdamW& optimizer, TrainingState& state);

/// The newest checkpoint that is whole. Damaged newer ones are passed over and named in `notices`.
struct FoundCheckpoint {
  std::filesystem::path path;
  CheckpointInfo info;
  std::vector<std::string> notices;
  std::vector<std::filesystem::path> passed_over;
};
/// @throws DataError when there is none, naming what is wrong with each
[[nodiscard]] FoundCheckpoint find_checkpoint(const std::filesystem::path& run_folder);

/// @throws ConfigError naming each key in which `given` differs from `saved` though a resumed run may not change it
/// @return the differences that are allowed
[[nodiscard]] std::vector<ConfigDifference> check_resume_config(const RunConfig& saved, const RunConfig& given);

/// The trained model alone, for export and inspection. @param checkpoint  verified here
/// @throws DataError where a weight is not finite
[[nodiscard]] Decoder load_checkpoint_model(const std::filesystem::path& checkpoint, ComputeType compute);

}  // namespace switchyard
