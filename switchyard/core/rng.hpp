#pragma once
// Random streams. Each purpose has its own stream, derived from one seed by name, passed explicitly: no global generator.

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace switchyard {

/// A well mixed 64-bit hash of its words; the same on every machine. Used where a choice must not depend on order.
[[nodiscard]] uint64_t hash_words(std::initializer_list<uint64_t> words);

/// The same for a name.
[[nodiscard]] uint64_t hash_text(std::string_view text);

/// Counter-based stream: the n-th number is a function of (key, n), so its whole state is two words.
class Rng {
 public:
  /// @param stream  the purpose: "init", "data", "router"; different names give unrelated streams
  Rng(uint64_t seed, std::string_view stream, std::initializer_list<uint64_t> indices = {});

  [[nodiscard]] uint64_t next();
  [[nodiscard]] double uniform();               // [0, 1)
  [[nodiscard]] double normal();                // mean 0, deviation 1
  [[nodiscard]] uint64_t below(uint64_t end);   // [0, end), unbiased; end >= 1

  /// N(0, deviation^2) into fp32 memory without gaps: the same bits for any number of threads.
  /// @throws ShapeError for other types and layouts
  void fill_normal(const at::Tensor& values, double deviation);
  /// The same as a new tensor.
  [[nodiscard]] at::Tensor normal_tensor(c10::IntArrayRef sizes, double deviation);

  struct State {
    uint64_t key = 0;
    uint64_t counter = 0;
    bool operator==(const State&) const = default;
  };
  [[nodiscard]] State state() const { return {key_, counter_}; }
  static Rng from_state(const State& state);

 private:
  Rng() = default;
  uint64_t key_ = 0;
  uint64_t counter_ = 0;
};

}  // namespace switchyard
