#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include <nlohmann/json.hpp>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/build.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/data/few_documents.hpp"
#include "switchyard/data/recipes.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBytesPerMegabyte = 1'000'000;
constexpr double kLargestCapMegabytes = 1e9;

struct BuildArguments {
  std::string preset;
  std::string out;
  std::string from;
  std::optional<double> cap_megabytes;
  int64_t vocab_size = TokenizerOptions().vocab_size;
};

// A bar a phase. A stop request ends the build from inside a report: what was staged is removed on the way out.
class BuildSink : public Progress {
 public:
  explicit BuildSink(Session& session) : session_(session), status_(session.out, session.out_screen) {}

  void report(std::string_view phase, int64_t done, int64_t total) override {
    SWITCHYARD_CHECK(!session_.stop->load(), StateError, "interrupted while building the data set; nothing was left behind");
    if (phase != phase_) {
      if (!phase_.empty()) status_.finish(last_);
      phase_ = phase;
    }
    const int64_t percent = total <= 0 ? 0 : 100 * done / total;
    last_ = join_text(phase, std::string(phase.size() < 10 ? 10 - phase.size() : 0, ' '), " ",
                      bar_text(done, total, kBarWidth), " ", percent, " %");
    status_.show(last_);
  }

  void finish() {
    if (!phase_.empty()) status_.finish(last_);
  }
  void clear() { status_.clear(); }

 private:
  Session& session_;
  StatusLine status_;
  std::string phase_;
  std::string last_;
};

std::string megabytes(int64_t bytes) {
  const int64_t tenths = (bytes + kBytesPerMegabyte / 20) / (kBytesPerMegabyte / 10);
  return join_text(tenths / 10, ".", tenths % 10);
}

std::string dataset_text(const Dataset& dataset, Screen screen) {
  std::vector<std::vector<std::string>> rows = {
      {"domain", "text MB", "documents", "train tokens", "held-out tokens", "held-out documents"}};
  int64_t train = 0;
  int64_t heldout = 0;
  for (const DomainRecord& domain : dataset.manifest().domains) {
    rows.push_back({domain.name, megabytes(domain.text_bytes), grouped_digits(domain.documents),
                    grouped_digits(domain.train.tokens), grouped_digits(domain.heldout.tokens),
                    grouped_digits(domain.heldout.documents)});
    train += domain.train.tokens;
    heldout += domain.heldout.tokens;
  }
  rows.push_back({"all", "", "", grouped_digits(train), grouped_digits(heldout), ""});
  const std::string table = table_text(
      rows, {Align::Left, Align::Right, Align::Right, Align::Right, Align::Right, Align::Right});
  const size_t header_end = table.find('\n');
  const std::string few_documents = few_documents_text(heldout_documents(dataset.manifest()), DocumentsOf::Dataset);
  return join_text(dataset.folder().string(), ": ", dataset.num_domains(), " domains from ", dataset.manifest().source,
                   ", vocabulary ", grouped_digits(dataset.vocab_size()), ", SHA-256 ", dataset.hash().substr(0, 12), "\n",
                   styled(screen, Style::Bold, table.substr(0, header_end)), table.substr(header_end),
                   few_documents.empty() ? "" : "note: " + few_documents + "\n");
}

BuildOptions build_options(const BuildArguments& arguments) {
  SWITCHYARD_CHECK(arguments.preset.empty() || arguments.from.empty(), UsageError,
                   "--preset and --from are both given; a data set is made from packages or from your own text");
  BuildOptions options;
  options.from = arguments.from;
  if (arguments.from.empty()) options.preset = arguments.preset.empty() ? "mix16" : arguments.preset;
  const std::string name = arguments.from.empty() ? options.preset : folder_name(arguments.from);
  options.out = arguments.out.empty() ? fs::path("data") / name : fs::path(arguments.out);
  if (arguments.cap_megabytes) {
    const double cap = *arguments.cap_megabytes;
    SWITCHYARD_CHECK(cap >= 0.0 && cap <= kLargestCapMegabytes, UsageError, "--cap is ", cap, "; expected 0 (no limit) to ",
                     kLargestCapMegabytes, " MB");
    SWITCHYARD_CHECK(cap == 0.0 || cap * static_cast<double>(kBytesPerMegabyte) >= 1.0, UsageError, "--cap is ", cap,
                     " MB, less than a byte; expected 0 (no limit), or more");
    options.cap_bytes = static_cast<int64_t>(cap * static_cast<double>(kBytesPerMegabyte));
  }
  options.tokenizer.vocab_size = arguments.vocab_size;
  return options;
}

int build(const BuildArguments& arguments, Session& session) {
  const BuildOptions options = build_options(arguments);
  BuildSink sink(session);
  try {
    build_dataset(options, sink);
  } catch (...) {
    sink.clear();
    throw;
  }
  sink.finish();
  session.out << dataset_text(Dataset(options.out, ShardCheck::Structure), session.out_screen);
  return kExitDone;
}

int show(const std::string& folder, OutputFormat format, Session& session) {
  SWITCHYARD_CHECK(folder_exists(folder), UsageError, "no folder ", folder, "; expected a data set, as switchyard data build writes it");
  const Dataset dataset{fs::path(folder)};
  dataset.check_files();
  if (format == OutputFormat::Json) {
    session.out << manifest_to_json(dataset.manifest());
  } else {
    session.out << dataset_text(dataset, session.out_screen);
  }
  return kExitDone;
}

std::string preset_help() {
  std::string text = "Presets:\n";
  for (const Preset& preset : preset_table()) {
    text += join_text("  ", preset.name, ": ", joined(preset.domains, ", ", std::identity()), "\n");
  }
  return text;
}

void add_build_verb(CLI::App& data, Action& chosen) {
  auto arguments = std::make_shared<BuildArguments>();
  CLI::App* verb = data.add_subcommand(
      "build", "A data set from Debian packages (apt-get download; nothing is installed) or from your own text");
  verb->add_option("--preset", arguments->preset, "mix16 (default) or mix8")->type_name("NAME");
  verb->add_option("--out", arguments->out, "folder to write; default data/<preset>")->type_name("DIR");
  verb->add_option("--from", arguments->from, "your own text: a folder with one folder of UTF-8 files per domain")->type_name("DIR");
  verb->add_option("--cap", arguments->cap_megabytes, "text of a domain; default 8 for packages, 0 for no limit")
      ->type_name("MB");
  verb->add_option("--vocab-size", arguments->vocab_size, "pieces of the tokenizer, 300 to 65536")
      ->check(CLI::Validator(CLI::Range(300, 65536)).description(""))
      ->capture_default_str()
      ->type_name("N");
  verb->footer("");  // not that of the program
  verb->footer([] {
    return preset_help() + "Examples:\n  switchyard data build --preset mix8 --out data/mix8\n"
                           "  switchyard data build --from my_text --out data/mine";
  });
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return build(*arguments, session); };
  });
}

void add_show_verb(CLI::App& data, Action& chosen) {
  struct ShowArguments {
    std::string folder;
    OutputFormat format = OutputFormat::Text;
  };
  auto arguments = std::make_shared<ShowArguments>();
  CLI::App* verb = data.add_subcommand("show", "What a data set holds; compares tokenizer.model and every shard with the manifest");
  verb->add_option("folder", arguments->folder, "data set")->required()->type_name("DIR");
  add_json_flag(*verb, arguments->format, "the manifest: packages, licences, hashes, counts");
  verb->footer("Example:\n  switchyard data show data/mix8");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return show(arguments->folder, arguments->format, session); };
  });
}

}  // namespace

void add_data_verb(CLI::App& app, Action& chosen) {
  CLI::App* verb = app.add_subcommand("data", "Data sets: build one, or show what one holds");
  verb->require_subcommand(1);
  add_build_verb(*verb, chosen);
  add_show_verb(*verb, chosen);
  for (CLI::App* inner : verb->get_subcommands([](const CLI::App*) { return true; })) inner->group("Verbs");
  verb->footer("Example:\n  switchyard data build --preset mix8 --out data/mix8");  // after the inner verbs, which would inherit it
}

}  // namespace switchyard
