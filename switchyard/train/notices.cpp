#include "switchyard/train/notices.hpp"

#include <set>

#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/model/compute_type.hpp"

namespace switchyard {
namespace {

std::string ranks_text(int64_t ranks) { return join_text(ranks, ranks == 1 ? " rank" : " ranks"); }

/// Losses that act now or later.
std::vector<BalanceTerm> terms_ahead(const BalanceConfig& balance, int64_t step) {
  std::vector<BalanceTerm> terms = all_terms(balance);
  std::erase_if(terms, [step](const BalanceTerm& term) {
    return term.method == "none" || term.coefficient == 0.0 || (term.to_step != 0 && term.to_step <= step);
  });
  return terms;
}

void add_changed_ranks(const RunConfig& config, const RunStart& start, std::vector<std::string>& notices) {
  if (start.ranks == start.ranks_before) return;
  std::set<std::string> scopes;
  for (const BalanceTerm& term : terms_ahead(config.balance, start.step)) {
    const bool over_ranks = term.scope.kind == ScopeKind::Ranks || term.scope.kind == ScopeKind::Prefix;
    if (over_ranks) scopes.insert(to_string(term.scope));
  }
  for (const std::string& scope : scopes) {
    notices.push_back(join_text("the balancing scope ", scope, " counts over ", ranks_text(start.ranks),
                                " from here on, before over ", start.ranks_before));
  }
}

/// Whether every group of the scope is sure to hold one domain.
bool groups_hold_one_domain(const Scope& scope, const BatcherConfig& batches, const RunStart& start) {
  const bool lone_micro_batch = batches.composition == Composition::OneDomain || batches.sequences_per_micro_batch == 1;
  switch (scope.kind) {
    case ScopeKind::Sequence: return true;
    case ScopeKind::Sequences: return start.domains == 1 || scope.num_sequences == 1;
    case ScopeKind::MicroBatch: return start.domains == 1 || lone_micro_batch;
    case ScopeKind::Ranks: return start.domains == 1 || (lone_micro_batch && start.ranks == 1);
    default: return start.domains == 1;
  }
}

void add_lone_domains(const RunConfig& config, const RunStart& start, std::vector<std::string>& notices) {
  for (const BalanceTerm& term : terms_ahead(config.balance, 0)) {
    if (find_method(term.method).reads != SlopeReads::DomainMeans) continue;
    if (!groups_hold_one_domain(term.scope, config.data.batcher, start)) continue;
    notices.push_back(join_text("the loss ", term.method, " over ", to_string(term.scope),
                                " is 0: it compares domains, and each of its groups holds one"));
  }
}

void add_of_configuration(const RunConfig& config, const RunStart& start, std::vector<std::string>& notices) {
  if (start.heldout_sequences < kEnoughSequences) {
    notices.push_back(join_text("evaluation runs over ", start.heldout_sequences, " held-out sequences; below ", kEnoughSequences,
                                " its error is near the difference between seeds"));
  }
  const std::string few_documents = few_documents_text(start.heldout_documents, DocumentsOf::Evaluation);
  if (!few_documents.empty()) notices.push_back(few_documents);
  if (config.optimizer.warmup_steps > config.steps) {
    notices.push_back(join_text("optimizer.warmup_steps is ", config.optimizer.warmup_steps, " of ", config.steps,
                                " steps: the learning rate never reaches its peak"));
  }
  add_lone_domains(config, start, notices);
}

}  // namespace

std::vector<std::string> standing_notices(const RunConfig& config, const RunStart& start) {
  std::vector<std::string> notices;
  add_changed_ranks(config, start, notices);
  if (start.ranks > 1 || start.ranks_before > 1) {
    notices.push_back(join_text("trained on ", ranks_text(start.ranks), ", experts ", to_string(config.execution.experts),
                                start.ranks_before == start.ranks ? "" : join_text(", before on ", start.ranks_before)));
  }
  const bool is_faster = start.compute == resolve_compute_type(ComputeType::Auto);
  if (config.execution.dtype == ComputeType::Auto && (start.step == 0 || !is_faster)) {
    notices.push_back(join_text("execution.dtype = auto: this run computes in ", to_string(start.compute),
                                is_faster ? ", the faster type of this processor" : ", as it began, which is not the faster type here"));
  }
  if (start.step == 0) add_of_configuration(config, start, notices);
  return notices;
}

}  // namespace switchyard
