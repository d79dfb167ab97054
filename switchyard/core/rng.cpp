#include "switchyard/core/rng.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kPairsPerTask = 4096;

__extension__ using Uint128 = unsigned __int128;

using Block = std::array<uint64_t, 2>;

// Philox2x64-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; the counter is the first word.
Block philox_block(uint64_t key, uint64_t counter) {
  constexpr uint64_t kMultiplier = 0xD2B74407B1CE6E93;
  constexpr uint64_t kWeyl = 0x9E3779B97F4A7C15;
  constexpr int kRounds = 10;
  Block words = {counter, 0};
  for (int round = 0; round < kRounds; ++round) {
    const Uint128 product = static_cast<Uint128>(kMultiplier) * words[0];
    words = {static_cast<uint64_t>(product >> 64) ^ key ^ words[1], static_cast<uint64_t>(product)};
    key += kWeyl;
  }
  return words;
}

// Finalizer of SplitMix64: each input bit reaches each output bit.
uint64_t mix(uint64_t word) {
  word ^= word >> 30;
  word *= 0xBF58476D1CE4E5B9;
  word ^= word >> 27;
  word *= 0x94D049BB133111EB;
  return word ^ (word >> 31);
}

struct Hasher {
  uint64_t hash = 0x243F6A8885A308D3;
  uint64_t num_words = 0;

  void add(uint64_t word) { hash = mix(hash + 0x9E3779B97F4A7C15 + mix(word ^ ++num_words * 0xD1B54A32D192ED03)); }
  // The length goes in last, so that a trailing zero word is not the same as none.
  [[nodiscard]] uint64_t finish() const { return mix(hash ^ num_words); }
};

double to_unit(uint64_t word) { return static_cast<double>(word >> 11) * 0x1.0p-53; }

// Box-Muller. Both words of a block make both numbers, so a normal needs no state besides the counter.
std::array<double, 2> normal_pair(const Block& words) {
  const double above_zero = to_unit(words[0]) + 0x1.0p-53;
  const double radius = std::sqrt(-2.0 * std::log(above_zero));
  const double angle = 2.0 * std::numbers::pi * to_unit(words[1]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

uint64_t hash_words(std::initializer_list<uint64_t> words) {
  Hasher hasher;
  for (const uint64_t word : words) hasher.add(word);
  return hasher.finish();
}

uint64_t hash_text(std::string_view text) {
  Hasher hasher;
  hasher.add(text.size());
  for (size_t start = 0; start < text.size(); start += 8) {
    uint64_t word = 0;
    for (const char letter : text.substr(start, 8)) word = word << 8 | static_cast<unsigned char>(letter);
    hasher.add(word);
  }
  return hasher.finish();
}

Rng::Rng(uint64_t seed, std::string_view stream, std::initializer_list<uint64_t> indices) {
  Hasher hasher;
  hasher.add(seed);
  hasher.add(hash_text(stream));
  for (const uint64_t index : indices) hasher.add(index);
  key_ = hasher.finish();
}

Rng Rng::from_state(const State& state) {
  Rng rng;
  rng.key_ = state.key;
  rng.counter_ = state.counter;
  return rng;
}

uint64_t Rng::next() { return philox_block(key_, counter_++)[0]; }

double Rng::uniform() { return to_unit(next()); }

double Rng::normal() { return normal_pair(philox_block(key_, counter_++))[0]; }

uint64_t Rng::below(uint64_t end) {
  SWITCHYARD_CHECK(end >= 1, UsageError, "Rng::below(0): the range is empty");
  // Lemire's method: the high word is uniform once the few low words that come up too often are refused.
  const uint64_t refused = (0 - end) % end;
  while (true) {
    const Uint128 product = static_cast<Uint128>(next()) * end;
    if (static_cast<uint64_t>(product) >= refused) return static_cast<uint64_t>(product >> 64);
  }
}

at::Tensor Rng::normal_tensor(c10::IntArrayRef sizes, double deviation) {
  at::Tensor values = at::empty(sizes, at::kFloat);
  float* data = values.mutable_data_ptr<float>();
  const int64_t size = values.numel();
  const int64_t pairs = (size + 1) / 2;
  at::parallel_for(0, pairs, kPairsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const auto [first, second] = normal_pair(philox_block(key_, counter_ + static_cast<uint64_t>(pair)));
      data[2 * pair] = static_cast<float>(deviation * first);
      if (2 * pair + 1 < size) data[2 * pair + 1] = static_cast<float>(deviation * second);
    }
  });
  counter_ += static_cast<uint64_t>(pairs);
  return values;
}

}  // namespace switchyard
