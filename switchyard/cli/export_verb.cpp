#include <filesystem>
#include <memory>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/data/tokenizer.hpp"
#include "switchyard/model/hf_format.hpp"
#include "switchyard/train/checkpoint.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

struct ExportArguments {
  std::string checkpoint;
  std::string folder;
  std::string data;
};

// A run folder stands for its newest whole checkpoint.
fs::path checkpoint_path(const fs::path& given, Session& session) {
  if (path_exists(given / "manifest.json")) return given;
  SWITCHYARD_CHECK(!list_checkpoints(given).empty(), DataError, given.string(),
                   " holds no checkpoint; expected one (RUN/checkpoints/step-...), or a run that has saved one");
  const FoundCheckpoint found = find_checkpoint(given);
  for (const std::string& notice : found.notices) session.err << "note: " << notice << "\n";
  return found.path;
}

int export_model(const ExportArguments& arguments, Session& session) {
  SWITCHYARD_CHECK(folder_exists(arguments.checkpoint), UsageError, "no folder ", arguments.checkpoint,
                   "; expected a checkpoint (RUN/checkpoints/step-...) or a run");
  const fs::path checkpoint = checkpoint_path(arguments.checkpoint, session);
  const CheckpointInfo info = verify_checkpoint(checkpoint);
  check_exportable(info.config.model);
  SWITCHYARD_CHECK(info.config.balance.selection.rule == SelectionRule::None, UsageError, checkpoint.string(),
                   " was trained with balance.selection.rule = \"", to_string(info.config.balance.selection.rule),
                   "\": its router chooses by scores plus offsets, which Qwen3-MoE of transformers cannot hold");
  const Dataset dataset(arguments.data.empty() ? fs::path(info.config.data.path) : fs::path(arguments.data), ShardCheck::Structure);
  SWITCHYARD_CHECK(dataset.hash() == info.data_hash, DataError, "the data set ", dataset.folder().string(),
                   " is not the one this checkpoint was trained on; give that one with --data DIR");
  dataset.check_files();
  StagedFolder staged(arguments.folder);
  export_hf(load_checkpoint_model(checkpoint, ComputeType::Float32), staged.path(), dataset.end_of_document());
  export_tokenizer_for_transformers(dataset.tokenizer_path(), staged.path());
  staged.commit();
  // transformers' default products over experts want rows of a multiple of 16 bytes.
  const bool odd = info.config.model.width % 4 != 0 || info.config.model.expert_width % 4 != 0;
  session.out << "exported " << checkpoint.string() << " to " << arguments.folder
              << "\nload it with transformers.AutoModelForCausalLM and AutoTokenizer"
              << (odd ? "; its widths are no multiples of 4, so pass experts_implementation=\"eager\"\n" : "\n");
  return kExitDone;
}

}  // namespace

void add_export_verb(CLI::App& app, Action& chosen) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* verb = app.add_subcommand("export", "A trained model and its tokenizer as a Hugging Face folder (Qwen3-MoE)");
  verb->add_option("checkpoint", arguments->checkpoint, "checkpoint folder, or a run for its newest")->required()->type_name("CHECKPOINT");
  verb->add_option("folder", arguments->folder, "new folder to write")->required()->type_name("DIR");
  verb->add_option("--data", arguments->data, "data set with the tokenizer; default that of the run")->type_name("DIR");
  verb->footer("Example:\n  switchyard export runs/demo/optimizer_batch-seed0 exported");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return export_model(*arguments, session); };
  });
}

}  // namespace switchyard
