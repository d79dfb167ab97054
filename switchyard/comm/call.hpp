#pragma once
// What a collective call is, untyped: the part that all ranks must agree on, and this rank's memory. Meant for those who
// write a communicator; callers use communicator.hpp. R: ranks of the group.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace switchyard {

enum class Operation : int64_t { AllReduceSum, AllGather, AllToAll, Broadcast, Barrier };
enum class ElementType : int64_t { Bytes, Int64, Double, Float };

/// Whether the caller blocks at once, or computes before it waits.
enum class CallMode { Blocking, Background };

[[nodiscard]] int64_t bytes_of(ElementType type);

inline constexpr int64_t kNoStep = -1;

/// What ranks tell each other before they exchange data.
struct CallHeader {
  Operation operation = Operation::Barrier;
  ElementType type = ElementType::Bytes;
  int64_t bytes = 0;                     // that each rank contributes; the root's for a broadcast; 0 for all-to-all
  int64_t root = 0;                      // broadcast only
  int64_t sequence = 0;                  // number of the call in its group, from 0
  int64_t step = kNoStep;                // label for messages; ranks need not agree on it
  std::vector<int64_t> send_bytes_R;     // all-to-all only
  std::vector<int64_t> receive_bytes_R;  // all-to-all only
};

/// "all_reduce_sum of 128 int64 (call 7, step 12)".
[[nodiscard]] std::string to_string(const CallHeader& header);

/// Why the ranks' calls do not belong together, naming two ranks and what each called; empty when they do.
[[nodiscard]] std::string find_mismatch(std::span<const CallHeader> headers_R);

/// "rank 3", "ranks 1, 3".
[[nodiscard]] std::string rank_list(std::span<const int64_t> ranks);

/// As words for the wire: kHeaderWords, and 2 R more for all-to-all.
inline constexpr size_t kHeaderWords = 7;
[[nodiscard]] std::vector<int64_t> encode(const CallHeader& header);
/// @throws CommError when the words are not a header
[[nodiscard]] CallHeader decode(std::span<const int64_t> words);

/// One rank's side of a collective. The memory must stay until the work is waited for.
struct Call {
  CallHeader header;
  CallMode mode = CallMode::Blocking;
  std::span<const std::byte> send;  // all-gather, all-to-all, and the root of a broadcast
  std::span<std::byte> receive;     // all-reduce (in place), all-gather, all-to-all, broadcast
};

/// What this rank sends to `peer` (which may be itself), and where what it gets from `peer` goes. Empty for all-reduce.
[[nodiscard]] std::span<const std::byte> send_slice(const Call& call, int64_t rank, int64_t peer);
[[nodiscard]] std::span<std::byte> receive_slice(const Call& call, int64_t rank, int64_t peer);

/// Copies one slice to another of its length; nothing to do where a call in place has both at one address.
void copy_slice(std::span<const std::byte> from, std::span<std::byte> to);

/// A collective under way. Destroying it before wait() gives it up: the memory is not touched afterwards, and the other ranks
/// get an error, at the latest by their time limit.
class Work {
 public:
  virtual ~Work() = default;
  Work() = default;
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  virtual bool ready() = 0;  // pushes it on without blocking; true once wait() would not block
  virtual void wait() = 0;   // called once. Errors: CommError
};

}  // namespace switchyard
