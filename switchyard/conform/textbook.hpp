#pragma once
// The balancing losses as one would write them on paper: loops in double over the tokens of a step, every device played through
// one after another. Shares no code with switchyard/balance. It is the oracle of the suite; and each protected function is a
// step that somebody got wrong, so the tests break one at a time.

#include <span>
#include <string>
#include <vector>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

class Textbook : public Implementation {
 public:
  [[nodiscard]] std::string name() const override { return "textbook"; }
  [[nodiscard]] Capabilities capabilities() const override;
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override;
  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override;

 protected:
  struct Memory {                        // what lasts from step to step
    std::vector<int64_t> counts_LE{};    // of the previous step
    std::vector<double> fractions_LE{};  // their exponential mean
  };
  struct TokenGroup {
    std::vector<int64_t> averaged{};  // tokens whose probabilities are averaged
    std::vector<int64_t> counted{};   // tokens whose choices give f; empty where f comes from earlier steps
    double weight = 0.0;              // the weights of a step sum to 1
  };
  struct View {  // what one device knows about a group in one of its layers
    const BalanceCase& step;
    const TokenGroup& group;
    int64_t layer;
    int64_t device;
    const Memory& memory;
  };

  [[nodiscard]] virtual std::vector<double> probabilities_E(std::span<const double> logits_E) const;
  [[nodiscard]] virtual bool counts(const CaseToken& token) const { return token.valid(); }
  [[nodiscard]] virtual int64_t sequence_of(const CaseToken& token) const { return token.segment; }
  [[nodiscard]] virtual std::vector<int64_t> requested(const BalanceCase& step, int64_t layer, int64_t token) const;
  [[nodiscard]] virtual int64_t times_counted(const BalanceCase&, int64_t) const { return 1; }
  [[nodiscard]] virtual std::vector<TokenGroup> groups(const BalanceCase& step) const;
  [[nodiscard]] virtual std::vector<int64_t> adds_up_with(const DeviceGrid& grid, int64_t device) const;
  [[nodiscard]] virtual std::vector<double> fractions_E(const View& view) const;
  [[nodiscard]] virtual double averaged_tokens(const View& view) const;
  [[nodiscard]] virtual double lbl_value(const BalanceCase& step, int64_t layer, const Memory& memory) const;
  [[nodiscard]] virtual double contract_factor(const BalanceCase& step, int64_t micro_batch, int64_t rank) const;
  [[nodiscard]] virtual StateBytes save(const Memory& memory) const;
  virtual void remember(const BalanceCase& step, Memory& memory) const;
  [[nodiscard]] virtual Outcome run_step(const BalanceCase& step, Memory& memory) const;

  /// Counts of the tokens as the device has them after adding up: of its layer, or what lies in the same place elsewhere.
  [[nodiscard]] std::vector<int64_t> counts_E(const BalanceCase& step, int64_t layer, int64_t device,
                                              const std::vector<int64_t>& tokens) const;
  [[nodiscard]] std::vector<double> mean_probs_E(const View& view) const;
  /// The first device that holds the layer and a rank's share of the tokens.
  [[nodiscard]] static int64_t device_of(const BalanceCase& step, int64_t layer, int64_t rank);
  [[nodiscard]] static Memory load(const StateBytes& saved);

 private:
  void add_lbl_gradient(const BalanceCase& step, const Memory& memory, std::vector<double>& gradient_LTE) const;
  /// Of a loss of each token by itself, and the gradient of its mean.
  [[nodiscard]] double token_loss(const BalanceCase& step, size_t row) const;
  void add_token_gradient(const BalanceCase& step, std::vector<double>& gradient_LTE) const;
  void add_task(const BalanceCase& step, Outcome& outcome) const;
  /// Adds scale * J^T slope to the gradient of a token's logits, J being the softmax's Jacobian.
  void add_through_probs(const BalanceCase& step, size_t row, std::span<const double> slope_E, double scale,
                         std::vector<double>& gradient_LTE) const;
};

/// The part of the coefficient that a layer gets: all of it, or 1 / L.
[[nodiscard]] double layer_coefficient(const BalanceCase& step);
[[nodiscard]] bool uses_earlier_steps(const Subject& subject);
/// Whether anything lasts from step to step: f, or offsets.
[[nodiscard]] bool keeps_state(const Subject& subject);

}  // namespace switchyard::conform
