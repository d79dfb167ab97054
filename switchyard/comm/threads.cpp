#include "switchyard/comm/threads.hpp"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>

#include "switchyard/comm/ordered_sum.hpp"
#include "switchyard/comm/wait_time.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// One collective of one group, from the first arrival until the last rank has its result. Its memory is touched only once all
// have arrived, and then by whoever waits: the work is cut into items that waiters claim. So no rank depends on another one
// being inside wait(), and an asynchronous call completes however late the others wait.
struct Meeting {
  explicit Meeting(size_t size) : calls_R(size), arrived_R(size, 0) {}
  std::vector<Call> calls_R;
  std::vector<char> arrived_R;
  size_t num_arrived = 0;
  std::string mismatch;  // all have arrived, but their calls do not belong together
  int64_t num_items = 0;
  int64_t next_item = 0;
  int64_t done_items = 0;

  [[nodiscard]] bool all_arrived() const { return num_arrived == calls_R.size(); }
};

struct Group;

// An error that another rank caused: never the one to report when that rank's own error is known.
class PeerError final : public CommError {
 public:
  using CommError::CommError;
};

// Everything here and in groups and meetings is guarded by the mutex, but for the callers' memory.
struct World {
  explicit World(size_t size) : returned_R(size, 0) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<char> returned_R;
  std::string failure;                                                        // "rank 2 failed: ..."
  std::exception_ptr first_error;                                             // what run_ranks rethrows
  std::exception_ptr first_peer_error;                                        // the same, if no rank has an error of its own
  std::map<std::tuple<const Group*, int64_t>, std::shared_ptr<Group>> parts;  // until all members have fetched theirs
};

struct Group {
  std::shared_ptr<World> world;
  std::vector<int64_t> world_ranks;
  std::map<int64_t, std::shared_ptr<Meeting>> meetings;  // by call number; those that some rank has yet to join
  std::string given_up;                                  // why nothing more can take place in this group
  size_t num_fetched = 0;
};

constexpr std::chrono::milliseconds kLookAgain{100};
constexpr size_t kSumItemBytes = size_t{256} * 1024;

int64_t count_items(const Meeting& meeting) {
  const CallHeader& header = meeting.calls_R.front().header;
  if (header.operation == Operation::Barrier) return 0;
  if (header.operation != Operation::AllReduceSum) return std::ssize(meeting.calls_R);
  return (header.bytes + static_cast<int64_t>(kSumItemBytes) - 1) / static_cast<int64_t>(kSumItemBytes);
}

void sum_item(const Meeting& meeting, size_t item) {
  const CallHeader& header = meeting.calls_R.front().header;
  const size_t begin = item * kSumItemBytes;
  const size_t count = std::min(kSumItemBytes, static_cast<size_t>(header.bytes) - begin);
  std::vector<const std::byte*> inputs_R;
  for (const Call& call : meeting.calls_R) inputs_R.push_back(call.receive.data() + begin);
  const std::span<std::byte> first = meeting.calls_R.front().receive.subspan(begin, count);
  ordered_sum(header.type, inputs_R, first);
  for (const Call& call : std::span(meeting.calls_R).subspan(1)) std::ranges::copy(first, call.receive.data() + begin);
}

// All that one rank receives.
void copy_item(const Meeting& meeting, int64_t receiver) {
  const Call& call = meeting.calls_R[static_cast<size_t>(receiver)];
  for (int64_t sender = 0; sender < std::ssize(meeting.calls_R); ++sender) {
    const std::span<const std::byte> sent = send_slice(meeting.calls_R[static_cast<size_t>(sender)], sender, receiver);
    copy_slice(sent, receive_slice(call, receiver, sender));
  }
}

void do_item(const Meeting& meeting, int64_t item) {
  if (meeting.calls_R.front().header.operation == Operation::AllReduceSum) {
    sum_item(meeting, static_cast<size_t>(item));
  } else {
    copy_item(meeting, item);
  }
}

class ThreadWork final : public Work {
 public:
  ThreadWork(std::shared_ptr<Group> group, std::shared_ptr<Meeting> meeting, CallHeader header, std::string who,
             std::chrono::milliseconds limit)
      : group_(std::move(group)),
        meeting_(std::move(meeting)),
        header_(std::move(header)),
        who_(std::move(who)),
        limit_(limit) {}

  ~ThreadWork() override {
    if (finished_) return;
    std::unique_lock lock(group_->world->mutex);
    // Once all have arrived the others may be at work on this rank's memory.
    if (meeting_->all_arrived()) {
      if (meeting_->mismatch.empty()) complete(lock);
    } else {
      give_up(join_text(who_, " dropped its ", to_string(header_), " without waiting for it"));
    }
  }

  bool ready() override {
    const std::lock_guard lock(group_->world->mutex);
    return meeting_->all_arrived() || !obstacle().empty();
  }

  void wait() override {
    std::unique_lock lock(group_->world->mutex);
    WaitTime waited(limit_, WaitTime::Clock::now());
    while (!meeting_->all_arrived()) {
      const std::string reason = obstacle();
      if (!reason.empty()) {
        give_up(reason);
        throw PeerError(where() + reason);
      }
      // In short waits: in a long one a pause of the process would look like lateness.
      group_->world->changed.wait_for(lock, std::min<std::chrono::milliseconds>(limit_, kLookAgain));
      if (meeting_->all_arrived() || !obstacle().empty() || !waited.is_over(WaitTime::Clock::now())) continue;
      const std::string late = join_text("the time limit of ", limit_.count(), " ms passed; not arrived: ", rank_list(missing()));
      give_up(join_text(who_, " gave up its ", to_string(header_), ": ", late));
      throw CommError(where() + late);
    }
    finished_ = true;
    if (!meeting_->mismatch.empty()) throw CommError(where() + meeting_->mismatch);
    complete(lock);
  }

 private:
  [[nodiscard]] std::string where() const { return who_ + ", " + to_string(header_) + ": "; }

  [[nodiscard]] std::vector<int64_t> missing() const {
    std::vector<int64_t> ranks;
    for (int64_t rank = 0; rank < std::ssize(meeting_->arrived_R); ++rank) {
      if (meeting_->arrived_R[static_cast<size_t>(rank)] == 0) ranks.push_back(rank);
    }
    return ranks;
  }

  // Why not all will arrive; empty while they may.
  [[nodiscard]] std::string obstacle() const {
    if (!group_->world->failure.empty()) return group_->world->failure;
    if (!group_->given_up.empty()) return group_->given_up;
    for (const int64_t rank : missing()) {
      const auto world_rank = static_cast<size_t>(group_->world_ranks[static_cast<size_t>(rank)]);
      if (group_->world->returned_R[world_rank] != 0) return join_text("rank ", rank, " has returned without joining in");
    }
    return {};
  }

  void give_up(const std::string& reason) {
    finished_ = true;
    if (group_->given_up.empty()) group_->given_up = reason;
    // An exception on its way out of the body will wake the others with the true reason.
    if (std::uncaught_exceptions() == 0) group_->world->changed.notify_all();
  }

  void complete(std::unique_lock<std::mutex>& lock) {
    finished_ = true;
    while (meeting_->next_item < meeting_->num_items) {
      const int64_t item = meeting_->next_item++;
      lock.unlock();
      do_item(*meeting_, item);
      lock.lock();
      if (++meeting_->done_items == meeting_->num_items) group_->world->changed.notify_all();
    }
    // Each claimed item is being copied by a running thread: no limit needed.
    group_->world->changed.wait(lock, [&] { return meeting_->done_items == meeting_->num_items; });
  }

  std::shared_ptr<Group> group_;
  std::shared_ptr<Meeting> meeting_;
  CallHeader header_;
  std::string who_;
  std::chrono::milliseconds limit_;
  bool finished_ = false;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int64_t rank) : group_(std::move(group)), rank_(rank) {}
  [[nodiscard]] int64_t rank() const override { return rank_; }
  [[nodiscard]] int64_t size() const override { return std::ssize(group_->world_ranks); }
  [[nodiscard]] std::string describe() const override {
    std::string text = Communicator::describe();
    const auto world_size = std::ssize(group_->world->returned_R);
    if (world_size == size()) return text;
    return join_text(text, " (world rank ", group_->world_ranks[static_cast<size_t>(rank_)], " of ", world_size, ")");
  }

 private:
  [[nodiscard]] std::unique_ptr<Work> start(Call call) override {
    const std::lock_guard lock(group_->world->mutex);
    CallHeader header = call.header;
    std::shared_ptr<Meeting>& place = group_->meetings[header.sequence];
    if (place == nullptr) place = std::make_shared<Meeting>(group_->world_ranks.size());
    std::shared_ptr<Meeting> meeting = place;
    const std::string& reason = group_->world->failure.empty() ? group_->given_up : group_->world->failure;
    SWITCHYARD_CHECK(reason.empty(), PeerError, describe(), ", ", to_string(header), ": ", reason);

    meeting->calls_R[static_cast<size_t>(rank_)] = std::move(call);
    meeting->arrived_R[static_cast<size_t>(rank_)] = 1;
    ++meeting->num_arrived;
    if (meeting->all_arrived()) {
      std::vector<CallHeader> headers_R;
      for (const Call& each : meeting->calls_R) headers_R.push_back(each.header);
      meeting->mismatch = find_mismatch(headers_R);
      if (meeting->mismatch.empty()) meeting->num_items = count_items(*meeting);
      group_->meetings.erase(header.sequence);
      group_->world->changed.notify_all();
    }
    return std::make_unique<ThreadWork>(group_, std::move(meeting), std::move(header), describe(), time_limit());
  }

  [[nodiscard]] std::unique_ptr<Communicator> make_part(const std::vector<int64_t>& members, int64_t id) override {
    const std::lock_guard lock(group_->world->mutex);
    const std::tuple<const Group*, int64_t> key(group_.get(), id);
    std::shared_ptr<Group>& place = group_->world->parts[key];
    if (place == nullptr) {
      place = std::make_shared<Group>();
      place->world = group_->world;
      for (const int64_t member : members) place->world_ranks.push_back(group_->world_ranks[static_cast<size_t>(member)]);
    }
    const std::shared_ptr<Group> part = place;
    if (++part->num_fetched == members.size()) group_->world->parts.erase(key);
    return std::make_unique<ThreadCommunicator>(part, std::ranges::find(members, rank_) - members.begin());
  }

  std::shared_ptr<Group> group_;
  int64_t rank_;
};

// What goes wrong in the body of one rank, and whether another rank caused it.
struct Outcome {
  std::exception_ptr error;
  std::string text;
  enum class Cause { Own, Peer } cause = Cause::Own;
};

Outcome call_body(const std::shared_ptr<Group>& group, int64_t rank, const std::function<void(Communicator&)>& body) {
  try {
    ThreadCommunicator communicator(group, rank);
    body(communicator);
    return {};
  } catch (const PeerError& error) {
    return {std::current_exception(), error.what(), Outcome::Cause::Peer};
  } catch (const std::exception& error) {
    return {std::current_exception(), error.what()};
  } catch (...) {
    return {std::current_exception(), "an exception that is no std::exception"};
  }
}

void run_rank(const std::shared_ptr<Group>& group, int64_t rank, const std::function<void(Communicator&)>& body) {
  const Outcome outcome = call_body(group, rank, body);
  World& world = *group->world;
  const std::lock_guard lock(world.mutex);
  std::exception_ptr& first = outcome.cause == Outcome::Cause::Own ? world.first_error : world.first_peer_error;
  if (first == nullptr) first = outcome.error;
  if (outcome.error != nullptr && world.failure.empty()) world.failure = join_text("rank ", rank, " failed: ", outcome.text);
  world.returned_R[static_cast<size_t>(rank)] = 1;
  world.changed.notify_all();
}

}  // namespace

void run_ranks(int64_t num_ranks, const std::function<void(Communicator&)>& body) {
  SWITCHYARD_CHECK(num_ranks >= 1, UsageError, num_ranks, " ranks were asked for; at least one is needed");
  const auto group = std::make_shared<Group>();
  group->world = std::make_shared<World>(static_cast<size_t>(num_ranks));
  for (int64_t rank = 0; rank < num_ranks; ++rank) group->world_ranks.push_back(rank);
  {
    std::vector<std::jthread> threads;
    for (int64_t rank = 0; rank < num_ranks; ++rank) threads.emplace_back(run_rank, group, rank, std::cref(body));
  }
  const World& world = *group->world;
  if (world.first_error != nullptr) std::rethrow_exception(world.first_error);
  if (world.first_peer_error != nullptr) std::rethrow_exception(world.first_peer_error);
}

}  // namespace switchyard
