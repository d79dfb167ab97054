#include "switchyard/balance/gathered_plan.hpp"

#include <algorithm>
#include <exception>
#include <numeric>
#include <tuple>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// A segment as it travels.
struct SegmentNote {
  int64_t forward = 0;
  int64_t micro_batch = 0;
  int64_t tokens = 0;
  int64_t domain = -1;
};

struct RankNote {
  int64_t data_rank = 0;
  int64_t replica = 0;
  int64_t num_segments = 0;
};

std::vector<SegmentNote> notes_of(const StepPlan& plan) {
  std::vector<SegmentNote> notes;
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    const auto [begin, end] = plan.segments(forward);
    for (int64_t segment = begin; segment < end; ++segment) {
      const auto s = static_cast<size_t>(segment);
      notes.push_back({forward, plan.segment_micro_batch[s], plan.segment_tokens[s], plan.domain_of(segment)});
    }
  }
  return notes;
}

// The segments of every rank.
std::vector<std::vector<SegmentNote>> gather_notes(const std::vector<SegmentNote>& mine, const std::vector<RankNote>& ranks,
                                                   Communicator& comm) {
  std::vector<int64_t> lengths_R;
  for (const RankNote& rank : ranks) lengths_R.push_back(rank.num_segments);
  return all_gather_lists<SegmentNote>(comm, mine, lengths_R);
}

// A segment of the whole step while it is put together.
struct WholeSegment {
  SegmentNote note;
  int64_t data_rank = 0;
  int64_t index = 0;  // among the segments of its data rank
  int64_t holders = 0;
};

// What is wrong with the ranks' segments taken together, empty if nothing is. Every rank finds the same.
std::string find_conflict(const std::vector<RankNote>& ranks, const std::vector<std::vector<SegmentNote>>& notes_R) {
  std::vector<std::pair<int64_t, size_t>> forward_of;  // by micro-batch: forward and the rank that said so
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    for (const SegmentNote& note : notes_R[rank]) {
      const auto m = static_cast<size_t>(note.micro_batch);
      if (m >= forward_of.size()) forward_of.resize(m + 1, {-1, 0});
      if (forward_of[m].first == -1) forward_of[m] = {note.forward, rank};
      if (forward_of[m].first == note.forward) continue;
      return join_text("micro-batch ", note.micro_batch, " is in forward ", forward_of[m].first, " on rank ",
                       forward_of[m].second, " and in forward ", note.forward, " on rank ", rank,
                       "; ranks must cut the step into the same forwards");
    }
    const auto first = std::find_if(ranks.begin(), ranks.end(),
                                    [&](const RankNote& other) { return other.data_rank == ranks[rank].data_rank; });
    const auto same = static_cast<size_t>(first - ranks.begin());
    const auto labels = [](const SegmentNote& note) { return std::tuple(note.forward, note.micro_batch, note.domain); };
    if (!std::equal(notes_R[rank].begin(), notes_R[rank].end(), notes_R[same].begin(), notes_R[same].end(),
                    [&](const SegmentNote& a, const SegmentNote& b) { return labels(a) == labels(b); })) {
      return join_text("ranks ", same, " and ", rank, " both say data_rank ", ranks[rank].data_rank,
                       " and plan different segments; they must list the same ones, each with its own tokens of them");
    }
    const bool counts_once = std::ranges::any_of(
        ranks, [&](const RankNote& other) { return other.data_rank == ranks[rank].data_rank && other.replica == 0; });
    if (!counts_once || ranks[rank].replica < 0) {
      return join_text("rank ", rank, " says data_rank ", ranks[rank].data_rank, ", replica ", ranks[rank].replica,
                       "; expected replicas numbered from 0, one of which counts the data rank's tokens");
    }
  }
  int64_t largest = -1;
  for (size_t m = 0; m < forward_of.size(); ++m) {
    if (forward_of[m].first == -1) continue;
    if (forward_of[m].first < largest) {
      return join_text("micro-batch ", m, " is in forward ", forward_of[m].first, " on rank ", forward_of[m].second,
                       ", earlier ones are in forward ", largest, "; number micro-batch j of every rank j");
    }
    largest = forward_of[m].first;
  }
  return {};
}

std::vector<WholeSegment> merge(const std::vector<RankNote>& ranks, const std::vector<std::vector<SegmentNote>>& notes_R) {
  std::vector<WholeSegment> segments;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto known = std::find_if(segments.begin(), segments.end(),
                                    [&](const WholeSegment& whole) { return whole.data_rank == ranks[rank].data_rank; });
    if (known == segments.end()) {
      int64_t index = 0;
      for (const SegmentNote& note : notes_R[rank]) {
        const bool copy = ranks[rank].replica > 0;
        segments.push_back({note, ranks[rank].data_rank, index++, copy ? 0 : 1});
        if (copy) segments.back().note.tokens = 0;
      }
    } else if (ranks[rank].replica == 0) {
      auto whole = known;
      for (const SegmentNote& note : notes_R[rank]) {
        whole->note.tokens += note.tokens;
        ++whole->holders;
        ++whole;
      }
    }
  }
  std::sort(segments.begin(), segments.end(), [](const WholeSegment& a, const WholeSegment& b) {
    return std::tuple(a.note.micro_batch, a.data_rank, a.index) < std::tuple(b.note.micro_batch, b.data_rank, b.index);
  });
  return segments;
}

GatheredPlan plan_of(const std::vector<WholeSegment>& segments, const StepPlan& local) {
  GatheredPlan gathered;
  StepPlan& whole = gathered.whole;
  whole.step = local.step;
  whole.contract = local.contract;
  whole.num_micro_batches = local.num_micro_batches;
  whole.forward_begin.assign(local.forward_begin.size(), 0);
  for (const WholeSegment& segment : segments) {
    whole.segment_tokens.push_back(segment.note.tokens);
    whole.segment_micro_batch.push_back(segment.note.micro_batch);
    whole.segment_rank.push_back(segment.data_rank);
    whole.segment_domain.push_back(segment.note.domain);
    gathered.holders_of_segment.push_back(segment.holders);
    ++whole.forward_begin[static_cast<size_t>(segment.note.forward) + 1];
  }
  std::partial_sum(whole.forward_begin.begin(), whole.forward_begin.end(), whole.forward_begin.begin());
  return gathered;
}

GatheredPlan alone(const StepPlan& local) {
  GatheredPlan gathered;
  gathered.whole = local;
  gathered.whole_of_local.resize(local.segment_tokens.size());
  std::iota(gathered.whole_of_local.begin(), gathered.whole_of_local.end(), int64_t{0});
  gathered.holders_of_segment.assign(local.segment_tokens.size(), 1);
  return gathered;
}

// Facts of all ranks in one gather; the first that differs is an error on every rank.
std::vector<RankNote> gather_facts(const RankNote& mine, std::vector<AgreedFact> facts, Communicator& comm) {
  const size_t width = 3 + facts.size();
  std::vector<int64_t> words = {mine.data_rank, mine.replica, mine.num_segments};
  for (const AgreedFact& fact : facts) words.push_back(fact.value);
  std::vector<int64_t> all(width * static_cast<size_t>(comm.size()));
  comm.all_gather(words, all);
  std::vector<RankNote> ranks;
  for (size_t at = 0; at < all.size(); at += width) {
    ranks.push_back({all[at], all[at + 1], all[at + 2]});
    for (size_t fact = 0; fact < facts.size(); ++fact) {
      SWITCHYARD_CHECK(all[at + 3 + fact] == all[3 + fact], CommError, comm.describe(), ", balancing of a step: rank 0 has ",
                       all[3 + fact], " ", facts[fact].name, ", rank ", at / width, " has ", all[at + 3 + fact],
                       "; all ranks must have the same");
    }
  }
  return ranks;
}

void check_arguments(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan, const BalanceState& state) {
  config.validate("");
  SWITCHYARD_CHECK(shape.num_layers >= 1 && shape.num_experts >= 1 && shape.layers_of_model() >= shape.num_layers, UsageError,
                   "balance: ", shape.num_layers, " MoE layers (", shape.total_layers, " in all stages) of ",
                   shape.num_experts, " experts; expected at least 1 of each, and no fewer in all than here");
  check_plan(plan);
  check_state(config, shape, state);
}

// What is wrong with the arguments, empty if nothing is: a single rank must not throw before the others know.
std::string find_problem(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan,
                         const BalanceState& state) {
  try {
    check_arguments(config, shape, plan, state);
  } catch (const std::exception& error) {
    return text_of(error);
  }
  return {};
}

}  // namespace

GatheredPlan gather_plan(const StepPlan& local, const RankShare& share, const std::vector<AgreedFact>& facts,
                         Communicator& comm) {
  if (comm.size() == 1) return alone(local);
  RankNote mine{share.data_rank < 0 ? comm.rank() : share.data_rank, share.replica, local.num_segments()};
  std::vector<AgreedFact> agreed = facts;
  for (const AgreedFact& fact : facts_of(local)) agreed.push_back(fact);
  const std::vector<RankNote> ranks = gather_facts(mine, agreed, comm);
  const std::vector<std::vector<SegmentNote>> notes_R = gather_notes(notes_of(local), ranks, comm);
  const std::string conflict = find_conflict(ranks, notes_R);
  SWITCHYARD_CHECK(conflict.empty(), CommError, comm.describe(), ", balancing of step ", local.step, ": ", conflict);

  const std::vector<WholeSegment> segments = merge(ranks, notes_R);
  GatheredPlan gathered = plan_of(segments, local);
  gathered.data_rank = mine.data_rank;
  gathered.replica = mine.replica;
  gathered.num_ranks = std::count_if(ranks.begin(), ranks.end(), [](const RankNote& rank) { return rank.replica == 0; });
  for (size_t whole = 0; whole < segments.size(); ++whole) {
    if (segments[whole].data_rank == mine.data_rank) gathered.whole_of_local.push_back(static_cast<int64_t>(whole));
  }
  return gathered;
}

GatheredPlan gather_plan(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& local,
                         const BalanceState& state, const RankShare& share, Communicator& comm) {
  if (comm.size() == 1) {
    check_arguments(config, shape, local, state);
    return alone(local);
  }
  throw_if_any(comm, find_problem(config, shape, local, state));
  return gather_plan(local, share, facts_of(config, shape, state), comm);
}

}  // namespace switchyard
