#include "contract.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard::test {
namespace {

// Lengths around where implementations switch: empty, one element, shorter than the group, small, inline limit of MPI, large.
constexpr std::array<int64_t, 8> kLengths = {0, 1, 3, 100, 512, 513, 40000, 200003};

size_t at(int64_t index) { return static_cast<size_t>(index); }

int64_t value_of(int64_t rank, int64_t index) { return (rank + 1) * 1000003 + index * 7 - rank * rank * index; }

std::string says(const Communicator& comm, std::string_view text) { return comm.describe() + ": " + std::string(text); }

// The text of the CommError that `call` must throw.
std::string comm_error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const CommError& error) {
    return error.what();
  }
  throw ContractFailure("a CommError was due, and the call returned");
}

void require_in(std::string_view text, std::string_view part) {
  require(text.find(part) != std::string_view::npos, "'" + std::string(part) + "' is missing in: " + std::string(text));
}

void sums_counts(Communicator& comm) {
  for (const int64_t length : kLengths) {
    std::vector<int64_t> values(at(length));
    for (int64_t i = 0; i < length; ++i) values[at(i)] = value_of(comm.rank(), i);
    comm.all_reduce_sum(values);
    for (int64_t i = 0; i < length; ++i) {
      int64_t expected = 0;
      for (int64_t rank = 0; rank < comm.size(); ++rank) expected += value_of(rank, i);
      require(values[at(i)] == expected, says(comm, "wrong int64 sum at length " + std::to_string(length)));
    }
  }
}

// Hand-worked: rank r gives r + 1 and 0.5 * (r + 1); n ranks sum to n (n + 1) / 2 and half of it.
void sums_by_hand(Communicator& comm) {
  constexpr std::array<int64_t, 5> kTriangle = {0, 1, 3, 6, 10};
  require(comm.size() < std::ssize(kTriangle), "the hand-worked sums reach to 4 ranks");
  const auto expected = kTriangle[at(comm.size())];
  std::vector<int64_t> whole = {comm.rank() + 1};
  std::vector<double> doubles = {0.5 * static_cast<double>(comm.rank() + 1)};
  std::vector<float> floats = {0.5F * static_cast<float>(comm.rank() + 1)};
  comm.all_reduce_sum(whole);
  comm.all_reduce_sum(doubles);
  comm.all_reduce_sum(floats);
  require(whole[0] == expected, says(comm, "wrong int64 sum"));
  require(doubles[0] == 0.5 * static_cast<double>(expected), says(comm, "wrong double sum"));
  require(floats[0] == 0.5F * static_cast<float>(expected), says(comm, "wrong float sum"));
}

// Numbers of very different size and either sign, so that another order of addition gives other bits.
template <typename T>
std::vector<T> rough_numbers(int64_t rank, int64_t length, uint64_t round) {
  Rng rng(round, "contract", {static_cast<uint64_t>(rank)});
  std::vector<T> values(at(length));
  for (T& value : values) value = static_cast<T>((rng.uniform() - 0.5) * std::pow(10.0, static_cast<double>(rng.below(15))));
  return values;
}

template <typename T>
void sums_in_rank_order(Communicator& comm) {
  for (const int64_t length : kLengths) {
    std::vector<T> values = rough_numbers<T>(comm.rank(), length, 1);
    comm.all_reduce_sum(values);
    std::vector<T> expected = rough_numbers<T>(0, length, 1);
    for (int64_t rank = 1; rank < comm.size(); ++rank) {
      const std::vector<T> other = rough_numbers<T>(rank, length, 1);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += other[i];
    }
    require(values == expected, says(comm, "not the sum in rank order at length " + std::to_string(length)));
  }
}

// Equal bits on all ranks holds for any backend.
void sums_are_equal_everywhere(Communicator& comm) {
  for (const int64_t length : {int64_t{3}, int64_t{4097}}) {
    std::vector<double> values = rough_numbers<double>(comm.rank(), length, 2);
    comm.all_reduce_sum(values);
    std::vector<double> all_R(at(length * comm.size()));
    comm.all_gather(values, all_R);
    for (size_t i = 0; i < all_R.size(); ++i) {
      require(std::bit_cast<uint64_t>(all_R[i]) == std::bit_cast<uint64_t>(values[i % values.size()]),
              says(comm, "ranks differ in a sum"));
    }
  }
}

void keeps_several_in_flight(Communicator& comm) {
  const int64_t ranks = comm.size();
  const int64_t own = comm.rank() + 1;
  const int64_t total = ranks * (ranks + 1) / 2;
  for (const int64_t length : {int64_t{2}, int64_t{100000}}) {
    std::vector<int64_t> first(at(length), own), second(at(length), 10 * own), third(at(length), 100 * own);
    Pending a = comm.start_all_reduce_sum(first);
    Pending b = comm.start_all_reduce_sum(second);
    std::vector<double> between = {1.0};
    comm.all_reduce_sum(between);  // a blocking call overtakes nothing and is not overtaken
    Pending c = comm.start_all_reduce_sum(third);
    // Ranks wait in different orders: none may need another to be waiting.
    if (comm.rank() % 2 == 0) {
      c.wait();
      require(a.ready() && b.ready(), says(comm, "an earlier call is not complete when a later one is"));
      b.wait();
      a.wait();
    } else {
      a.wait();
      b.wait();
      c.wait();
    }
    a.wait();  // a second wait does nothing
    require(between[0] == static_cast<double>(ranks), says(comm, "wrong sum of the blocking call"));
    require(first == std::vector<int64_t>(at(length), total), says(comm, "wrong sum of the first call"));
    require(second == std::vector<int64_t>(at(length), 10 * total), says(comm, "wrong sum of the second call"));
    require(third == std::vector<int64_t>(at(length), 100 * total), says(comm, "wrong sum of the third call"));
  }
  Pending nothing;
  require(nothing.ready(), "an empty Pending is ready");
  nothing.wait();
}

// Polling alone completes a call.
void completes_by_polling(Communicator& comm) {
  std::vector<int64_t> values(3000, 1);
  Pending pending = comm.start_all_reduce_sum(values);
  const auto begin = std::chrono::steady_clock::now();
  while (!pending.ready()) {
    require(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30),
            says(comm, "polling does not complete a call"));
  }
  pending.wait();
  require(values == std::vector<int64_t>(3000, comm.size()), says(comm, "wrong sum after polling"));
}

struct Record {
  int32_t rank;
  float weight;
  bool operator==(const Record&) const = default;
};

void gathers_in_rank_order(Communicator& comm) {
  for (const int64_t length : kLengths) {
    std::vector<Record> mine(at(length));
    for (int64_t i = 0; i < length; ++i) mine[at(i)] = {static_cast<int32_t>(comm.rank()), static_cast<float>(i)};
    std::vector<Record> all_R(at(length * comm.size()));
    comm.all_gather(mine, all_R);
    for (int64_t i = 0; i < std::ssize(all_R); ++i) {
      const Record expected = {static_cast<int32_t>(i / length), static_cast<float>(i % length)};
      require(all_R[at(i)] == expected, says(comm, "all_gather has a wrong element"));
    }
  }
}

// Several in flight, as the weights of a step are.
void gathers_in_place(Communicator& comm) {
  std::vector<std::vector<float>> all_R;
  std::vector<Pending> pending;
  for (const int64_t length : kLengths) {
    std::vector<float>& values = all_R.emplace_back(at(length * comm.size()), -1.0F);
    std::fill_n(values.begin() + length * comm.rank(), length, static_cast<float>(comm.rank()));
  }
  for (size_t i = 0; i < all_R.size(); ++i) {
    pending.push_back(comm.start_all_gather_in_place(all_R[i], i % 2 == 0 ? CallMode::Blocking : CallMode::Background));
  }
  for (Pending& each : pending) each.wait();
  for (const std::vector<float>& values : all_R) {
    const int64_t length = std::ssize(values) / comm.size();
    for (int64_t i = 0; i < std::ssize(values); ++i) {
      require(values[at(i)] == static_cast<float>(i / length), says(comm, "all_gather in place has a wrong element"));
    }
  }
}

// Rank r sends (r + 2 s) * scale numbers to rank s, r * 100 + s each; rank 0 sends nothing to itself.
void exchanges_varying_counts(Communicator& comm) {
  for (const int64_t scale : {0, 1, 7, 5000}) {
    std::vector<int64_t> send, send_counts_R, receive_counts_R, expected;
    for (int64_t peer = 0; peer < comm.size(); ++peer) {
      send_counts_R.push_back((comm.rank() + 2 * peer) * scale);
      receive_counts_R.push_back((peer + 2 * comm.rank()) * scale);
      send.insert(send.end(), at(send_counts_R.back()), comm.rank() * 100 + peer);
      expected.insert(expected.end(), at(receive_counts_R.back()), peer * 100 + comm.rank());
    }
    std::vector<int64_t> receive(expected.size(), -1);
    comm.all_to_all(send, send_counts_R, receive, receive_counts_R);
    require(receive == expected, says(comm, "all_to_all delivered wrong values"));
    std::ranges::fill(receive, -1);
    comm.start_all_to_all(send, send_counts_R, receive, receive_counts_R).wait();
    require(receive == expected, says(comm, "start_all_to_all delivered wrong values"));
  }
}

void broadcasts_from_each_root(Communicator& comm) {
  for (const int64_t length : kLengths) {
    for (int64_t root = 0; root < comm.size(); ++root) {
      std::vector<float> values(at(length), static_cast<float>(comm.rank()));
      comm.broadcast(values, root);
      require(values == std::vector<float>(at(length), static_cast<float>(root)), says(comm, "broadcast gave wrong values"));
    }
  }
}

void runs_many_small_calls(Communicator& comm) {
  for (int64_t round = 0; round < 300; ++round) {
    std::array<int64_t, 2> values = {round, comm.rank()};
    comm.all_reduce_sum(values);
    require(values[0] == round * comm.size(), says(comm, "calls were mixed up"));
    if (round % 50 == 0) comm.barrier();
  }
}

void splits_by_color_and_key(Communicator& comm) {
  // Parity as colour, falling rank as key: the highest rank of each parity is rank 0 of its part.
  const std::unique_ptr<Communicator> part = comm.split(comm.rank() % 2, -comm.rank());
  const int64_t parity = comm.rank() % 2;
  const int64_t members = (comm.size() + 1 - parity) / 2;
  require(part->size() == members, says(comm, "wrong size of a part"));
  require(part->rank() == members - 1 - comm.rank() / 2, says(comm, "wrong rank in a part"));

  std::vector<int64_t> mine = {comm.rank()}, all_R(at(members));
  part->all_gather(mine, all_R);
  for (int64_t i = 0; i < members; ++i) {
    require(all_R[at(i)] == 2 * (members - 1 - i) + parity, says(comm, "a part gathers in a wrong order"));
  }
  // Calls of both groups in flight together.
  std::vector<int64_t> in_part(5000, 1), in_world(5000, 1);
  Pending a = comm.start_all_reduce_sum(in_world);
  Pending b = part->start_all_reduce_sum(in_part);
  b.wait();
  a.wait();
  require(in_part == std::vector<int64_t>(5000, members), says(comm, "wrong sum in a part"));
  require(in_world == std::vector<int64_t>(5000, comm.size()), says(comm, "wrong sum in the whole"));

  const std::unique_ptr<Communicator> alone = part->split(part->rank(), 0);
  require(alone->size() == 1 && alone->rank() == 0, says(comm, "a part of one member is not alone"));
  alone->barrier();
  const std::unique_ptr<Communicator> same = comm.split(3, 0);
  require(same->size() == comm.size() && same->rank() == comm.rank(), says(comm, "equal keys must keep the order"));
  same->barrier();
}

void parts_inherit_labels(Communicator& comm) {
  const auto limit = comm.time_limit();
  comm.set_step(41);
  comm.set_time_limit(std::chrono::milliseconds(12345));
  const std::unique_ptr<Communicator> part = comm.split(0, 0);
  comm.set_time_limit(limit);
  comm.set_step(kNoStep);
  require(part->step() == 41 && part->time_limit() == std::chrono::milliseconds(12345),
          says(comm, "labels were not inherited"));
}

void refuses_bad_arguments(Communicator& comm) {
  const auto is_refused = [&](const std::function<void()>& call) {
    try {
      call();
    } catch (const UsageError&) {
      return;
    }
    throw ContractFailure(says(comm, "a UsageError was due"));
  };
  std::vector<int64_t> mine(2), short_of(at(2 * comm.size()) - 1);
  is_refused([&] { comm.all_gather(mine, short_of); });
  if (comm.size() > 1) is_refused([&] { comm.start_all_gather_in_place(short_of).wait(); });
  is_refused([&] { comm.broadcast(mine, comm.size()); });
  is_refused([&] { comm.broadcast(mine, -1); });
  is_refused([&] { comm.set_time_limit(std::chrono::milliseconds(0)); });
  is_refused([&] { comm.set_time_limit(std::chrono::hours(24 * 365) + std::chrono::milliseconds(1)); });
  is_refused([&] { comm.set_time_limit(std::chrono::milliseconds::max()); });
  const std::vector<int64_t> ones(at(comm.size()), 1), too_many(at(comm.size()) + 1, 0), negative(at(comm.size()), -1);
  std::vector<int64_t> from(at(comm.size())), to(at(comm.size()));
  is_refused([&] { comm.all_to_all(from, too_many, to, ones); });
  is_refused([&] { comm.all_to_all(from, ones, to, too_many); });
  is_refused([&] { comm.all_to_all(from, negative, to, ones); });
  is_refused([&] { comm.all_to_all(mine, std::vector<int64_t>(at(comm.size()), 3), to, ones); });
  comm.barrier();  // refusing is local, so the group is whole
}

void refuses_negative_colors(Communicator& comm) {
  bool is_refused = false;
  try {
    const auto part = comm.split(comm.rank() == comm.size() - 1 ? -1 : 0, 0);
  } catch (const UsageError& error) {
    is_refused = true;
    require_in(error.what(), "colour -1");
  }
  require(is_refused, says(comm, "a negative colour must be refused on every rank"));
  comm.barrier();
}

// On every rank, with the operation, both calls and the step; and the group is usable afterwards.
void names_mismatched_calls(Communicator& comm) {
  const bool is_last = comm.rank() == comm.size() - 1;
  std::vector<int64_t> swapped(at(comm.size()), 1), to(at(comm.size()));
  if (comm.size() == 1) {
    // The one mismatch that a single rank can make.
    const std::vector<int64_t> out = {8}, in = {4};
    std::vector<int64_t> eight(8), four(4);
    require_in(comm_error_of([&] { comm.all_to_all(eight, out, four, in); }),
               "rank 0 sends 64 bytes to rank 0, which expects 32");
    return;
  }
  comm.set_step(12);
  std::string text = comm_error_of([&] {
    if (is_last) return comm.barrier();
    std::vector<int64_t> values(5);
    comm.all_reduce_sum(values);
  });
  require_in(text, comm.describe());
  require_in(text, "rank 0 calls all_reduce_sum of 5 int64");
  require_in(text, "step 12");
  require_in(text, "calls barrier");

  std::vector<double> values(is_last ? 9000 : 8000);
  text = comm_error_of([&] { comm.all_reduce_sum(values); });
  require_in(text, "all_reduce_sum of 8000 double");
  require_in(text, "all_reduce_sum of 9000 double");

  text = comm_error_of([&] {
    std::vector<float> floats(6);
    std::vector<double> doubles(3);  // the same number of bytes
    return is_last ? comm.all_reduce_sum(floats) : comm.all_reduce_sum(doubles);
  });
  require_in(text, "6 float");

  text = comm_error_of([&] { comm.broadcast(values, is_last ? 1 : 0); });
  require_in(text, "broadcast of");

  // Rank 0 announces one more to rank 1 than rank 1 expects; the others' counts fit.
  std::vector<int64_t> counts_R(at(comm.size()), 1);
  std::vector<int64_t> send(at(comm.size()));
  if (comm.rank() == 0) {
    ++counts_R[1];
    send.push_back(0);
  }
  text = comm_error_of([&] { comm.all_to_all(send, counts_R, to, swapped); });
  require_in(text, "rank 0 sends 16 bytes to rank 1, which expects 8");

  comm.set_step(kNoStep);
  sums_by_hand(comm);
}

const auto kCases = std::to_array<ContractCase>({
    {"sums_counts", Needs::Basics, sums_counts},
    {"sums_by_hand", Needs::Basics, sums_by_hand},
    {"sums_doubles_in_rank_order", Needs::AgreementCheck, sums_in_rank_order<double>},
    {"sums_floats_in_rank_order", Needs::AgreementCheck, sums_in_rank_order<float>},
    {"sums_are_equal_everywhere", Needs::Basics, sums_are_equal_everywhere},
    {"keeps_several_in_flight", Needs::Basics, keeps_several_in_flight},
    {"completes_by_polling", Needs::Basics, completes_by_polling},
    {"gathers_in_rank_order", Needs::Basics, gathers_in_rank_order},
    {"gathers_in_place", Needs::Basics, gathers_in_place},
    {"exchanges_varying_counts", Needs::Basics, exchanges_varying_counts},
    {"broadcasts_from_each_root", Needs::Basics, broadcasts_from_each_root},
    {"runs_many_small_calls", Needs::Basics, runs_many_small_calls},
    {"refuses_bad_arguments", Needs::Basics, refuses_bad_arguments},
    {"splits_by_color_and_key", Needs::Parts, splits_by_color_and_key},
    {"parts_inherit_labels", Needs::Parts, parts_inherit_labels},
    {"refuses_negative_colors", Needs::Parts, refuses_negative_colors},
    {"names_mismatched_calls", Needs::AgreementCheck, names_mismatched_calls},
});

}  // namespace

void require(bool condition, std::string_view text) {
  if (!condition) throw ContractFailure(std::string(text));
}

std::span<const ContractCase> contract_cases() { return kCases; }

void check_time_limit(Communicator& world) {
  const std::unique_ptr<Communicator> part = world.split(0, 0);
  part->set_time_limit(std::chrono::milliseconds(80));
  part->set_step(7);
  if (world.rank() != 0) {
    std::vector<int64_t> values(3);
    const auto begin = std::chrono::steady_clock::now();
    const std::string text = comm_error_of([&] { part->all_reduce_sum(values); });
    const auto waited = std::chrono::steady_clock::now() - begin;
    require_in(text, part->describe());
    require_in(text, "all_reduce_sum of 3 int64");
    require_in(text, "step 7");
    // Whoever gives up first is named to those still waiting, with who was missing.
    require_in(text, "not arrived: rank");
    require_in(text, "80 ms");
    require(waited < std::chrono::seconds(10), says(world, "the time limit was not kept"));
    require_in(comm_error_of([&] { part->barrier(); }), "80 ms");
  }
  world.barrier();
}

}  // namespace switchyard::test
