#include "switchyard/comm/mpi_work.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "switchyard/comm/ordered_sum.hpp"

namespace switchyard::mpi {
namespace {

// MPI promises tags up to 32767. Calls that are 8191 apart are never in flight together.
int tag_of(int64_t sequence, int stage) { return static_cast<int>(sequence % 8191) * 4 + stage; }

}  // namespace

void check(int code, const char* function) {
  if (code == MPI_SUCCESS) return;
  std::string text(MPI_MAX_ERROR_STRING, '\0');
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  text.resize(static_cast<size_t>(length));
  throw CommError(join_text(function, ": ", text));
}

Machine::Machine(MPI_Comm comm, int64_t rank, int64_t size, Call call)
    : comm_(comm), rank_(rank), size_(size), call_(std::move(call)) {
  const auto peers = static_cast<size_t>(size);
  sent_R_.resize(peers);
  received_R_.resize(peers);
  staging_R_.resize(peers);
  announce();
}

size_t Machine::header_bytes() const { return (kHeaderWords + 2 * static_cast<size_t>(size_)) * sizeof(int64_t); }

std::span<std::byte> Machine::chunk(int64_t owner) const {
  const int64_t width = bytes_of(call_.header.type);
  const int64_t length = call_.header.bytes / width;
  const int64_t begin = length * owner / size_ * width;
  const int64_t end = length * (owner + 1) / size_ * width;
  return call_.receive.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

void Machine::post_send(std::span<const std::byte> data, int64_t peer, Stage stage) {
  SWITCHYARD_CHECK(data.size() <= std::numeric_limits<int>::max(), CommError, "a message of ", data.size(),
                   " bytes is too long for MPI; split the call");
  transfers_.push_back({peer, Direction::Send});
  MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
  check(MPI_Isend(data.data(), static_cast<int>(data.size()), MPI_BYTE, static_cast<int>(peer),
                  tag_of(call_.header.sequence, static_cast<int>(stage)), comm_, &request),
        "MPI_Isend");
}

void Machine::post_receive(std::span<std::byte> data, int64_t peer, Stage stage) {
  SWITCHYARD_CHECK(data.size() <= std::numeric_limits<int>::max(), CommError, "a message of ", data.size(),
                   " bytes is too long for MPI; split the call");
  transfers_.push_back({peer, Direction::Receive});
  MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
  check(MPI_Irecv(data.data(), static_cast<int>(data.size()), MPI_BYTE, static_cast<int>(peer),
                  tag_of(call_.header.sequence, static_cast<int>(stage)), comm_, &request),
        "MPI_Irecv");
}

void Machine::announce() {
  const std::vector<int64_t> words = encode(call_.header);
  const auto header = std::as_bytes(std::span(words));
  const bool is_sum = call_.header.operation == Operation::AllReduceSum;
  for (int64_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    std::vector<std::byte>& received = received_R_[static_cast<size_t>(peer)];
    received.resize(header_bytes() + kInlineBytes);
    post_receive(received, peer, Stage::Announce);

    std::vector<std::byte>& sent = sent_R_[static_cast<size_t>(peer)];
    const std::span<const std::byte> data = is_sum ? std::span<const std::byte>(call_.receive) : send_slice(call_, rank_, peer);
    sent.resize(header_bytes());
    std::ranges::copy(header, sent.begin());
    if (rides_along(data.size())) sent.insert(sent.end(), data.begin(), data.end());
    post_send(sent, peer, Stage::Announce);
  }
}

void Machine::advance() {
  while (stage_ != Stage::Done) {
    int complete = 0;
    check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &complete, MPI_STATUSES_IGNORE), "MPI_Testall");
    if (complete == 0) return;
    requests_.clear();
    transfers_.clear();
    switch (stage_) {
      case Stage::Announce:
        read_headers();
        break;
      case Stage::Exchange:
        add_chunk();
        break;
      case Stage::Share:
        stage_ = Stage::Done;
        break;
      case Stage::Done:
        break;
    }
  }
}

void Machine::read_headers() {
  std::vector<CallHeader> headers_R;
  for (int64_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) {
      headers_R.push_back(call_.header);
      continue;
    }
    std::vector<int64_t> words(header_bytes() / sizeof(int64_t));
    std::memcpy(words.data(), received_R_[static_cast<size_t>(peer)].data(), header_bytes());
    headers_R.push_back(decode(words));
  }
  mismatch_ = find_mismatch(headers_R);
  if (!mismatch_.empty()) {
    stage_ = Stage::Done;
    return;
  }
  take_inline_data();
  stage_ = Stage::Exchange;
  exchange();
}

void Machine::take_inline_data() {
  if (call_.header.operation == Operation::AllReduceSum) {
    if (!rides_along(call_.receive.size())) return;
    std::vector<const std::byte*> inputs_R;
    for (int64_t peer = 0; peer < size_; ++peer) {
      const std::byte* other = received_R_[static_cast<size_t>(peer)].data() + header_bytes();
      inputs_R.push_back(peer == rank_ ? call_.receive.data() : other);
    }
    ordered_sum(call_.header.type, inputs_R, call_.receive);
    return;
  }
  copy_slice(send_slice(call_, rank_, rank_), receive_slice(call_, rank_, rank_));
  for (int64_t peer = 0; peer < size_; ++peer) {
    const std::span<std::byte> slice = receive_slice(call_, rank_, peer);
    if (peer == rank_ || !rides_along(slice.size())) continue;
    std::copy_n(received_R_[static_cast<size_t>(peer)].begin() + static_cast<ptrdiff_t>(header_bytes()), slice.size(),
                slice.begin());
  }
}

void Machine::exchange() {
  const bool is_sum = call_.header.operation == Operation::AllReduceSum;
  if (is_sum && rides_along(call_.receive.size())) return;
  for (int64_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    if (is_sum) {
      std::vector<std::byte>& staging = staging_R_[static_cast<size_t>(peer)];
      staging.resize(chunk(rank_).size());
      post_receive(staging, peer, Stage::Exchange);
      post_send(chunk(peer), peer, Stage::Exchange);
      continue;
    }
    const std::span<std::byte> incoming = receive_slice(call_, rank_, peer);
    if (!rides_along(incoming.size())) post_receive(incoming, peer, Stage::Exchange);
    const std::span<const std::byte> outgoing = send_slice(call_, rank_, peer);
    if (!rides_along(outgoing.size())) post_send(outgoing, peer, Stage::Exchange);
  }
}

void Machine::add_chunk() {
  stage_ = Stage::Share;
  if (call_.header.operation != Operation::AllReduceSum || rides_along(call_.receive.size())) return;
  const std::span<std::byte> mine = chunk(rank_);
  std::vector<const std::byte*> inputs_R;
  for (int64_t peer = 0; peer < size_; ++peer) {
    inputs_R.push_back(peer == rank_ ? mine.data() : staging_R_[static_cast<size_t>(peer)].data());
  }
  ordered_sum(call_.header.type, inputs_R, mine);
  share();
}

void Machine::share() {
  for (int64_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    post_receive(chunk(peer), peer, Stage::Share);
    post_send(chunk(rank_), peer, Stage::Share);
  }
}

std::vector<int64_t> Machine::open_peers(Direction direction) const {
  std::vector<int64_t> peers;
  for (size_t i = 0; i < requests_.size(); ++i) {
    int is_done = 0;
    check(MPI_Request_get_status(requests_[i], &is_done, MPI_STATUS_IGNORE), "MPI_Request_get_status");
    if (is_done == 0 && transfers_[i].direction == direction) peers.push_back(transfers_[i].peer);
  }
  return peers;
}

std::string Machine::what_is_missing() const {
  const std::vector<int64_t> senders = open_peers(Direction::Receive);
  if (!senders.empty() && stage_ == Stage::Announce) return "not arrived: " + rank_list(senders);
  if (!senders.empty()) return "all ranks arrived, but data of " + rank_list(senders) + " is missing";
  const std::vector<int64_t> takers = open_peers(Direction::Send);
  if (!takers.empty()) return "all ranks arrived, but data was not taken by " + rank_list(takers);
  return "all data came now, too late";
}

void Machine::cancel() {
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (transfers_[i].direction == Direction::Receive && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
  }
}

}  // namespace switchyard::mpi
