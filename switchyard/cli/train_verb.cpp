#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "switchyard/cli/profile_text.hpp"
#include "switchyard/cli/verbs.hpp"
#include "switchyard/comm/agreement.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/report/settings.hpp"
#include "switchyard/testbed/number_text.hpp"
#include "switchyard/train/run.hpp"
#include "switchyard/train/run_ranks.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kJsonInterval{100};

struct TrainArguments {
  std::string config;
  std::string out;
  std::string resume;
  std::vector<std::string> overrides;
  int64_t profile_steps = 0;
  OutputFormat format = OutputFormat::Text;
};

std::string optional_number(const std::optional<double>& value, int digits) {
  return value ? number_text(*value, digits) : "-";
}

std::string evaluation_text(const EvaluationRecord& record) {
  return join_text("held-out at step ", record.step, ": loss ", number_text(record.loss, 3), ", S ",
                   number_text(record.specialization, 3), ", MaxVio ", number_text(record.global.max_vio, 2),
                   " over all and ", number_text(record.micro_batch.max_vio, 2), " per micro-batch (",
                   grouped_digits(record.sequences), " sequences)");
}

class TextSink : public ProgressSink {
 public:
  TextSink(std::ostream& out, Screen screen, const RunConfig& config)
      : status_(out, screen), screen_(screen), settings_(read_settings(to_toml(config))) {}

  void on_start(const StartRecord& record) override {
    total_ = record.total_steps;
    status_.print(join_text("run ", record.name, ": ", grouped_digits(record.parameters), " parameters, ", record.num_layers,
                            " MoE layers, ", record.num_experts, " experts, ", record.num_chosen, " per token, ",
                            record.compute_type, "; router ", record.router, "; ", balancing_text(record, settings_),
                            "; losses of layers: ", record.layers));
    if (record.step > total_) {
      status_.print(join_text("all ", total_, " steps were done before"));
    } else if (record.step > 1) {
      status_.print(join_text("resumed; next is step ", record.step, " of ", total_));
    }
  }

  void on_step(const StepRecord& record) override {
    const double smoothing = recent_seconds_ == 0.0 ? 1.0 : 0.1;
    recent_seconds_ += smoothing * (record.seconds - recent_seconds_);
    const double left = recent_seconds_ * static_cast<double>(total_ - record.step);
    const std::string numbers =
        join_text(record.step, "/", total_, "  loss ", number_text(record.loss, 3), "  LBL ", optional_number(record.lbl, 3),
                  "  MaxVio ", number_text(record.max_vio_step, 2), " step, ", number_text(record.max_vio_micro_batch, 2),
                  " micro-batch  ", grouped_digits(static_cast<int64_t>(record.tokens_per_second)), " tokens/s  ",
                  duration_text(left), " left");
    const std::string text =
        screen_ == Screen::Terminal ? join_text(bar_text(record.step, total_, kBarWidth), " ", numbers) : "step " + numbers;
    if (record.step == total_) {
      status_.finish(text);
    } else {
      status_.show(text);
    }
  }

  void on_evaluation(const EvaluationRecord& record) override { status_.print(evaluation_text(record)); }
  void on_notice(const NoticeRecord& record) override { status_.print("note: " + record.text); }
  void on_profile(const ProfileReport& report, const fs::path& folder) override {
    status_.print(profile_text(report) + "profile: " + folder.string() + " (trace.json for ui.perfetto.dev, summary.json)");
  }
  void clear() { status_.clear(); }

 private:
  StatusLine status_;
  Screen screen_;
  Settings settings_;
  int64_t total_ = 0;
  double recent_seconds_ = 0.0;  // of a step, smoothed
};

// One object a line: at most ten steps a second, and the last.
class JsonSink : public ProgressSink {
 public:
  explicit JsonSink(std::ostream& out) : out_(out) {}

  void on_start(const StartRecord& record) override { total_ = record.total_steps; }

  void on_step(const StepRecord& record) override {
    const auto now = Clock::now();
    if (record.step < total_ && now - last_ < kJsonInterval) return;
    last_ = now;
    write({{"kind", "step"},
           {"step", record.step},
           {"total_steps", total_},
           {"loss", record.loss},
           {"lbl", record.lbl ? Json(*record.lbl) : Json(nullptr)},
           {"max_vio_step", record.max_vio_step},
           {"max_vio_micro_batch", record.max_vio_micro_batch},
           {"tokens_per_second", record.tokens_per_second}});
  }

  void on_evaluation(const EvaluationRecord& record) override {
    write({{"kind", "evaluation"},
           {"step", record.step},
           {"loss", record.loss},
           {"specialization", record.specialization},
           {"max_vio", record.global.max_vio},
           {"max_vio_micro_batch", record.micro_batch.max_vio}});
  }

  void on_notice(const NoticeRecord& record) override {
    write({{"kind", "notice"}, {"step", record.step}, {"text", record.text}});
  }

  void on_profile(const ProfileReport& report, const fs::path& folder) override {
    write({{"kind", "profile"}, {"folder", folder.string()}, {"summary", Json::parse(to_json(report))}});
  }

  void write(const Json& object) { out_ << object.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl; }

 private:
  std::ostream& out_;
  int64_t total_ = 0;
  Clock::time_point last_{};
};

RunConfig read_run(const TrainArguments& arguments) {
  SWITCHYARD_CHECK(arguments.out.empty() || arguments.resume.empty(), UsageError,
                   "--out and --resume are both given; a resumed run stays in its folder");
  SWITCHYARD_CHECK(!arguments.config.empty() || !arguments.resume.empty(), UsageError,
                   "no CONFIG given; expected a file like configs/train/quick.toml, or --resume DIR");
  SWITCHYARD_CHECK(arguments.resume.empty() || path_exists(fs::path(arguments.resume) / "config.toml"), UsageError,
                   arguments.resume, " is no run folder: it has no config.toml; start a run there with --out instead");
  const fs::path path = arguments.config.empty() ? fs::path(arguments.resume) / "config.toml" : fs::path(arguments.config);
  SWITCHYARD_CHECK(!started_by_mpi() || !path_exists(path) || fs::is_regular_file(path), UsageError, path.string(),
                   " is no regular file: each rank reads the configuration itself, and none has the standard input of launch or "
                   "mpirun; write it into a file and give that as CONFIG");
  RunConfig config;
  read_config(parse_config_file(path, arguments.overrides), config);
  return config;
}

int finish(const RunResult& result, const fs::path& folder, const TrainArguments& arguments, const RunRanks& ranks,
           JsonSink& json, Session& session) {
  const bool done = result.reason == EndReason::Done;
  if (!ranks.is_first()) return done ? kExitDone : kExitFailed;
  if (arguments.format == OutputFormat::Json) {
    json.write({{"kind", "end"}, {"reason", done ? "done" : "interrupted"}, {"step", result.step}, {"folder", folder.string()}});
  } else if (done) {
    session.out << "done: " << folder.string() << "\n";
  }
  if (!done) {
    session.err << styled(session.err_screen, Style::Red, "switchyard: ") << "interrupted after step " << result.step
                << ", saved; go on with: switchyard "
                << (ranks.size() > 1 ? join_text("launch -n ", ranks.size(), " -- ") : "") << "train --resume "
                << quoted_for_shell(folder.string()) << std::endl;
  }
  return done ? kExitDone : kExitFailed;
}

fs::path run_folder(const TrainArguments& arguments, const RunConfig& config) {
  if (!arguments.resume.empty()) return arguments.resume;
  if (!arguments.out.empty()) return arguments.out;
  const std::string& name = config.name;
  SWITCHYARD_CHECK(name.find('/') == std::string::npos && name != "." && name != "..", UsageError, "name is '", name,
                   "', which names no folder in runs/; give another name, or --out DIR");
  return fs::path("runs") / name;
}

int run_on(Communicator* world, const TrainArguments& arguments, Session& session) {
  RunRanks ranks(world);
  RunConfig config;
  ranks.together([&] { config = read_run(arguments); });
  RunOptions options;
  options.comm = &ranks.comm();
  options.resume = arguments.resume.empty() ? Resume::No : Resume::Yes;
  options.folder = run_folder(arguments, config);
  options.stop = session.stop;
  options.command = session.command;
  options.profile_steps = arguments.profile_steps;
  JsonSink json(session.out);
  TextSink text(session.out, session.out_screen, config);
  ProgressSink silent;
  ProgressSink& loud = arguments.format == OutputFormat::Json ? static_cast<ProgressSink&>(json) : text;
  RunResult result;
  try {
    result = run_training(config, options, ranks.is_first() ? loud : silent);
  } catch (...) {
    text.clear();  // the message must not be drawn into the bar
    throw;
  }
  text.clear();
  return finish(result, options.folder, arguments, ranks, json, session);
}

// One rank of several: mpirun ends the others when this one ends with an error.
int run_as_rank(const TrainArguments& arguments, Session& session) {
  MpiSession mpi;
  const std::unique_ptr<Communicator> world = mpi.world();
  try {
    return run_on(world.get(), arguments, session);
  } catch (const SharedError&) {
    if (world->rank() == 0) throw;
    return kExitFailed;  // the first rank tells it
  } catch (const CommError&) {
    throw;  // names the rank
  } catch (const UsageError& error) {
    throw UsageError(world->rank() == 0 ? error.what() : join_text(world->describe(), ": ", error.what()));
  } catch (const Error& error) {
    throw Error(world->rank() == 0 ? error.what() : join_text(world->describe(), ": ", error.what()));
  }
}

int run(const TrainArguments& arguments, Session& session) {
  if (arguments.profile_steps > 0) setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);  // it prints when it starts and stops
  return started_by_mpi() ? run_as_rank(arguments, session) : run_on(nullptr, arguments, session);
}

}  // namespace

void add_train_verb(CLI::App& app, Action& chosen) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* verb = app.add_subcommand(
      "train", "One training run, in a folder of its own: log, checkpoints, held-out evaluation.\n"
               "Ctrl-C finishes the step and saves; --resume goes on to the same bits.\n"
               "On several ranks: switchyard launch --help");
  verb->add_option("config", arguments->config, "run configuration; with --resume, default that of the run")->type_name("CONFIG");
  verb->add_option("--out", arguments->out, "folder of the run; default runs/<name>")->type_name("DIR");
  verb->add_option("--resume", arguments->resume, "folder of a run to go on with")->type_name("DIR");
  add_set_option(*verb, arguments->overrides, "change a key, e.g. balance.scope=micro_batch (switchyard list keys)");
  verb->add_option("--profile", arguments->profile_steps, "record N steps: where their time goes, and a trace of them")
      ->type_name("N")
      ->check(CLI::Range(1, 1000));  // a trace takes some 5 MB a step
  add_json_flag(*verb, arguments->format, "progress and result as one object a line");
  verb->footer("Example:\n  switchyard train configs/train/quick.toml --set steps=50 --out runs/first");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return run(*arguments, session); };
  });
}

}  // namespace switchyard
