#include "switchyard/cli/terminal.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{100};
constexpr std::chrono::seconds kPlainInterval{10};

size_t terminal_columns() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

// A line that wraps would take more rows than are erased later.
std::string fit(const std::string& line, size_t columns) {
  size_t used = 0;
  size_t at = 0;
  while (at < line.size() && used < columns) {
    ++at;
    while (at < line.size() && (static_cast<unsigned char>(line[at]) & 0xC0U) == 0x80U) ++at;
    ++used;
  }
  return line.substr(0, at);
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

Screen detect_screen(int file_descriptor) {
  if (isatty(file_descriptor) == 0 || std::getenv("NO_COLOR") != nullptr) return Screen::Plain;
  const char* terminal = std::getenv("TERM");
  return terminal == nullptr || std::strcmp(terminal, "dumb") == 0 ? Screen::Plain : Screen::Terminal;
}

std::string styled(Screen screen, Style style, std::string_view text) {
  if (screen == Screen::Plain) return std::string(text);
  std::string_view code;
  switch (style) {
    case Style::Bold: code = "1"; break;
    case Style::Faint: code = "2"; break;
    case Style::Red: code = "31"; break;
    case Style::Green: code = "32"; break;
    case Style::Yellow: code = "33"; break;
  }
  return join_text("\x1b[", code, "m", text, "\x1b[0m");
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0.0 || seconds > 1e9) return "?";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  const auto two_digits = [](int64_t number) { return join_text(number < 10 ? "0" : "", number); };
  if (whole >= 3600) return join_text(whole / 3600, "h ", two_digits(whole / 60 % 60), "m");
  if (whole >= 60) return join_text(whole / 60, "m ", two_digits(whole % 60), "s");
  return join_text(whole, "s");
}

std::string grouped_digits(int64_t number) { return grouped_digits(number, ","); }

std::string bar_text(int64_t done, int64_t total, int64_t width) {
  const int64_t inside = std::clamp<int64_t>(done, 0, std::max<int64_t>(total, 0));
  const int64_t filled = total <= 0 ? 0 : width * inside / total;
  return "[" + std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(width - filled), '-') + "]";
}

size_t column_count(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char letter) {
    return (static_cast<unsigned char>(letter) & 0xC0U) != 0x80U;
  }));
}

std::string table_text(const std::vector<std::vector<std::string>>& rows, const std::vector<Align>& align) {
  std::vector<size_t> widths(align.size(), 0);
  for (const auto& row : rows) {
    SWITCHYARD_CHECK(row.size() <= align.size(), UsageError, "a table row has ", row.size(), " cells, expected at most ",
                     align.size());
    for (size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], column_count(row[column]));
    }
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t column = 0; column < row.size(); ++column) {
      if (column > 0) line += "  ";
      const std::string padding(widths[column] - column_count(row[column]), ' ');
      line += align[column] == Align::Right ? padding + row[column] : row[column] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

void StatusLine::show(const std::string& text) {
  current_ = text;
  const auto now = std::chrono::steady_clock::now();
  const auto interval = screen_ == Screen::Terminal ? std::chrono::nanoseconds(kTerminalInterval)
                                                    : std::chrono::nanoseconds(kPlainInterval);
  if (ever_ && now - last_ < interval) return;
  ever_ = true;
  last_ = now;
  draw(text);
}

void StatusLine::finish(const std::string& text) {
  clear();
  out_ << text << "\n" << std::flush;
}

void StatusLine::clear() {
  erase();
  out_ << std::flush;
  current_.clear();
  ever_ = false;
}

void StatusLine::print(const std::string& line) {
  erase();
  out_ << line << "\n" << std::flush;
  if (screen_ == Screen::Terminal && !current_.empty()) draw(current_);
}

void StatusLine::erase() {
  if (screen_ == Screen::Plain || shown_.empty()) return;
  const auto lines = static_cast<int64_t>(split_lines(shown_).size());
  out_ << "\r";
  if (lines > 1) out_ << "\x1b[" << lines - 1 << "A";
  out_ << "\x1b[J";
  shown_.clear();
}

void StatusLine::draw(const std::string& text) {
  if (screen_ == Screen::Plain) {
    out_ << text << "\n" << std::flush;
    return;
  }
  erase();
  const size_t columns = terminal_columns() - 1;
  const std::string fitted = joined(split_lines(text), "\n", [columns](const std::string& line) { return fit(line, columns); });
  out_ << fitted << std::flush;
  shown_ = fitted;
}

}  // namespace switchyard
