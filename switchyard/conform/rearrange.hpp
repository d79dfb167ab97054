#pragma once
// Steps to try, and the changes to them that must not matter: the same tokens on other ranks, in other micro-batches, beside
// padding, packed or not. T tokens, L layers, E experts.

#include <cstdint>
#include <vector>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

/// lengths[m][r]: sequences of rank r in micro-batch m, in tokens; a negative number is that many tokens of padding, behind the
/// sequence before them.
using Lengths = std::vector<std::vector<std::vector<int64_t>>>;
enum class Rows { OnePerSequence, OnePerForward };

struct CaseShape {
  int64_t num_layers = 2;
  int64_t num_experts = 4;
  int64_t num_chosen = 2;
};

/// Random logits (deviation 1), all of them numbers of fp32, and places as said. Everything else of the case is its default.
[[nodiscard]] BalanceCase make_case(const Lengths& lengths, uint64_t seed, Rows rows = Rows::OnePerSequence,
                                    const CaseShape& shape = {});

/// Lengths that differ: several sequences a rank, an even number in each micro-batch, 2 micro-batches on 1 rank (or given
/// numbers).
[[nodiscard]] Lengths uneven_lengths(int64_t num_micro_batches, int64_t num_ranks);

/// A token of another case at a new place; padding has no source.
struct Placed {
  int64_t source = kPadding;
  CaseToken place{};
};

struct Rearranged {
  BalanceCase step;
  std::vector<int64_t> source_T;
};

/// Sorts by (micro-batch, rank), stable, and takes along logits, choices, drops and task weights. Logits of padding are large.
[[nodiscard]] Rearranged rearrange(const BalanceCase& base, std::vector<Placed> placed, int64_t num_micro_batches,
                                   int64_t num_ranks);

[[nodiscard]] std::vector<Placed> places_of(const BalanceCase& base);

[[nodiscard]] Rearranged copied_to_ranks(const BalanceCase& base, int64_t copies);          // of one rank
[[nodiscard]] Rearranged copied_to_micro_batches(const BalanceCase& base, int64_t copies);  // of one micro-batch
[[nodiscard]] Rearranged on_one_rank(const BalanceCase& base);
/// Each rank's share of a micro-batch becomes a micro-batch of its own, on one rank.
[[nodiscard]] Rearranged ranks_as_micro_batches(const BalanceCase& base);
[[nodiscard]] Rearranged in_one_micro_batch(const BalanceCase& base);
[[nodiscard]] Rearranged with_micro_batches_reversed(const BalanceCase& base);
[[nodiscard]] Rearranged with_ranks_reversed(const BalanceCase& base);
/// Three tokens of padding in the row of each sequence: behind it, or before it, as tokenizers for generation put them.
enum class PaddingPlace { Behind, Before };
[[nodiscard]] Rearranged with_padding(const BalanceCase& base, PaddingPlace where);
/// One more micro-batch, of padding only.
[[nodiscard]] Rearranged with_empty_micro_batch(const BalanceCase& base);
/// The tokens of one rank dealt out: sequences to the data ranks in turn, each cut over context (and tensor) ranks.
[[nodiscard]] Rearranged on_grid(const BalanceCase& base, const DeviceGrid& grid);

/// The gradient at the tokens of the base, [L, T, E]; where a token has several copies, their sum.
[[nodiscard]] std::vector<double> gradient_at_sources(const Rearranged& changed, const Outcome& outcome,
                                                      const BalanceCase& base);

}  // namespace switchyard::conform
