#pragma once
// Tokens -> the micro-batches of a training step, with domain and document labels. M micro-batches of B rows of S tokens.
//
// Each domain's documents are laid end to end and cut into windows of S + 1 tokens. An epoch of a domain visits its windows
// in a fresh random order on a grid that is shifted by a random offset in [0, S). Everything is a function of (seed, step,
// windows drawn so far), so the state is a few integers and a resumed run sees the same bits.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/data/batch.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/data/rows.hpp"

namespace switchyard {

enum class Composition {
  OneDomain,  // each micro-batch holds sequences of one domain
  Mixed,      // the same sequences of the step, dealt at random ("shuffle batch" in arXiv 2501.11873, section 3)
};
[[nodiscard]] std::string to_string(const Composition& value);  // "one_domain", "mixed"
void parse(std::string_view text, Composition& value);

struct BatcherConfig {
  int64_t sequence_length = 512;          // S
  int64_t sequences_per_micro_batch = 1;  // B
  int64_t micro_batches = 8;              // M, per optimizer step
  Composition composition = Composition::OneDomain;
  SegmentKind segments = SegmentKind::Row;
  std::vector<std::string> domains;       // in the order of their labels; empty: all of the data set
  std::map<std::string, double> weights;  // share of each domain; empty: equal

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("sequence_length", sequence_length, "tokens of a sequence S");
    visit("sequences_per_micro_batch", sequences_per_micro_batch, "sequences of a micro-batch");
    visit("micro_batches", micro_batches, "micro-batches of an optimizer step M");
    visit("composition", composition, "one_domain: a micro-batch is of one domain; mixed: the step's sequences are shuffled");
    visit("segments", segments, "what the scope 'sequence' counts by itself: row or document");
    visit("domains", domains, "domains to train on; empty: all");
    visit("weights", weights, "share of each domain; empty: equal");
  }
  /// Checks what needs no data set. @throws ConfigError
  void validate(const std::string& where) const;

  bool operator==(const BatcherConfig&) const = default;
};

/// All that changes from step to step. Plain integers: a checkpoint stores it as JSON.
struct BatcherState {
  int64_t step = 0;              // steps given out
  std::vector<int64_t> drawn_N;  // windows given out, per chosen domain

  bool operator==(const BatcherState&) const = default;
};

class Batcher {
 public:
  /// @param dataset  must outlive the batcher
  /// @throws ConfigError for a config that does not fit the data set (a weight for a domain that is not chosen);
  ///         DataError naming a domain that has less than 2 S tokens
  Batcher(const Dataset& dataset, const BatcherConfig& config, uint64_t seed);
  ~Batcher();
  Batcher(Batcher&&) noexcept;

  /// The next step's M micro-batches. Micro-batch m's domain comes from systematic sampling over the weights in a random
  /// order: domain d gets floor or ceil of M * weight_d; for equal weights and M = N each domain comes exactly once.
  [[nodiscard]] std::vector<Batch> next_step();

  [[nodiscard]] const BatcherState& state() const;
  /// Continues from a state of a batcher with the same data set, config and seed.
  /// @throws StateError when the number of domains differs or a number is negative
  void restore(const BatcherState& state);

  /// Names of the chosen domains; domain_T indexes this list.
  [[nodiscard]] const std::vector<std::string>& domains() const;
  /// Windows of an epoch, per chosen domain.
  [[nodiscard]] std::vector<int64_t> windows_N() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Held-out batches: fixed (no seed), each of one domain, domain after domain, windows without overlap spread evenly over the
/// held-out documents. domain_T indexes `domains` (the data set's own numbering when that is empty).
/// @throws DataError naming a domain with too few held-out tokens, and how many there are
[[nodiscard]] std::vector<Batch> heldout_batches(const Dataset& dataset, const std::vector<std::string>& domains,
                                                 int64_t sequence_length, int64_t sequences_per_domain,
                                                 int64_t sequences_per_batch, SegmentKind segments = SegmentKind::Row);

}  // namespace switchyard
