#pragma once
// What goes to the screen: colours and a bar that redraws itself on a terminal, plain lines anywhere else.

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

enum class Screen { Plain, Terminal };  // Terminal: escape codes are understood

/// Terminal when the file descriptor is one and neither NO_COLOR nor TERM=dumb is set.
[[nodiscard]] Screen detect_screen(int file_descriptor);

enum class Style { Bold, Faint, Red, Green, Yellow };

/// The text with escape codes on a terminal, unchanged otherwise.
[[nodiscard]] std::string styled(Screen screen, Style style, std::string_view text);

/// "1h 02m", "3m 05s", "12s"; "?" when negative or not finite.
[[nodiscard]] std::string duration_text(double seconds);

/// "1,234,567".
[[nodiscard]] std::string grouped_digits(int64_t number);

inline constexpr int64_t kBarWidth = 24;  // of progress bars, in characters

/// "[#####-----]" of `width` characters between the brackets; done in [0, total].
[[nodiscard]] std::string bar_text(int64_t done, int64_t total, int64_t width);

/// The number of columns a UTF-8 text takes, one per code point.
[[nodiscard]] size_t column_count(std::string_view text);

enum class Align { Left, Right };

/// Rows of cells as aligned columns, two spaces between them, one line a row, no trailing spaces. Cells must hold no escape codes.
/// @param align  one per column
[[nodiscard]] std::string table_text(const std::vector<std::vector<std::string>>& rows, const std::vector<Align>& align);

/// Lines that show how far something is. On a terminal they replace each other, at most ten times a second; elsewhere a
/// line is printed at the first call, then every ten seconds, and by finish().
class StatusLine {
 public:
  StatusLine(std::ostream& out, Screen screen) : out_(out), screen_(screen) {}

  /// Shows the text if it is time for it; several lines are separated by '\n'.
  void show(const std::string& text);
  /// Shows the text in any case and leaves it standing.
  void finish(const std::string& text);
  /// Takes the status away.
  void clear();
  /// Prints a line that stays, above the status.
  void print(const std::string& line);

 private:
  void erase();
  void draw(const std::string& text);

  std::ostream& out_;
  Screen screen_;
  std::string shown_;    // what stands on the terminal now
  std::string current_;  // the newest text
  std::chrono::steady_clock::time_point last_{};
  bool ever_ = false;
};

}  // namespace switchyard
