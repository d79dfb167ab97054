#pragma once
// The ranks that train one run together, seen by one of them. A run alone is one rank of one, whose communicator sends nothing.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/communicator.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

class RunRanks {
 public:
  /// @param comm  null: alone; must outlive this
  explicit RunRanks(Communicator* comm);

  [[nodiscard]] int64_t rank() const { return comm_.rank(); }
  [[nodiscard]] int64_t size() const { return comm_.size(); }
  [[nodiscard]] bool is_first() const { return rank() == 0; }  // that rank alone writes and tells
  [[nodiscard]] Communicator& comm() const { return comm_; }
  [[nodiscard]] const BalanceRanks& balance() const { return balance_; }

  /// Runs `part` on every rank, then lets all know how it went. `part` must not be collective. Collective.
  /// @throws what `part` threw, on the first rank; SharedError with the texts of all on the others, and where only another rank
  ///         than the first failed. Where the ranks cannot tell each other (CommError), each throws what its own part threw
  void together(const std::function<void()>& part);

  /// The sum over ranks. Collective.
  [[nodiscard]] int64_t sum(int64_t value);
  /// What the first rank gives. Collective.
  [[nodiscard]] std::string from_first(const std::string& text);
  /// @throws SharedError with every rank's text unless all are the same; `what` names it. Collective
  void require_same(const std::string& what, const std::string& text);
  /// @throws SharedError unless all ranks have the same configuration, naming the first key that differs and both values.
  /// Collective
  void require_same_config(const RunConfig& config);

 private:
  std::unique_ptr<Communicator> solo_;
  Communicator& comm_;
  BalanceRanks balance_;
};

}  // namespace switchyard
