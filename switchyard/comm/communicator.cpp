#include "switchyard/comm/communicator.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

void check_counts(const std::string& who, const char* name, std::span<const int64_t> counts_R, int64_t size, int64_t total) {
  SWITCHYARD_CHECK(std::ssize(counts_R) == size, UsageError, who, ": all_to_all: ", name, " has ", counts_R.size(),
                   " counts for a group of ", size, " ranks");
  SWITCHYARD_CHECK(std::ranges::all_of(counts_R, [](int64_t count) { return count >= 0; }), UsageError, who,
                   ": all_to_all: ", name, " has a negative count");
  const int64_t sum = std::accumulate(counts_R.begin(), counts_R.end(), int64_t{0});
  SWITCHYARD_CHECK(sum == total, UsageError, who, ": all_to_all: ", name, " adds up to ", sum, " elements, the memory holds ",
                   total);
}

std::vector<int64_t> scaled(std::span<const int64_t> counts_R, int64_t width) {
  std::vector<int64_t> bytes_R(counts_R.begin(), counts_R.end());
  for (int64_t& bytes : bytes_R) bytes *= width;
  return bytes_R;
}

}  // namespace

std::string Communicator::describe() const { return join_text("rank ", rank(), " of ", size()); }

void Communicator::set_time_limit(std::chrono::milliseconds limit) {
  SWITCHYARD_CHECK(limit.count() > 0 && limit <= kLongestTimeLimit, UsageError, describe(), ": a time limit of ", limit.count(),
                   " ms was given; it must be positive, and at most ",
                   std::chrono::milliseconds(kLongestTimeLimit).count(), " ms (a year)");
  time_limit_ = limit;
}

Call Communicator::new_call(Operation operation, ElementType type, size_t bytes, CallMode mode) {
  Call call;
  call.header.operation = operation;
  call.header.type = type;
  call.header.bytes = static_cast<int64_t>(bytes);
  call.header.step = step_;
  call.header.sequence = next_call_++;
  call.mode = mode;
  return call;
}

void Communicator::run_sum(ElementType type, std::span<std::byte> values) {
  Call call = new_call(Operation::AllReduceSum, type, values.size(), CallMode::Blocking);
  call.receive = values;
  start(std::move(call))->wait();
}

Pending Communicator::start_sum(ElementType type, std::span<std::byte> values) {
  Call call = new_call(Operation::AllReduceSum, type, values.size(), CallMode::Background);
  call.receive = values;
  return Pending(start(std::move(call)));
}

void Communicator::run_gather(std::span<const std::byte> mine, std::span<std::byte> all_R) {
  const size_t expected = mine.size() * static_cast<size_t>(size());
  SWITCHYARD_CHECK(all_R.size() == expected, UsageError, describe(), ": all_gather of ", mine.size(),
                   " bytes a rank needs room for ", expected, " bytes, ", all_R.size(), " were given");
  Call call = new_call(Operation::AllGather, ElementType::Bytes, mine.size(), CallMode::Blocking);
  call.send = mine;
  call.receive = all_R;
  start(std::move(call))->wait();
}

Pending Communicator::start_gather_in_place(std::span<std::byte> all_R, int64_t width, CallMode mode) {
  const int64_t length = std::ssize(all_R) / width;
  SWITCHYARD_CHECK(length % size() == 0, UsageError, describe(), ": all_gather in place of ", length,
                   " elements, which ", size(), " ranks cannot divide evenly");
  const size_t part = all_R.size() / static_cast<size_t>(size());
  Call call = new_call(Operation::AllGather, ElementType::Bytes, part, mode);
  call.send = all_R.subspan(part * static_cast<size_t>(rank()), part);
  call.receive = all_R;
  return Pending(start(std::move(call)));
}

void Communicator::run_broadcast(std::span<std::byte> values, int64_t root) {
  SWITCHYARD_CHECK(root >= 0 && root < size(), UsageError, describe(), ": broadcast from rank ", root,
                   ", which is not in a group of ", size());
  Call call = new_call(Operation::Broadcast, ElementType::Bytes, values.size(), CallMode::Blocking);
  call.header.root = root;
  call.send = values;
  call.receive = values;
  start(std::move(call))->wait();
}

Pending Communicator::start_exchange(std::span<const std::byte> send, std::span<const int64_t> send_counts_R,
                                     std::span<std::byte> receive, std::span<const int64_t> receive_counts_R, int64_t width,
                                     CallMode mode) {
  check_counts(describe(), "send_counts_R", send_counts_R, size(), std::ssize(send) / width);
  check_counts(describe(), "receive_counts_R", receive_counts_R, size(), std::ssize(receive) / width);
  Call call = new_call(Operation::AllToAll, ElementType::Bytes, 0, mode);
  call.header.send_bytes_R = scaled(send_counts_R, width);
  call.header.receive_bytes_R = scaled(receive_counts_R, width);
  call.send = send;
  call.receive = receive;
  return Pending(start(std::move(call)));
}

void Communicator::barrier() { start(new_call(Operation::Barrier, ElementType::Bytes, 0, CallMode::Blocking))->wait(); }

std::unique_ptr<Communicator> Communicator::split(int64_t color, int64_t key) {
  const std::array<int64_t, 2> mine = {color, key};
  std::vector<std::array<int64_t, 2>> all_R(static_cast<size_t>(size()));
  all_gather(std::span(&mine, 1), all_R);
  // After the exchange, so that every rank gets the error.
  for (size_t other = 0; other < all_R.size(); ++other) {
    SWITCHYARD_CHECK(all_R[other][0] >= 0, UsageError, describe(), ": split: rank ", other, " gave colour ", all_R[other][0],
                     "; colours are >= 0");
  }
  std::vector<int64_t> members;
  for (int64_t other = 0; other < size(); ++other) {
    if (all_R[static_cast<size_t>(other)][0] == color) members.push_back(other);
  }
  std::ranges::stable_sort(members, {}, [&](int64_t member) { return all_R[static_cast<size_t>(member)][1]; });
  // Parts of one split share no rank, so (number of the split, lowest member) names each.
  const int64_t id = parts_made_++ * size() + std::ranges::min(members);
  std::unique_ptr<Communicator> part = make_part(members, id);
  part->set_step(step_);
  part->set_time_limit(time_limit_);
  return part;
}

}  // namespace switchyard
