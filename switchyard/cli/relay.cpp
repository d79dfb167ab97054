#include "switchyard/cli/relay.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace switchyard {
namespace {

constexpr size_t kPiece = 4096;  // goes into a pipe that is ready for writing without waiting
constexpr size_t kTakenAtOnce = size_t{1} << 20U;
constexpr size_t kTailBytes = size_t{16} * 1024;

// @param milliseconds  -1: for ever
bool ready_for_writing(int descriptor, int milliseconds) {
  pollfd polled{descriptor, POLLOUT, 0};
  return poll(&polled, 1, milliseconds) > 0;
}

}  // namespace

void Relay::move(size_t most_held) {
  size_t taken = 0;  // a child that never pauses must not keep us here
  while (held_.size() < most_held && taken < kTakenAtOnce) {
    const size_t count = take();
    if (count == 0) break;
    taken += count;
  }
  while (!held_.empty() && ready_for_writing(to_, 0)) write_piece();
}

void Relay::finish() {
  while (take() > 0) {
  }
  while (!held_.empty()) {
    if (ready_for_writing(to_, -1)) write_piece();
  }
}

std::vector<pollfd> Relay::awaited(size_t most_held) const {
  std::vector<pollfd> result;
  if (from_ >= 0 && held_.size() < most_held) result.push_back({from_, POLLIN, 0});
  if (!held_.empty()) result.push_back({to_, POLLOUT, 0});
  return result;
}

// 0 where nothing is there.
size_t Relay::take() {
  std::array<char, kPiece> buffer{};
  ssize_t count = -1;
  do {
    count = from_ < 0 ? 0 : read(from_, buffer.data(), buffer.size());
  } while (count < 0 && errno == EINTR);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
  if (count <= 0) {
    from_ = -1;
    return 0;
  }
  const auto size = static_cast<size_t>(count);
  if (!failed_) held_.append(buffer.data(), size);
  tail_.append(buffer.data(), size);
  if (tail_.size() > kTailBytes) tail_.erase(0, tail_.size() - kTailBytes);
  return size;
}

void Relay::write_piece() {
  const ssize_t count = write(to_, held_.data(), std::min(held_.size(), kPiece));
  if (count >= 0) {
    held_.erase(0, static_cast<size_t>(count));
  } else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
    failed_ = true;
    held_.clear();
  }
}

}  // namespace switchyard
