#include "switchyard/cli/relay.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <csignal>

namespace switchyard {
namespace {

constexpr size_t kMostHeld = 100'000;

// Does not block, on either side.
class TestPipe {
 public:
  TestPipe() {
    if (pipe2(ends_.data(), O_NONBLOCK | O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
  }
  ~TestPipe() {
    close_reader();
    close_writer();
  }
  TestPipe(const TestPipe&) = delete;
  TestPipe& operator=(const TestPipe&) = delete;

  [[nodiscard]] int reader() const { return ends_[0]; }
  [[nodiscard]] int writer() const { return ends_[1]; }
  void close_reader() { close_end(ends_[0]); }
  void close_writer() { close_end(ends_[1]); }

  /// @return how much went in
  size_t put(const std::string& text) const {
    const ssize_t count = write(writer(), text.data(), text.size());
    return count < 0 ? 0 : static_cast<size_t>(count);
  }
  [[nodiscard]] std::string take() const {
    std::string text;
    std::array<char, 4096> buffer{};
    for (ssize_t count = 1; count > 0;) {
      count = read(reader(), buffer.data(), buffer.size());
      if (count > 0) text.append(buffer.data(), static_cast<size_t>(count));
    }
    return text;
  }

 private:
  static void close_end(int& descriptor) {
    if (descriptor >= 0) close(descriptor);
    descriptor = -1;
  }
  std::array<int, 2> ends_{};
};

TEST(Relay, HandsOnWhatComesAtOnceWholeLinesOrNot) {
  TestPipe child;
  TestPipe ours;
  Relay relay(child.reader(), ours.writer());
  relay.move(kMostHeld);
  EXPECT_EQ(ours.take(), "");
  const std::string parts[] = {"\r[#--] 1/3", std::string("\0\xff\n", 3), "half a li"};
  for (const std::string& part : parts) {
    child.put(part);
    relay.move(kMostHeld);
    EXPECT_EQ(ours.take(), part);
  }
  EXPECT_EQ(relay.awaited(kMostHeld).size(), 1U);
  child.put("ne");
  child.close_writer();
  relay.finish();
  EXPECT_EQ(ours.take(), "ne");
  EXPECT_EQ(relay.tail(), parts[0] + parts[1] + "half a line");
  EXPECT_TRUE(relay.awaited(kMostHeld).empty()) << "an output that is closed would wake us for ever";
  EXPECT_FALSE(relay.failed());
}

TEST(Relay, HoldsWhatASlowReaderDoesNotTakeAndNoMoreThanItMay) {
  TestPipe child;
  TestPipe ours;
  Relay relay(child.reader(), ours.writer());
  const std::string text = std::string(3000, 'a') + std::string(5000, 'b') + "c";
  std::string sent;
  for (size_t count = 1; count > 0;) {
    count = child.put(text);
    sent += text.substr(0, count);
    relay.move(kMostHeld);
  }
  EXPECT_GT(sent.size(), kMostHeld);
  EXPECT_LT(sent.size(), kMostHeld + 300'000) << "what it may hold and two pipes";
  ASSERT_EQ(relay.awaited(kMostHeld).size(), 1U);
  EXPECT_EQ(relay.awaited(kMostHeld)[0].fd, ours.writer()) << "of what it does not take it must not be told";
  EXPECT_EQ(relay.awaited(2 * sent.size()).size(), 2U);
  relay.move(2 * sent.size());  // the child must not wait any longer
  sent += text.substr(0, child.put(text));
  std::string read = ours.take();
  child.close_writer();
  while (!relay.awaited(kMostHeld).empty()) {
    relay.move(kMostHeld);
    read += ours.take();
  }
  EXPECT_TRUE(read == sent);
  EXPECT_FALSE(relay.failed());
}

TEST(Relay, DropsWhatCannotBeWritten) {
  const auto handler = std::signal(SIGPIPE, SIG_IGN);
  TestPipe child;
  TestPipe ours;
  Relay relay(child.reader(), ours.writer());
  ours.close_reader();
  const std::string text(4096, 'a');
  for (int part = 0; part < 100; ++part) {
    EXPECT_EQ(child.put(text), text.size()) << "the child need not wait";
    relay.move(kMostHeld);
  }
  EXPECT_TRUE(relay.failed());
  EXPECT_EQ(relay.tail(), std::string(16 * 1024, 'a'));
  EXPECT_EQ(relay.awaited(kMostHeld).size(), 1U);
  relay.finish();
  std::signal(SIGPIPE, handler);
}

TEST(Relay, FailsOnAFullDiskAndAClosedOutput) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  const int unwritable = open("/dev/null", O_RDONLY | O_CLOEXEC);
  for (const int to : {full, unwritable}) {
    TestPipe child;
    Relay relay(child.reader(), to);
    relay.finish();
    EXPECT_FALSE(relay.failed()) << "nothing was to be written";
    child.put("text");
    relay.finish();
    EXPECT_TRUE(relay.failed());
    close(to);
  }
}

}  // namespace
}  // namespace switchyard
