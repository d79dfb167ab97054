#include "switchyard/report/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/report/arm_summary.hpp"
#include "switchyard/report/assets.hpp"
#include "switchyard/report/chart_data.hpp"
#include "switchyard/report/study_file.hpp"
#include "switchyard/report/tables.hpp"
#include "synthetic_study.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::synthetic_demo;
using testing::synthetic_run;

template <typename ErrorType, typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error of this type";
}

/// What a reader sees and a browser runs, without the 5 MB of Plotly.
std::string own_part(const std::string& html) { return html.substr(0, html.find("<script>")); }

TEST(FormatNumber, HasATrueMinusAndNoMinusZero) {
  EXPECT_EQ(format_number(-0.126, 2), "&minus;0.13");
  EXPECT_EQ(format_number(-0.001, 2), "0.00");
  EXPECT_EQ(format_number(2.5e7, 1), "2.500e+07");
  EXPECT_EQ(format_number(std::numeric_limits<double>::quiet_NaN(), 2), "not finite");
}

TEST(WithThousands, GroupsDigits) {
  EXPECT_EQ(with_thousands(999), "999");
  EXPECT_EQ(with_thousands(5783040), "5&thinsp;783&thinsp;040");
  EXPECT_EQ(with_thousands(-1234), "-1&thinsp;234");
}

TEST(ListSeeds, JoinsRuns) {
  EXPECT_EQ(list_seeds({}), "none");
  EXPECT_EQ(list_seeds({1, 0}), "0, 1");
  EXPECT_EQ(list_seeds({2, 0, 1}), "0&ndash;2");
  EXPECT_EQ(list_seeds({0, 1, 5}), "0, 1, 5");
}

TEST(ArmStyles, DifferWithinAKind) {
  std::vector<StudyArm> arms(20);
  arms[18].kind = ArmKind::Floor;
  arms[19].kind = ArmKind::Ceiling;
  const auto styles = arm_styles(arms);
  std::set<std::string> looks;
  for (const ArmStyle& style : styles) looks.insert(style.color + style.marker + style.dash);
  EXPECT_EQ(looks.size(), styles.size());
  EXPECT_EQ(styles[18].color, "--floor");
  EXPECT_EQ(styles[19].color, "--ceiling");
}

TEST(SummaryTable, MarksFloorsCeilingAndUnfinishedArms) {
  std::vector<RunInput> runs = synthetic_demo();
  runs[4].log.end.reset();  // no_balancing
  const StudyGroup group = make_groups(runs, {})[0];
  const std::string html = summary_table(group, arm_styles(group.arms));
  EXPECT_THAT(html, HasSubstr("<tbody class=\"floor\">"));
  EXPECT_THAT(html, HasSubstr("<tbody class=\"ceiling\">"));
  EXPECT_THAT(html, HasSubstr("unfinished: not a result"));
  EXPECT_THAT(html, HasSubstr("<caption>"));
  EXPECT_THAT(html, HasSubstr("<th scope=\"row\">"));
}

TEST(PairedTable, SaysSoWhenThereIsNothingToCompare) {
  const StudyGroup group = make_groups({synthetic_run({.name = "a"}, 0), synthetic_run({.name = "b"}, 1)}, {})[0];
  EXPECT_THAT(paired_table(group, arm_styles(group.arms)), HasSubstr("No other finished arm shares a seed with a."));
}

TEST(ChartData, WritesWhatIsNotFiniteAsNull) {
  RunInput run = synthetic_run({.name = "a"}, 0);
  run.log.evaluations.back().loss = std::numeric_limits<double>::infinity();
  const auto data = nlohmann::json::parse(chart_data(make_groups({run}, {}), 100));
  EXPECT_TRUE(data.at("groups").at(0).at("runs").at(0).at("evaluation").at("loss").is_null());
  EXPECT_EQ(data.at("groups").at(0).at("runs").at(0).at("curve").at("window"), 3);
}

TEST(ChartData, ShowsARepeatedEvaluationOfAStepOnce) {
  RunInput run = synthetic_run({.name = "a"}, 0);
  const std::size_t num_steps = run.log.evaluations.size();
  const EvaluationRecord last = run.log.evaluations.back();
  run.log.evaluations.push_back(last);
  run.log.evaluations.back().loss = 1.25;
  const auto data = nlohmann::json::parse(chart_data(make_groups({run}, {}), 100));
  const auto& history = data.at("groups").at(0).at("runs").at(0).at("history");
  EXPECT_EQ(history.size(), num_steps);
  EXPECT_EQ(history.back().at("step"), last.step);
  EXPECT_EQ(history.back().at("loss"), 1.25);
}

TEST(Assets, PlotlyIsWholeKeepsItsLicenceAndCannotEndItsElement) {
  const ReportAssets assets = report_assets();
  EXPECT_GT(assets.plotly.size(), 3'000'000U);
  EXPECT_THAT(std::string(assets.plotly.substr(0, 300)), HasSubstr("Licensed under the MIT license"));
  for (const std::string_view script : {assets.plotly, assets.script}) {
    EXPECT_EQ(script.find("</script"), std::string_view::npos);
    EXPECT_EQ(script.find("<!--"), std::string_view::npos);
    EXPECT_EQ(script.find('\r'), std::string_view::npos);  // the parser would change it, and with it the hash
  }
}

TEST(BuildReport, SameRunsSameBytes) { EXPECT_EQ(build_report(synthetic_demo(), {}), build_report(synthetic_demo(), {})); }

TEST(BuildReport, HasNoSourceOutsideItself) {
  const std::string html = own_part(build_report(synthetic_demo(), {}));
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
  for (const char* outside : {"src=\"", "http://", "https://", "@import", "url("}) EXPECT_THAT(html, Not(HasSubstr(outside)));
}

TEST(BuildReport, EscapesEveryTextOfARun) {
  const std::string attack = "</script><img src=x onerror=\"alert('1')\">{{title}}";
  RunInput run = synthetic_run({.name = attack}, 0);
  StartRecord& start = run.log.start;
  for (std::string* text : {&start.name, &start.scope, &start.method, &start.router, &start.compute_type, &start.data_hash, &start.version,
                            &start.commit, &start.torch_version, &start.processor, &start.time_utc, &start.command, &run.config_toml,
                            &run.name, &start.domains[0], &run.log.evaluations[0].domains[0].name}) {
    *text = attack;
  }
  run.log.notices = {{1, attack}};
  RunInput open = run;
  open.name += "2";
  open.log.end.reset();
  ReportOptions options;
  options.title = options.question = attack;
  options.notes = {attack};
  options.claims = {{attack, attack, attack}};
  options.arms = {{attack, {}, attack}};
  const std::string html = build_report({run, open}, options);
  EXPECT_THAT(own_part(html), Not(HasSubstr("<img")));
  EXPECT_THAT(own_part(html), HasSubstr("&lt;img src=x onerror=&quot;"));
  EXPECT_EQ(html.find("</script><img"), std::string::npos);
}

TEST(WriteReport, ReadsRunFoldersAndATestbed) {
  const test::ScratchFolder folder;
  const auto runs = synthetic_demo();
  testing::write_run_folder(folder.path() / "bed" / "one", runs[0]);
  testing::write_run_folder(folder.path() / "alone", runs[1]);
  write_file_atomically(folder.path() / "bed" / "testbed.json", R"({"name": "My bed", "question": "Why?", "baseline": "not_run_yet",
      "arms": [{"name": "optimizer_batch", "kind": "floor"}],
      "runs": [{"name": "one", "folder": "one"}, {"name": "two", "folder": "two"}]})");
  const ReportSource source = read_report_source({folder.path() / "bed", folder.path() / "alone/"});
  ASSERT_EQ(source.runs.size(), 2U);
  EXPECT_EQ(source.runs[0].name, "one");
  EXPECT_EQ(source.runs[1].name, "alone");
  EXPECT_EQ(source.runs[0].log.steps.size(), runs[0].log.steps.size());
  EXPECT_EQ(source.options.title, "My bed");
  EXPECT_EQ(source.options.arms.at(0).kind, ArmKind::Floor);
  EXPECT_EQ(source.options.baseline, "");
  EXPECT_THAT(source.options.notes, ::testing::ElementsAre("Planned runs without a log, left out: two."));
  write_report({folder.path() / "bed"}, folder.path() / "report.html");
  EXPECT_THAT(own_part(read_file(folder.path() / "report.html")), HasSubstr("<p class=\"question\">Why?</p>"));
}

TEST(WriteReport, KeepsWhatEachOfTwoTestbedsSaysOfItsArms) {
  const test::ScratchFolder folder;
  const auto runs = synthetic_demo();
  testing::write_run_folder(folder.path() / "a" / "one", runs[0]);
  testing::write_run_folder(folder.path() / "b" / "two", runs[1]);
  const auto write_study = [&](const char* name, const char* arm, const char* run) {
    write_file_atomically(folder.path() / name / "testbed.json", join_text(R"({"name": ")", name, R"(", "question": "Why )", name, R"(?",
        "notes": ["short"], "arms": [)", arm, R"(], "runs": [{"name": ")", run, R"(", "folder": ")", run, R"("}],
        "claims": [{"text": "x is y", "verdict": "holds"}]})"));
  };
  write_study("a", R"({"name": "first", "kind": "trained"})", "one");
  write_study("b", R"({"name": "second", "kind": "floor", "description": "learns nothing"})", "two");
  const ReportOptions options = read_report_source({folder.path() / "a", folder.path() / "b"}).options;
  ASSERT_EQ(options.arms.size(), 2U);
  EXPECT_EQ(options.arms[1].kind, ArmKind::Floor);
  EXPECT_EQ(options.arms[1].description, "learns nothing");
  EXPECT_EQ(options.question, "Why a? Why b?");
  EXPECT_THAT(options.notes, ::testing::ElementsAre("short"));
  ASSERT_EQ(options.claims.size(), 2U);
  EXPECT_EQ(options.claims[0].text, "a: x is y");
  EXPECT_EQ(options.claims[1].text, "b: x is y");
  EXPECT_EQ(read_report_source({folder.path() / "b"}).options.claims.at(0).text, "x is y");

  write_study("b", R"({"name": "first", "kind": "floor"})", "two");
  EXPECT_THAT(message_of<UsageError>([&] { static_cast<void>(read_report_source({folder.path() / "a", folder.path() / "b"})); }),
              HasSubstr("arm 'first' is of kind trained in one testbed and floor in 'b'"));
}

TEST(WriteReport, SaysWhichClaimsRestOnEarlierResults) {
  const test::ScratchFolder folder;
  const RunInput run = synthetic_demo()[0];
  testing::write_run_folder(folder.path() / "one", run);
  const auto notes = [&](int64_t step, double specialization) {
    write_file_atomically(folder.path() / "testbed.json",
                          join_text(R"({"runs": [{"name": "one", "folder": "one", "evaluated": {"step": )", step, R"(, "loss": )",
                                    toml_value(run.log.evaluations.back().loss), R"(, "specialization": )", toml_value(specialization),
                                    R"(}}], "claims": [{"text": "x is y", "verdict": "holds"}]})"));
    return read_report_source({folder.path()}).options.notes;
  };
  const EvaluationRecord& last = run.log.evaluations.back();
  EXPECT_THAT(notes(last.step, last.specialization), ::testing::IsEmpty());
  EXPECT_THAT(notes(last.step, 0.25), ::testing::ElementsAre(HasSubstr("decided by earlier results of one, which have changed")));
  fs::remove_all(folder.path() / "one");
  testing::write_run_folder(folder.path() / "two", run);
  write_file_atomically(folder.path() / "testbed.json",
                        R"({"runs": [{"name": "two", "folder": "two"}, {"name": "one", "folder": "one",
                            "evaluated": {"step": 1, "loss": null, "specialization": 0.5}}],
                            "claims": [{"text": "x is y", "verdict": "holds"}]})");
  EXPECT_THAT(read_report_source({folder.path()}).options.notes, ::testing::Contains(HasSubstr("earlier results of one, ")));
}

TEST(WriteReport, ListsARunWhoseLogIsTornAsMissing) {
  const test::ScratchFolder folder;
  testing::write_run_folder(folder.path() / "one", synthetic_demo()[0]);
  testing::write_run_folder(folder.path() / "two", synthetic_demo()[1]);
  write_file_atomically(folder.path() / "two" / "log.jsonl", R"({"kind":"start","schema":1,"na)");
  write_file_atomically(folder.path() / "testbed.json",
                        R"({"runs": [{"name": "one", "folder": "one"}, {"name": "two", "folder": "two"}]})");
  const ReportSource source = read_report_source({folder.path()});
  EXPECT_EQ(source.runs.size(), 1U);
  EXPECT_THAT(source.options.notes, ::testing::ElementsAre("Planned runs without a log, left out: two."));
}

TEST(BuildReport, HasTheBoundsOfEveryScore) {
  std::set<std::string_view> shown;
  for (const RunMetric& metric : bound_metrics()) shown.insert(metric.name);
  for (const char* bound : {"information_null", "information_ceiling", "information_first_choice_null", "information_first_choice_ceiling",
                            "purity_null", "purity_ceiling", "agreement_floor"}) {
    EXPECT_TRUE(shown.contains(bound)) << bound;
  }
  EXPECT_THAT(own_part(build_report(synthetic_demo(), {})), ::testing::AllOf(HasSubstr("Agreement, floor"), HasSubstr("I, ceiling")));
}

TEST(WriteReport, NamesFoldersOfOneNameByTheirPath) {
  const test::ScratchFolder folder;
  for (const char* parent : {"a", "b"}) testing::write_run_folder(folder.path() / parent / "run", synthetic_demo()[0]);
  const ReportSource source = read_report_source({folder.path() / "a" / "run", folder.path() / "b" / "run"});
  EXPECT_THAT(source.runs[0].name, HasSubstr("a/run"));
  EXPECT_THAT(source.runs[1].name, HasSubstr("b/run"));
}

TEST(WriteReport, RefusesAFolderThatIsNeither) {
  const test::ScratchFolder folder;
  EXPECT_THAT(message_of<UsageError>([&] { static_cast<void>(read_report_source({folder.path()})); }),
              HasSubstr("neither a run folder"));
}

TEST(StudyFile, NamesTheFileAndWhatIsWrong) {
  const test::ScratchFolder folder;
  const fs::path path = folder.path() / "testbed.json";
  const auto error_for = [&](const std::string& text) {
    write_file_atomically(path, text);
    return message_of<DataError>([&] { static_cast<void>(read_study_file(path)); });
  };
  EXPECT_THAT(error_for("{"), HasSubstr("testbed.json"));
  EXPECT_THAT(error_for("{}"), HasSubstr("runs"));
  EXPECT_THAT(error_for(R"({"schema": 9, "runs": []})"), HasSubstr("schema 9"));
  EXPECT_THAT(error_for(R"({"runs": [], "arms": [{"name": "x", "kind": "flor"}]})"), HasSubstr("did you mean 'floor'"));
  EXPECT_THAT(error_for(R"({"runs": [], "claims": [{"text": "x", "verdict": "true"}]})"), HasSubstr("verdict 'true'"));
}

TEST(InferArmKind, KnowsTheReferenceAndTheNullRouters) {
  EXPECT_EQ(infer_arm_kind("prescribed"), ArmKind::Ceiling);
  EXPECT_EQ(infer_arm_kind("frozen_random"), ArmKind::Floor);
  EXPECT_EQ(infer_arm_kind("top_k"), ArmKind::Trained);
}

}  // namespace
}  // namespace switchyard
