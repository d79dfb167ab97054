#include "switchyard/core/scope.hpp"

#include <charconv>
#include <optional>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

std::string_view base_name(std::string_view spelling) { return spelling.substr(0, spelling.find('(')); }

const ScopeInfo* find_scope(std::string_view name) {
  for (const ScopeInfo& info : scope_table()) {
    if (base_name(info.spelling) == name) return &info;
  }
  return nullptr;
}

[[noreturn]] void throw_unknown_scope(std::string_view given, std::string_view name) {
  std::vector<std::string> names;
  std::vector<std::string> spellings;
  for (const ScopeInfo& info : scope_table()) {
    names.emplace_back(base_name(info.spelling));
    spellings.emplace_back(info.spelling);
  }
  const std::string nearest = nearest_name(name, names);
  const ScopeInfo* match = find_scope(nearest);
  const std::string hint = match == nullptr ? "" : join_text(" (did you mean '", match->spelling, "'?)");
  throw ConfigError(join_text("unknown scope '", printable(given), "'", hint, "; known: ", comma_list(spellings)));
}

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// The text between the brackets; nothing where there are no brackets.
std::optional<std::string_view> argument_of(std::string_view text) {
  const size_t open = text.find('(');
  if (open == std::string_view::npos) return std::nullopt;
  SWITCHYARD_CHECK(text.back() == ')', ConfigError, "scope '", text, "' has no closing bracket");
  return text.substr(open + 1, text.size() - open - 2);
}

std::string shortest(double number) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), number);
  return {buffer, result.ptr};
}

}  // namespace

std::string to_string(const Scope& scope) {
  for (const ScopeInfo& info : scope_table()) {
    if (info.kind != scope.kind) continue;
    if (scope.kind == ScopeKind::Sequences) return join_text("sequences(", scope.num_sequences, ")");
    if (scope.kind == ScopeKind::Ema) return join_text("ema(", shortest(scope.decay), ")");
    return std::string(info.spelling);
  }
  throw UsageError(join_text("scope kind ", static_cast<int>(scope.kind), " does not exist"));
}

void parse(std::string_view text, Scope& scope) {
  const std::string_view name = base_name(text);
  const ScopeInfo* info = find_scope(name);
  if (info == nullptr) throw_unknown_scope(text, name);
  const std::optional<std::string_view> argument = argument_of(text);
  Scope parsed{.kind = info->kind};
  if (info->kind == ScopeKind::Sequences) {
    parsed.num_sequences = parse_number<int64_t>(argument.value_or("")).value_or(0);
    SWITCHYARD_CHECK(parsed.num_sequences >= 1, ConfigError, "scope '", text,
                     "': expected sequences(n), n a whole number of sequences, at least 1");
  } else if (info->kind == ScopeKind::Ema) {
    parsed.decay = parse_number<double>(argument.value_or("")).value_or(0.0);
    SWITCHYARD_CHECK(parsed.decay > 0.0 && parsed.decay < 1.0, ConfigError, "scope '", text,
                     "': expected ema(decay), 0 < decay < 1");
  } else {
    SWITCHYARD_CHECK(!argument.has_value(), ConfigError, "scope '", text, "': ", info->spelling, " takes no parameter");
  }
  scope = parsed;
}

const std::vector<ScopeInfo>& scope_table() {
  using enum ScopeKind;
  static const std::vector<ScopeInfo> table = {
      {Sequence, "sequence", "each sequence (each packed document) by itself"},
      {Sequences, "sequences(n)", "n consecutive sequences of the step"},
      {MicroBatch, "micro_batch", "the tokens of one micro-batch on one rank"},
      {Ranks, "ranks", "the same micro-batch on every rank"},
      {Prefix, "prefix", "all ranks, micro-batches 1..m of this step; depends on their order"},
      {OptimizerBatch, "optimizer_batch", "all ranks and all micro-batches of the step, exactly"},
      {PreviousStep, "previous_step", "the whole previous step; the first step has no balancing loss"},
      {Ema, "ema(decay)", "exponential mean of the expert fractions over the steps before this one"},
  };
  return table;
}

}  // namespace switchyard
