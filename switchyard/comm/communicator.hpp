#pragma once
// Who adds numbers up with whom. Sums are taken in rank order, whatever arrives first: the same bits on every rank and in every
// run (an adapter around another library's group says where it cannot promise that).
//
// Every operation is collective: all ranks of the group must call it, in the same order, one thread per communicator. Errors
// are CommError and name rank, operation, call number and step: a time limit that passed and who was missing, a rank that
// failed, calls that do not belong together (another operation, type, length or root). After a mismatch, which every rank
// sees, the group can be used on; after any other CommError it cannot, and the program should end.

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <ranges>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "switchyard/comm/call.hpp"

namespace switchyard {

/// A wait for longer is a slip, and its end may not fit into a clock.
inline constexpr std::chrono::hours kLongestTimeLimit{24 * 365};

/// An operation that was started. Several may be in flight; they complete in the order in which they were started. The memory
/// given to it may be neither read nor written before wait() returns.
class [[nodiscard]] Pending {
 public:
  Pending() = default;  // nothing in flight: ready, and wait() returns at once
  explicit Pending(std::unique_ptr<Work> work) : work_(std::move(work)) {}

  /// Pushes it on without blocking. True once wait() would not block.
  [[nodiscard]] bool ready() { return work_ == nullptr || work_->ready(); }

  /// Blocks until the result is there, at most for the time limit of the communicator. A second call does nothing.
  /// Destroying a Pending that was not waited for gives the operation up, and the group with it: the others get a CommError.
  void wait() {
    if (const std::unique_ptr<Work> work = std::move(work_)) work->wait();
  }

 private:
  std::unique_ptr<Work> work_;
};

/// Contiguous memory whose elements can be sent as bytes: std::vector<double>, std::span<const Record>.
template <typename Range>
concept Sendable = std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range> &&
    std::is_trivially_copyable_v<std::ranges::range_value_t<Range>>;

template <typename Range, typename Value>
concept ReceivableOf = Sendable<Range> && std::same_as<std::ranges::range_value_t<Range>, Value> &&
    !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Range>>>;

/// A group of ranks.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] virtual int64_t rank() const = 0;  // [0, size)
  [[nodiscard]] virtual int64_t size() const = 0;  // >= 1
  /// "rank 2 of 4"; in a group made by split() "rank 0 of 2 (world rank 2 of 4)".
  [[nodiscard]] virtual std::string describe() const;

  /// A label for error messages. Local; a group made by split() inherits the label of that moment.
  void set_step(int64_t step) { step_ = step; }
  [[nodiscard]] int64_t step() const { return step_; }

  /// How long a wait blocks before it gives up, counted from the call of wait() or of the blocking operation; time in which the
  /// whole process stood still (for more than a second at once) is not counted. Local.
  /// @throws UsageError unless positive and at most kLongestTimeLimit
  void set_time_limit(std::chrono::milliseconds limit);
  [[nodiscard]] std::chrono::milliseconds time_limit() const { return time_limit_; }

  /// In place: every rank has the sum over ranks. int64 must not overflow.
  void all_reduce_sum(std::span<int64_t> values) { run_sum(ElementType::Int64, std::as_writable_bytes(values)); }
  void all_reduce_sum(std::span<double> values) { run_sum(ElementType::Double, std::as_writable_bytes(values)); }
  void all_reduce_sum(std::span<float> values) { run_sum(ElementType::Float, std::as_writable_bytes(values)); }

  /// The same, in the background as far as the implementation can (docs/comm.md says which can).
  Pending start_all_reduce_sum(std::span<int64_t> values) {
    return start_sum(ElementType::Int64, std::as_writable_bytes(values));
  }
  Pending start_all_reduce_sum(std::span<double> values) {
    return start_sum(ElementType::Double, std::as_writable_bytes(values));
  }
  Pending start_all_reduce_sum(std::span<float> values) {
    return start_sum(ElementType::Float, std::as_writable_bytes(values));
  }

  /// all_R = the ranks' `mine` one after the other.
  /// @throws UsageError unless all_R holds size() times as many elements; they must not overlap
  template <Sendable Mine, ReceivableOf<std::ranges::range_value_t<Mine>> All>
  void all_gather(const Mine& mine, All&& all_R) {
    run_gather(bytes_in(mine), writable_bytes_in(all_R));
  }

  /// The same in place: all_R holds size() equal parts, of which this rank's is filled in.
  /// @throws UsageError unless the ranks divide the elements
  template <Sendable All>
  requires ReceivableOf<All, std::ranges::range_value_t<All>>
  Pending start_all_gather_in_place(All&& all_R, CallMode mode = CallMode::Background) {
    return start_gather_in_place(writable_bytes_in(all_R), static_cast<int64_t>(sizeof(std::ranges::range_value_t<All>)), mode);
  }

  /// `send` holds what goes to rank 0, then to rank 1, ...; `receive` what came from rank 0, then from rank 1, ...
  /// @param send_counts_R, receive_counts_R  elements to and from each rank; what r sends to s is what s receives from r
  /// @throws UsageError unless the counts add up to the lengths; send and receive must not overlap
  template <Sendable Send, ReceivableOf<std::ranges::range_value_t<Send>> Receive>
  void all_to_all(const Send& send, std::span<const int64_t> send_counts_R, Receive&& receive,
                  std::span<const int64_t> receive_counts_R) {
    start_all_to_all(send, send_counts_R, receive, receive_counts_R, CallMode::Blocking).wait();
  }
  template <Sendable Send, ReceivableOf<std::ranges::range_value_t<Send>> Receive>
  Pending start_all_to_all(const Send& send, std::span<const int64_t> send_counts_R, Receive&& receive,
                           std::span<const int64_t> receive_counts_R, CallMode mode = CallMode::Background) {
    const auto width = static_cast<int64_t>(sizeof(std::ranges::range_value_t<Send>));
    return start_exchange(bytes_in(send), send_counts_R, writable_bytes_in(receive), receive_counts_R, width, mode);
  }

  /// Every rank has the root's values. @throws UsageError unless root is in [0, size)
  template <Sendable Values>
  requires ReceivableOf<Values, std::ranges::range_value_t<Values>>
  void broadcast(Values&& values, int64_t root) { run_broadcast(writable_bytes_in(values), root); }

  /// Returns once every rank has called it.
  void barrier();

  /// A group of the ranks that give the same colour, in the order of (key, rank). Its calls are independent of this group's.
  /// It must not be used after this communicator's world has ended.
  /// @param color  >= 0
  [[nodiscard]] std::unique_ptr<Communicator> split(int64_t color, int64_t key);

 protected:
  Communicator() = default;

  /// Starts one collective; its header is complete. Order of calls = order of header.sequence.
  [[nodiscard]] virtual std::unique_ptr<Work> start(Call call) = 0;

  /// The group of `members` (ranks of this group, in their new order), of which this rank is one.
  /// @param id  the same on its members, and different from that of any other part ever made of this group
  [[nodiscard]] virtual std::unique_ptr<Communicator> make_part(const std::vector<int64_t>& members, int64_t id) = 0;

 private:
  template <typename Range>
  static std::span<const std::byte> bytes_in(const Range& range) {
    return std::as_bytes(std::span(std::ranges::data(range), std::ranges::size(range)));
  }
  template <typename Range>
  static std::span<std::byte> writable_bytes_in(Range& range) {
    return std::as_writable_bytes(std::span(std::ranges::data(range), std::ranges::size(range)));
  }

  [[nodiscard]] Call new_call(Operation operation, ElementType type, size_t bytes, CallMode mode);
  void run_sum(ElementType type, std::span<std::byte> values);
  Pending start_sum(ElementType type, std::span<std::byte> values);
  void run_gather(std::span<const std::byte> mine, std::span<std::byte> all_R);
  Pending start_gather_in_place(std::span<std::byte> all_R, int64_t width, CallMode mode);
  void run_broadcast(std::span<std::byte> values, int64_t root);
  Pending start_exchange(std::span<const std::byte> send, std::span<const int64_t> send_counts_R, std::span<std::byte> receive,
                         std::span<const int64_t> receive_counts_R, int64_t width, CallMode mode);

  int64_t step_ = kNoStep;
  int64_t next_call_ = 0;
  int64_t parts_made_ = 0;
  std::chrono::milliseconds time_limit_ = std::chrono::seconds(60);
};

/// One member: every collective is the identity, so single-process code needs no branches.
[[nodiscard]] std::unique_ptr<Communicator> make_solo_communicator();

}  // namespace switchyard
