#pragma once
// What a child writes, handed on to an output of ours.

#include <poll.h>

#include <cstddef>
#include <string>
#include <vector>

namespace switchyard {

/// Hands bytes on as they come. Neither a reader who is slow nor one who has gone away is the child's to notice: what he does not
/// take yet is held, what cannot be written is dropped.
class Relay {
 public:
  /// @param from  the child's, which does not block
  /// @param to    ours
  Relay(int from, int to) : from_(from), to_(to) {}

  /// Takes what has come and writes what goes without waiting.
  /// @param most_held  bytes that wait for the reader; with more of them the child has to wait as well
  void move(size_t most_held);
  /// Takes what has come and writes all of it, however long that takes.
  void finish();
  /// Whether something could not be written.
  [[nodiscard]] bool failed() const { return failed_; }
  /// The end of what came so far: at most 16 kB.
  [[nodiscard]] const std::string& tail() const { return tail_; }
  /// What move() waits for.
  [[nodiscard]] std::vector<pollfd> awaited(size_t most_held) const;

 private:
  size_t take();
  void write_piece();

  int from_;  // -1 once the child has closed it
  int to_;
  std::string held_;
  std::string tail_;
  bool failed_ = false;
};

}  // namespace switchyard
