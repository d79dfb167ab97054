// make_report_fixtures FOLDER: the reports that tests/python/test_report.py opens in a browser.

#include <exception>
#include <filesystem>
#include <iostream>

#include "switchyard/core/files.hpp"
#include "switchyard/report/report.hpp"
#include "synthetic_study.hpp"

namespace switchyard::testing {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTestbedJson = R"({
  "schema": 1,
  "name": "Synthetic demo",
  "question": "Does the scope over which expert counts are taken decide whether experts specialise?",
  "baseline": "micro_batch",
  "notes": ["These numbers are synthetic; they were made to look at the report, not measured."],
  "arms": [
    {"name": "optimizer_batch", "kind": "trained", "description": "counts of the whole optimizer batch"},
    {"name": "micro_batch", "kind": "trained", "description": "counts of one micro-batch of one domain"},
    {"name": "no_balancing", "kind": "trained", "description": "lambda 0"},
    {"name": "frozen_random", "kind": "floor"}, {"name": "random", "kind": "floor"},
    {"name": "prescribed_shuffled", "kind": "floor"}, {"name": "prescribed", "kind": "ceiling"}],
  "claims": [{"text": "optimizer_batch specialises at least .1 more than micro_batch", "verdict": "holds", "detail": "every seed"},
             {"text": "loss is lower", "verdict": "undecided", "detail": "two seeds"}],
  "runs": [)";

void write_demo(const fs::path& folder) {
  std::string json(kTestbedJson);
  for (const RunInput& run : synthetic_demo()) {
    write_run_folder(folder / "demo" / run.name, run);
    json += (json.back() == '[' ? "" : ", ") + ("{\"name\": \"" + run.name + "\", \"folder\": \"" + run.name + "\"}");
  }
  write_file_atomically(folder / "demo" / "testbed.json", json + "]}\n");
  write_report({folder / "demo"}, folder / "demo.html");
}

// Every text that a user or a file can choose tries to leave its place.
void write_nasty(const fs::path& folder) {
  const std::string attack = "</script><img src=x onerror=\"document.title='broken'\"><b>&amp;'\"%{x}{{page}}";
  SyntheticShape shape;
  shape.domains = {attack, "12", "<a href=\"javascript:alert(1)\">link</a>", "\xE6\x97\xA5\xE6\x9C\xAC"};
  shape.num_experts = 8;
  RunInput run = synthetic_run({.name = attack}, 0, shape);
  for (std::string* text : {&run.log.start.router, &run.log.start.scope, &run.log.start.method, &run.log.start.command,
                            &run.log.start.commit, &run.log.start.processor, &run.log.start.compute_type, &run.config_toml, &run.name}) {
    *text = attack;
  }
  run.log.notices = {{1, attack}};
  ReportOptions options;
  options.title = attack;
  options.question = attack;
  options.notes = {attack};
  options.claims = {{attack, "holds", attack}};
  options.arms = {{attack, ArmKind::Trained, attack}};
  write_file_atomically(folder / "nasty.html", build_report({run}, options));
}

void write_interrupted(const fs::path& folder) {
  SyntheticShape shape;
  shape.evaluated_steps = {};
  RunInput run = synthetic_run({.name = "alone"}, 3, shape);
  run.log.steps.resize(40);
  run.log.end = EndRecord{40, "interrupted", 9.0, 8.0};
  write_run_folder(folder / "alone-seed3", run);
  write_report({folder / "alone-seed3"}, folder / "interrupted.html");
}

void write_groups(const fs::path& folder) {
  SyntheticShape other;
  other.domains = {"left", "right"};
  other.num_experts = 48;
  other.num_layers = 2;
  std::vector<RunInput> runs = {synthetic_run({.name = "wide"}, 0), synthetic_run({.name = "other"}, 0, other)};
  SyntheticShape unlabelled;
  unlabelled.domains = {"text"};
  unlabelled.evaluated_steps = {300};
  runs.push_back(synthetic_run({.name = "one_domain"}, 0, unlabelled));
  write_file_atomically(folder / "groups.html", build_report(runs, {}));
}

}  // namespace
}  // namespace switchyard::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_report_fixtures FOLDER\n";
    return 2;
  }
  try {
    const std::filesystem::path folder(argv[1]);
    std::filesystem::create_directories(folder);
    switchyard::testing::write_demo(folder);
    switchyard::testing::write_nasty(folder);
    switchyard::testing::write_interrupted(folder);
    switchyard::testing::write_groups(folder);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
