#include "switchyard/comm/mpi.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stop_token>
#include <thread>

#include "switchyard/comm/mpi_work.hpp"
#include "switchyard/comm/wait_time.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using Clock = WaitTime::Clock;
using mpi::Machine;

// How long a wait polls without sleeping, and how long it sleeps between polls afterwards.
constexpr auto kEagerPolling = std::chrono::milliseconds(2);
constexpr auto kNap = std::chrono::microseconds(50);

// One MPI communicator and what is in flight on it.
struct Channel {
  MPI_Comm comm = MPI_COMM_NULL;
  std::deque<std::shared_ptr<Machine>> in_flight;  // in the order started
  std::vector<std::shared_ptr<Machine>> given_up;  // their buffers stay, as MPI may still hold them
  std::string failure;
};

}  // namespace

// Every MPI call of the process happens under the mutex, so MPI_THREAD_SERIALIZED is enough for the progress thread.
struct MpiSession::Impl {
  std::mutex mutex;
  std::condition_variable_any work_started;
  std::vector<std::weak_ptr<Channel>> channels;
  int64_t background_calls = 0;  // in flight
  bool is_over = false;
  bool has_failed = false;
  std::jthread progress;

  // With the mutex held. A failure of MPI itself ends the channel.
  void advance(Channel& channel) {
    if (!channel.failure.empty()) return;
    try {
      for (const std::shared_ptr<Machine>& machine : channel.in_flight) machine->advance();
    } catch (const CommError& error) {
      channel.failure = error.what();
      has_failed = true;
    }
    while (!channel.in_flight.empty() && channel.in_flight.front()->done()) {
      if (channel.in_flight.front()->mode() == CallMode::Background) --background_calls;
      channel.in_flight.pop_front();
    }
  }

  void run_progress(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    while (work_started.wait(lock, stop, [&] { return background_calls > 0; })) {
      for (const std::weak_ptr<Channel>& each : channels) {
        if (const std::shared_ptr<Channel> channel = each.lock()) advance(*channel);
      }
      lock.unlock();
      std::this_thread::sleep_for(kNap);
      lock.lock();
    }
  }
};

namespace {

class MpiWork final : public Work {
 public:
  MpiWork(std::shared_ptr<MpiSession::Impl> session, std::shared_ptr<Channel> channel, std::shared_ptr<Machine> machine,
          std::string who, std::chrono::milliseconds limit)
      : session_(std::move(session)),
        channel_(std::move(channel)),
        machine_(std::move(machine)),
        who_(std::move(who)),
        limit_(limit) {}

  ~MpiWork() override {
    const std::lock_guard lock(session_->mutex);
    if (finished_ || session_->is_over) return;
    session_->advance(*channel_);
    if (!is_complete()) give_up(join_text("this rank dropped its ", to_string(machine_->header()), " without waiting for it"));
  }

  bool ready() override {
    const std::lock_guard lock(session_->mutex);
    session_->advance(*channel_);
    return is_complete() || !channel_->failure.empty();
  }

  void wait() override {
    const auto begin = Clock::now();
    WaitTime waited(limit_, begin);
    while (!step(waited)) {
      // A short wait is answered fast; a long one leaves the core to whoever computes.
      if (Clock::now() - begin < kEagerPolling) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kNap);
      }
    }
    finished_ = true;
    if (!machine_->mismatch().empty()) throw CommError(where() + machine_->mismatch());
  }

 private:
  [[nodiscard]] std::string where() const { return join_text(who_, ", ", to_string(machine_->header()), ": "); }

  // Completed in the order started: an earlier call that is still under way holds later ones back.
  [[nodiscard]] bool is_complete() const {
    return machine_->done() && std::ranges::find(channel_->in_flight, machine_) == channel_->in_flight.end();
  }

  // True when complete.
  bool step(WaitTime& waited) {
    const std::lock_guard lock(session_->mutex);
    SWITCHYARD_CHECK(!session_->is_over, CommError, where(), "the MPI session has ended");
    session_->advance(*channel_);
    if (is_complete()) return true;
    if (!channel_->failure.empty()) {
      const std::string reason = channel_->failure;
      give_up(reason);
      throw CommError(where() + reason);
    }
    if (!waited.is_over(Clock::now())) return false;
    // Of calls that are done but held back the first under way is late.
    const Machine& slow = machine_->done() ? *channel_->in_flight.front() : *machine_;
    const std::string late = join_text("the time limit of ", limit_.count(), " ms passed; ",
                                       &slow == machine_.get() ? "" : "it waits for its earlier " + to_string(slow.header()) + ": ",
                                       slow.what_is_missing());
    give_up(join_text("an earlier ", to_string(machine_->header()), " failed: ", late));
    throw CommError(where() + late);
  }

  void give_up(const std::string& reason) {
    finished_ = true;
    session_->has_failed = true;
    if (channel_->failure.empty()) channel_->failure = reason;
    machine_->cancel();
    if (std::erase(channel_->in_flight, machine_) > 0) {
      if (machine_->mode() == CallMode::Background) --session_->background_calls;
      channel_->given_up.push_back(machine_);
    }
  }

  std::shared_ptr<MpiSession::Impl> session_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<Machine> machine_;
  std::string who_;
  std::chrono::milliseconds limit_;
  bool finished_ = false;
};

class MpiCommunicator final : public Communicator {
 public:
  // With the session's mutex held; takes over `comm`.
  MpiCommunicator(std::shared_ptr<MpiSession::Impl> session, MPI_Comm comm) : session_(std::move(session)) {
    channel_ = std::make_shared<Channel>();
    channel_->comm = comm;
    session_->channels.push_back(channel_);
    mpi::check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    mpi::check(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    mpi::check(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
    mpi::check(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank_), "MPI_Comm_rank");
    mpi::check(MPI_Comm_size(MPI_COMM_WORLD, &world_size_), "MPI_Comm_size");
  }

  ~MpiCommunicator() override {
    const std::lock_guard lock(session_->mutex);
    std::erase_if(session_->channels, [&](const auto& each) { return each.expired() || each.lock() == channel_; });
    // Freeing is a collective: not to be tried where ranks may have gone, or MPI has ended.
    if (!session_->is_over && !session_->has_failed && std::uncaught_exceptions() == 0) MPI_Comm_free(&channel_->comm);
  }

  [[nodiscard]] int64_t rank() const override { return rank_; }
  [[nodiscard]] int64_t size() const override { return size_; }
  [[nodiscard]] std::string describe() const override {
    std::string text = Communicator::describe();
    if (world_size_ == size_) return text;
    return join_text(text, " (world rank ", world_rank_, " of ", world_size_, ")");
  }

 private:
  [[nodiscard]] std::unique_ptr<Work> start(Call call) override {
    const std::lock_guard lock(session_->mutex);
    SWITCHYARD_CHECK(!session_->is_over, CommError, describe(), ", ", to_string(call.header), ": the MPI session has ended");
    SWITCHYARD_CHECK(channel_->failure.empty(), CommError, describe(), ", ", to_string(call.header), ": ", channel_->failure);
    auto machine = std::make_shared<Machine>(channel_->comm, rank_, size_, std::move(call));
    channel_->in_flight.push_back(machine);
    if (machine->mode() == CallMode::Background) {
      ++session_->background_calls;
      session_->work_started.notify_one();
    }
    session_->advance(*channel_);
    return std::make_unique<MpiWork>(session_, channel_, std::move(machine), describe(), time_limit());
  }

  // All ranks have just met in split(), so this does not wait for anybody who may not come.
  [[nodiscard]] std::unique_ptr<Communicator> make_part(const std::vector<int64_t>& members, int64_t) override {
    const std::lock_guard lock(session_->mutex);
    const auto color = static_cast<int>(std::ranges::min(members));
    const auto key = static_cast<int>(std::ranges::find(members, rank_) - members.begin());
    MPI_Comm part = MPI_COMM_NULL;
    mpi::check(MPI_Comm_split(channel_->comm, color, key, &part), "MPI_Comm_split");
    return std::make_unique<MpiCommunicator>(session_, part);
  }

  std::shared_ptr<MpiSession::Impl> session_;
  std::shared_ptr<Channel> channel_;
  int rank_ = 0;
  int size_ = 0;
  int world_rank_ = 0;
  int world_size_ = 0;
};

}  // namespace

bool has_mpi() { return true; }

MpiSession::MpiSession(MpiProgress progress) : impl_(std::make_shared<Impl>()) {
  int started = 0;
  mpi::check(MPI_Initialized(&started), "MPI_Initialized");
  SWITCHYARD_CHECK(started == 0, CommError, "MPI was started before; a process has one MPI session");
  const int wanted = progress == MpiProgress::Thread ? MPI_THREAD_SERIALIZED : MPI_THREAD_FUNNELED;
  int provided = 0;
  mpi::check(MPI_Init_thread(nullptr, nullptr, wanted, &provided), "MPI_Init_thread");
  mpi::check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  SWITCHYARD_CHECK(provided >= wanted, CommError, "this MPI gives thread level ", provided, ", a progress thread needs ",
                   wanted, "; use MpiProgress::InCalls");
  if (progress == MpiProgress::Thread) {
    impl_->progress = std::jthread([impl = impl_.get()](const std::stop_token& stop) { impl->run_progress(stop); });
  }
}

MpiSession::~MpiSession() {
  if (impl_->progress.joinable()) {
    impl_->progress.request_stop();
    impl_->progress.join();
  }
  const std::lock_guard lock(impl_->mutex);
  impl_->is_over = true;
  if (!impl_->has_failed && std::uncaught_exceptions() == 0) MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world() {
  const std::lock_guard lock(impl_->mutex);
  MPI_Comm comm = MPI_COMM_NULL;
  mpi::check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(impl_, comm);
}

void MpiSession::end_all_ranks(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::terminate();
}

}  // namespace switchyard
