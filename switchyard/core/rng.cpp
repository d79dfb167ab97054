#include "switchyard/core/rng.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "switchyard/core/error.hpp"
#include "switchyard/core/normal_ops.hpp"

namespace switchyard {
namespace {

constexpr int64_t kPairsPerBlock = 512;
constexpr int64_t kBlocksPerTask = 8;

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

// Box-Muller, its cosine. Both words of a block make one number, so a normal needs no state besides the counter.
double normal_of(const Block& words) {
  const double above_zero = to_unit(words[0]) + 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(above_zero)) * std::cos(2.0 * std::numbers::pi * to_unit(words[1]));
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

double Rng::normal() { return normal_of(philox_block(key_, counter_++)); }

uint64_t Rng::below(uint64_t end) {
  SWITCHYARD_CHECK(end >= 1, UsageError, "Rng::below(0): the range is empty");
  // Lemire's method: the high word is uniform once the few low words that come up too often are refused.
  const uint64_t refused = (0 - end) % end;
  while (true) {
    const Uint128 product = static_cast<Uint128>(next()) * end;
    if (static_cast<uint64_t>(product) >= refused) return static_cast<uint64_t>(product >> 64);
  }
}

void Rng::fill_normal(const at::Tensor& values, double deviation) {
  SWITCHYARD_CHECK(values.scalar_type() == at::kFloat && values.is_contiguous(), ShapeError, "Rng::fill_normal: ",
                   values.scalar_type(), " ", values.sizes(), " of strides ", values.strides(), "; expected contiguous Float");
  float* data = values.mutable_data_ptr<float>();
  const int64_t size = values.numel();
  const int64_t pairs = (size + 1) / 2;
  const int64_t num_blocks = at::divup(pairs, kPairsPerBlock);
  at::parallel_for(0, num_blocks, kBlocksPerTask, [&](int64_t first, int64_t last) {
    std::array<uint64_t, kPairsPerBlock> radius_words, angle_words;
    for (int64_t begin = first * kPairsPerBlock; begin < std::min(last * kPairsPerBlock, pairs); begin += kPairsPerBlock) {
      const int64_t count = std::min(kPairsPerBlock, pairs - begin);
      for (int64_t i = 0; i < count; ++i) {
        const Block words = philox_block(key_, counter_ + static_cast<uint64_t>(begin + i));
        radius_words[static_cast<size_t>(i)] = words[0];
        angle_words[static_cast<size_t>(i)] = words[1];
      }
      const bool is_odd = 2 * (begin + count) > size;  // the last pair has one number too many
      normals_from_words(radius_words.data(), angle_words.data(), count - (is_odd ? 1 : 0), deviation, data + 2 * begin);
      if (!is_odd) continue;
      std::array<float, 2> last_pair{};
      const auto at = static_cast<size_t>(count - 1);
      normals_from_words(&radius_words[at], &angle_words[at], 1, deviation, last_pair.data());
      data[size - 1] = last_pair[0];
    }
  });
  counter_ += static_cast<uint64_t>(pairs);
}

at::Tensor Rng::normal_tensor(c10::IntArrayRef sizes, double deviation) {
  at::Tensor values = at::empty(sizes, at::kFloat);
  fill_normal(values, deviation);
  return values;
}

}  // namespace switchyard
