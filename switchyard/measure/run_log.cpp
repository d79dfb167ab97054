#include "switchyard/measure/run_log.hpp"

#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/measure/run_log_lines.hpp"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kShownLetters = 80;  // of a line that is refused

// The fields of each record, once for writing and reading: const when writing.
template <typename Given, typename Record>
concept MaybeConst = std::same_as<std::remove_const_t<Given>, Record>;

void visit_fields(MaybeConst<LoadMetrics> auto& record, auto& visit) {
  visit("max_vio", record.max_vio);
  visit("utilization", record.utilization);
  visit("dead_experts", record.dead_experts);
  visit("entropy", record.entropy);
  visit("variation", record.variation);
}

void visit_fields(MaybeConst<LayerEvaluation> auto& record, auto& visit) {
  visit("layer", record.layer);
  visit("micro_batch", record.micro_batch);
  visit("global", record.global);
  visit("counts", record.counts_NE);
  visit("specialization", record.specialization);
  visit("specialization_first_choice", record.specialization_first_choice);
  visit("information", record.information);
  visit("information_null", record.information_null);
  visit("information_null_deviation", record.information_null_deviation);
  visit("information_ceiling", record.information_ceiling);
  visit("information_first_choice", record.information_first_choice);
  visit("information_first_choice_null", record.information_first_choice_null);
  visit("information_first_choice_ceiling", record.information_first_choice_ceiling);
  visit("purity", record.purity);
  visit("purity_null", record.purity_null);
  visit("purity_ceiling", record.purity_ceiling);
  visit("agreement", record.agreement);
  visit("agreement_floor", record.agreement_floor);
  visit("jensen_shannon", record.jensen_shannon_NN);
  visit("margin", record.margin);
}

void visit_fields(MaybeConst<DomainEvaluation> auto& record, auto& visit) {
  visit("name", record.name);
  visit("loss", record.loss);
  visit("perplexity", record.perplexity);
  visit("tokens", record.tokens);
}

void visit_fields(MaybeConst<EvaluationRecord> auto& record, auto& visit) {
  visit("step", record.step);
  visit("sequences", record.sequences);
  visit("tokens", record.tokens);
  visit("permutations", record.permutations);
  visit("loss", record.loss);
  visit("perplexity", record.perplexity);
  visit("domains", record.domains);
  visit("layers", record.layers);
  visit("micro_batch", record.micro_batch);
  visit("global", record.global);
  visit("specialization", record.specialization);
  visit("purity", record.purity);
  visit("agreement", record.agreement);
  visit("margin", record.margin);
}

void visit_fields(MaybeConst<StartRecord> auto& record, auto& visit) {
  visit("schema", record.schema);
  visit("name", record.name);
  visit("arm", record.arm);
  visit("seed", record.seed);
  visit("step", record.step);
  visit("total_steps", record.total_steps);
  visit("scope", record.scope);
  visit("method", record.method);
  visit("coefficient", record.coefficient);
  visit.later("layers", record.layers);
  visit("router", record.router);
  visit("domains", record.domains);
  visit("num_layers", record.num_layers);
  visit("num_experts", record.num_experts);
  visit("num_chosen", record.num_chosen);
  visit("parameters", record.parameters);
  visit("compute_type", record.compute_type);
  visit("data_hash", record.data_hash);
  visit("version", record.version);
  visit("commit", record.commit);
  visit("torch_version", record.torch_version);
  visit("processor", record.processor);
  visit("time_utc", record.time_utc);
  visit("command", record.command);
}

void visit_fields(MaybeConst<BalanceTermRecord> auto& record, auto& visit) {
  visit("method", record.method);
  visit("scope", record.scope);
  visit("coefficient", record.coefficient);
  visit("value", record.value);
}

void visit_fields(MaybeConst<StepRecord> auto& record, auto& visit) {
  visit("step", record.step);
  visit("tokens", record.tokens);
  visit("loss", record.loss);
  visit("balance_loss", record.balance_loss);
  visit("lbl_layers", record.lbl_layers);
  visit("lbl", record.lbl);
  visit("z_loss", record.z_loss);
  visit.later("balance_terms", record.balance_terms);
  visit("max_vio_step", record.max_vio_step);
  visit("max_vio_micro_batch", record.max_vio_micro_batch);
  visit("learning_rate", record.learning_rate);
  visit("gradient_norm", record.gradient_norm);
  visit("seconds", record.seconds);
  visit("tokens_per_second", record.tokens_per_second);
}

void visit_fields(MaybeConst<EndRecord> auto& record, auto& visit) {
  visit("step", record.step);
  visit("reason", record.reason);
  visit("seconds", record.seconds);
  visit("train_seconds", record.train_seconds);
}

void visit_fields(MaybeConst<NoticeRecord> auto& record, auto& visit) {
  visit("step", record.step);
  visit("text", record.text);
}

struct Writer {
  Json& object;
  template <typename T>
  void operator()(const char* key, const T& value) const { object[key] = to_json(value); }
  template <typename T>
  void later(const char* key, const T& value) const { (*this)(key, value); }

  static Json to_json(int64_t value) { return value; }
  static Json to_json(double value) { return value; }  // dumped as null where it is not finite
  static Json to_json(const std::string& value) { return value; }
  static Json to_json(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }
  template <typename T>
  static Json to_json(const std::vector<T>& values) {
    Json list = Json::array();
    for (const T& value : values) list.push_back(to_json(value));
    return list;
  }
  template <typename T>
  static Json to_json(const T& record) {
    Json object = Json::object();
    Writer writer{object};
    visit_fields(record, writer);
    return object;
  }
};

template <typename Record>
std::string record_line(std::string_view kind, const Record& record) {
  Json object = Json::object();
  object["kind"] = kind;
  Writer writer{object};
  visit_fields(record, writer);
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

struct Reader {
  const Json& object;
  const std::string& where;  // "runs/a/log.jsonl:12"

  template <typename T>
  void operator()(const char* key, T& value) const {
    const auto found = object.find(key);
    SWITCHYARD_CHECK(found != object.end(), DataError, where, ": the record has no '", key, "'");
    from_json(key, *found, value);
  }

  /// A field that older logs do not have.
  template <typename T>
  void later(const char* key, T& value) const {
    if (object.contains(key)) (*this)(key, value);
  }

  void expect(bool holds, const char* key, const char* expected, const Json& json) const {
    SWITCHYARD_CHECK(holds, DataError, where, ": '", key, "' is ", json.dump(-1, ' ', true, Json::error_handler_t::replace),
                     "; expected ", expected);
  }
  void from_json(const char* key, const Json& json, int64_t& value) const {
    // Unsigned means above the largest int64 here only if it does not fit.
    const bool fits = json.is_number_integer() && (!json.is_number_unsigned() || json.get<uint64_t>() <= kLargest);
    expect(fits, key, "a 64-bit integer", json);
    value = json.get<int64_t>();
  }
  void from_json(const char* key, const Json& json, double& value) const {
    expect(json.is_number() || json.is_null(), key, "a number or null", json);
    value = json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
  }
  void from_json(const char* key, const Json& json, std::optional<double>& value) const {
    expect(json.is_number() || json.is_null(), key, "a number or null", json);
    value = json.is_null() ? std::nullopt : std::optional<double>(json.get<double>());
  }
  void from_json(const char* key, const Json& json, std::string& value) const {
    expect(json.is_string(), key, "a string", json);
    value = json.get<std::string>();
  }
  template <typename T>
  void from_json(const char* key, const Json& json, std::vector<T>& values) const {
    expect(json.is_array(), key, "a list", json);
    values.clear();
    for (const Json& item : json) from_json(key, item, values.emplace_back());
  }
  template <typename T>
  void from_json(const char* key, const Json& json, T& record) const {
    expect(json.is_object(), key, "an object", json);
    Reader inner{json, where};
    visit_fields(record, inner);
  }

  static constexpr uint64_t kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
};

template <typename Record>
Record read_record(const Json& object, const std::string& where) {
  Record record;
  Reader reader{object, where};
  visit_fields(record, reader);
  return record;
}

// Kind and step, which every record has.
LogLine parse_line(std::string_view text, std::string where, Json object) {
  LogLine line{std::string(text), std::move(where), {}, 0, std::move(object)};
  if (line.is_broken()) return line;
  SWITCHYARD_CHECK(line.object.is_object(), DataError, line.where, ": not a JSON object: ", text.substr(0, kShownLetters));
  Reader reader{line.object, line.where};
  reader("kind", line.kind);
  if (line.kind == "start") {
    int64_t schema = 0;
    reader("schema", schema);
    SWITCHYARD_CHECK(schema == kRunLogSchema, DataError, line.where, ": log schema ", schema,
                     "; this version of switchyard reads ", kRunLogSchema, ": use the version that wrote it");
  }
  reader("step", line.step);
  return line;
}

// None without a start record.
std::optional<RunLog> read_records(const std::filesystem::path& path) {
  RunLog log;
  bool started = false;
  for (const LogLine& line : read_log_lines(path)) {
    refuse_broken(line);
    if (line.kind == "start") {
      log.start = read_record<StartRecord>(line.object, line.where);
      log.end.reset();
      started = true;
    } else if (line.kind == "step") {
      log.steps.push_back(read_record<StepRecord>(line.object, line.where));
    } else if (line.kind == "evaluation") {
      log.evaluations.push_back(read_record<EvaluationRecord>(line.object, line.where));
    } else if (line.kind == "notice") {
      log.notices.push_back(read_record<NoticeRecord>(line.object, line.where));
    } else if (line.kind == "end") {
      log.end = read_record<EndRecord>(line.object, line.where);
    }
  }
  return started ? std::optional(std::move(log)) : std::nullopt;
}

}  // namespace

std::vector<LogLine> read_log_lines(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  std::vector<LogLine> lines;
  int64_t number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t newline = content.find('\n', begin);
    const bool whole = newline != std::string::npos;
    const std::string_view text = std::string_view(content).substr(begin, (whole ? newline : content.size()) - begin);
    begin = whole ? newline + 1 : content.size();
    LogLine line = parse_line(text, join_text(path.string(), ":", ++number), Json::parse(text, nullptr, false));
    // The newline is written last: without it the process died in the middle of this line.
    if (whole || !line.is_broken()) lines.push_back(std::move(line));
  }
  return lines;
}

void refuse_broken(const LogLine& line) {
  SWITCHYARD_CHECK(!line.is_broken(), DataError, line.where, ": not JSON: ", line.text.substr(0, kShownLetters),
                   "; the log is damaged there. Resume the run, which cuts off what is broken behind its checkpoint, or delete that line");
}

std::optional<RunLog> find_run_log(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error) ? read_records(path) : std::nullopt;
}

RunLog read_run_log(const std::filesystem::path& path) {
  std::optional<RunLog> log = read_records(path);
  SWITCHYARD_CHECK(log.has_value(), DataError, path.string(), ": no start record, so this is not a run log of switchyard");
  return *std::move(log);
}

std::optional<StartRecord> find_start(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  std::optional<StartRecord> start;
  for (const LogLine& line : read_log_lines(path)) {
    if (line.kind == "start") start = read_record<StartRecord>(line.object, line.where);
  }
  return start;
}

std::string to_json_line(const StartRecord& record) { return record_line("start", record); }
std::string to_json_line(const StepRecord& record) { return record_line("step", record); }
std::string to_json_line(const EvaluationRecord& record) { return record_line("evaluation", record); }
std::string to_json_line(const NoticeRecord& record) { return record_line("notice", record); }
std::string to_json_line(const EndRecord& record) { return record_line("end", record); }

}  // namespace switchyard
