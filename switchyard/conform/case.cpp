#include "switchyard/conform/case.hpp"

#include <algorithm>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

template <typename Value>
void check_length(const std::vector<Value>& values, int64_t expected, const char* name) {
  SWITCHYARD_CHECK(values.empty() || static_cast<int64_t>(values.size()) == expected, UsageError, "balance case: ", name,
                   " has ", values.size(), " entries; expected ", expected, " or none");
}

}  // namespace

std::string to_string(const Subject& subject) {
  return has_scope(subject) ? subject.method + "/" + to_string(subject.scope) : subject.method;
}

bool has_loss(const Subject& subject) {
  return subject.method != "bias" && subject.method != "bias_centered" && subject.method != "quantile";
}

bool is_token_loss(const Subject& subject) { return subject.method == "z_loss" || subject.method == "token_loss"; }

bool has_scope(const Subject& subject) { return has_loss(subject) && !is_token_loss(subject) && subject.method != "none"; }

int64_t BalanceCase::num_valid() const {
  return std::count_if(tokens.begin(), tokens.end(), [](const CaseToken& token) { return token.valid(); });
}

DeviceGrid BalanceCase::devices() const { return num_devices(grid) == 1 ? DeviceGrid{.data = num_ranks} : grid; }

std::vector<int64_t> chosen_K(const BalanceCase& step, int64_t layer, int64_t token) {
  const size_t row = step.row(layer, token);
  const auto num_chosen = static_cast<size_t>(step.num_chosen);
  if (!step.choices_LTK.empty()) {
    const auto begin = step.choices_LTK.begin() + static_cast<std::ptrdiff_t>(row * num_chosen);
    return {begin, begin + step.num_chosen};
  }
  const double* logits_E = step.logits_LTE.data() + row * static_cast<size_t>(step.num_experts);
  std::vector<int64_t> experts(static_cast<size_t>(step.num_experts));
  std::iota(experts.begin(), experts.end(), int64_t{0});
  std::stable_sort(experts.begin(), experts.end(), [logits_E](int64_t a, int64_t b) { return logits_E[a] > logits_E[b]; });
  experts.resize(num_chosen);
  return experts;
}

int64_t valid_tokens(const BalanceCase& step, int64_t micro_batch, int64_t rank) {
  return std::count_if(step.tokens.begin(), step.tokens.end(), [&](const CaseToken& token) {
    return token.valid() && token.micro_batch == micro_batch && token.rank == rank;
  });
}

double caller_weight(const BalanceCase& step, int64_t micro_batch, int64_t rank) {
  int64_t of_rank = 0;
  for (int64_t m = 0; m < step.num_micro_batches; ++m) of_rank += valid_tokens(step, m, rank);
  const auto share = [](int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(whole, 1));
  };
  double weight = 1.0;
  if (step.contract.micro_batches == Averaging::Mean) weight /= static_cast<double>(step.num_micro_batches);
  if (step.contract.micro_batches == Averaging::ByTokens) weight *= share(valid_tokens(step, micro_batch, rank), of_rank);
  if (step.contract.ranks == Averaging::Mean) weight /= static_cast<double>(step.num_ranks);
  if (step.contract.ranks == Averaging::ByTokens) weight *= share(of_rank, step.num_valid());
  return weight;
}

void check_case(const BalanceCase& step) {
  const int64_t rows = step.num_layers * step.num_tokens();
  SWITCHYARD_CHECK(static_cast<int64_t>(step.logits_LTE.size()) == rows * step.num_experts, UsageError,
                   "balance case: ", step.logits_LTE.size(),
                   " logits; expected layers * tokens * experts = ", rows * step.num_experts);
  check_length(step.choices_LTK, rows * step.num_chosen, "choices_LTK");
  check_length(step.dropped_LTK, rows * step.num_chosen, "dropped_LTK");
  check_length(step.task_LTE, rows * step.num_experts, "task_LTE");
  check_length(step.runs_L, step.num_layers, "runs_L");
  SWITCHYARD_CHECK(num_devices(step.grid) == 1 || num_shards(step.grid) == step.num_ranks, UsageError,
                   "balance case: ", step.num_ranks, " ranks on a grid with ", num_shards(step.grid), " shares of the tokens");
  CaseToken last;
  for (const CaseToken& token : step.tokens) {
    SWITCHYARD_CHECK(token.micro_batch >= last.micro_batch && token.micro_batch < step.num_micro_batches && token.rank >= 0 &&
                         token.rank < step.num_ranks && (token.micro_batch > last.micro_batch || token.rank >= last.rank),
                     UsageError, "balance case: a token of micro-batch ", token.micro_batch, ", rank ", token.rank,
                     " after one of ", last.micro_batch, ", ", last.rank, "; expected the order (micro-batch, rank)");
    last = token;
  }
}

}  // namespace switchyard::conform
