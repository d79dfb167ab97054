#include "switchyard/comm/call.hpp"

#include <algorithm>
#include <numeric>
#include <ranges>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::AllReduceSum:
      return "all_reduce_sum";
    case Operation::AllGather:
      return "all_gather";
    case Operation::AllToAll:
      return "all_to_all";
    case Operation::Broadcast:
      return "broadcast";
    case Operation::Barrier:
      return "barrier";
  }
  return "unknown operation";
}

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::Bytes:
      return "bytes";
    case ElementType::Int64:
      return "int64";
    case ElementType::Double:
      return "double";
    case ElementType::Float:
      return "float";
  }
  return "elements of unknown type";
}

int64_t sum_before(const std::vector<int64_t>& bytes_R, int64_t rank) {
  return std::accumulate(bytes_R.begin(), bytes_R.begin() + rank, int64_t{0});
}

std::string what(const CallHeader& header) {
  std::string text = name_of(header.operation);
  if (header.operation == Operation::AllToAll) {
    return text + " of " + std::to_string(sum_before(header.send_bytes_R, std::ssize(header.send_bytes_R))) + " bytes";
  }
  if (header.operation != Operation::Barrier) {
    text += " of " + std::to_string(header.bytes / bytes_of(header.type)) + " " + name_of(header.type);
  }
  if (header.operation == Operation::Broadcast) text += " from rank " + std::to_string(header.root);
  return text;
}

std::string find_count_mismatch(std::span<const CallHeader> headers_R) {
  const size_t size = headers_R.size();
  for (size_t from = 0; from < size; ++from) {
    for (size_t to = 0; to < size; ++to) {
      const int64_t sent = headers_R[from].send_bytes_R.at(to);
      const int64_t expected = headers_R[to].receive_bytes_R.at(from);
      if (sent != expected) {
        return join_text("rank ", from, " sends ", sent, " bytes to rank ", to, ", which expects ", expected);
      }
    }
  }
  return {};
}

}  // namespace

int64_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::Bytes:
      return 1;
    case ElementType::Float:
      return 4;
    case ElementType::Int64:
    case ElementType::Double:
      return 8;
  }
  return 1;
}

std::string to_string(const CallHeader& header) {
  std::string text = what(header) + " (call " + std::to_string(header.sequence);
  if (header.step != kNoStep) text += ", step " + std::to_string(header.step);
  return text + ")";
}

std::string find_mismatch(std::span<const CallHeader> headers_R) {
  const CallHeader& first = headers_R.front();
  for (size_t rank = 1; rank < headers_R.size(); ++rank) {
    const CallHeader& other = headers_R[rank];
    if (other.operation != first.operation || other.type != first.type || other.bytes != first.bytes ||
        other.root != first.root || other.sequence != first.sequence) {
      return join_text("rank 0 calls ", to_string(first), " where rank ", rank, " calls ", to_string(other));
    }
  }
  return first.operation == Operation::AllToAll ? find_count_mismatch(headers_R) : std::string();
}

std::string rank_list(std::span<const int64_t> ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

std::vector<int64_t> encode(const CallHeader& header) {
  std::vector<int64_t> words = {static_cast<int64_t>(header.operation),
                                static_cast<int64_t>(header.type),
                                header.bytes,
                                header.root,
                                header.sequence,
                                header.step,
                                std::ssize(header.send_bytes_R)};
  words.insert(words.end(), header.send_bytes_R.begin(), header.send_bytes_R.end());
  words.insert(words.end(), header.receive_bytes_R.begin(), header.receive_bytes_R.end());
  return words;
}

CallHeader decode(std::span<const int64_t> words) {
  const bool fits =
      words.size() >= kHeaderWords && words[6] >= 0 && words.size() >= kHeaderWords + 2 * static_cast<size_t>(words[6]);
  SWITCHYARD_CHECK(fits, CommError, "a message of ", words.size(),
                   " words is no call header: the ranks run different programs");
  CallHeader header;
  header.operation = static_cast<Operation>(words[0]);
  header.type = static_cast<ElementType>(words[1]);
  header.bytes = words[2];
  header.root = words[3];
  header.sequence = words[4];
  header.step = words[5];
  const auto begin = words.begin() + kHeaderWords;
  header.send_bytes_R.assign(begin, begin + words[6]);
  header.receive_bytes_R.assign(begin + words[6], begin + 2 * words[6]);
  return header;
}

std::span<const std::byte> send_slice(const Call& call, int64_t rank, int64_t peer) {
  const CallHeader& header = call.header;
  switch (header.operation) {
    case Operation::AllGather:
      return call.send;
    case Operation::Broadcast:
      return rank == header.root && rank != peer ? call.send : std::span<const std::byte>();
    case Operation::AllToAll:
      return call.send.subspan(static_cast<size_t>(sum_before(header.send_bytes_R, peer)),
                               static_cast<size_t>(header.send_bytes_R[static_cast<size_t>(peer)]));
    case Operation::AllReduceSum:
    case Operation::Barrier:
      return {};
  }
  return {};
}

std::span<std::byte> receive_slice(const Call& call, int64_t rank, int64_t peer) {
  const CallHeader& header = call.header;
  switch (header.operation) {
    case Operation::AllGather:
      return call.receive.subspan(static_cast<size_t>(header.bytes * peer), static_cast<size_t>(header.bytes));
    case Operation::Broadcast:
      return peer == header.root && rank != peer ? call.receive : std::span<std::byte>();
    case Operation::AllToAll:
      return call.receive.subspan(static_cast<size_t>(sum_before(header.receive_bytes_R, peer)),
                                  static_cast<size_t>(header.receive_bytes_R[static_cast<size_t>(peer)]));
    case Operation::AllReduceSum:
    case Operation::Barrier:
      return {};
  }
  return {};
}

void copy_slice(std::span<const std::byte> from, std::span<std::byte> to) {
  if (from.data() != to.data()) std::ranges::copy(from, to.begin());
}

}  // namespace switchyard
