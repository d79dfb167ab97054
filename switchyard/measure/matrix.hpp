#pragma once
// A small dense table of plain numbers, so that metrics need no torch.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {

/// Row-major. Indices are not checked beyond what the sanitizer presets check.
template <typename T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {
    SWITCHYARD_CHECK(rows >= 0 && columns >= 0, ShapeError, "matrix of ", rows, " x ", columns,
                     "; expected sizes of at least 0");
    values_.resize(static_cast<size_t>(rows * columns));
  }
  /// @throws ShapeError when the rows differ in length
  explicit Matrix(const std::vector<std::vector<T>>& rows)
      : Matrix(static_cast<int64_t>(rows.size()), rows.empty() ? 0 : static_cast<int64_t>(rows.front().size())) {
    for (int64_t i = 0; i < rows_; ++i) {
      const std::vector<T>& source = rows[static_cast<size_t>(i)];
      SWITCHYARD_CHECK(static_cast<int64_t>(source.size()) == columns_, ShapeError, "matrix: row ", i, " has ",
                       source.size(), " values, row 0 has ", columns_);
      for (int64_t j = 0; j < columns_; ++j) (*this)(i, j) = source[static_cast<size_t>(j)];
    }
  }

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return columns_; }

  [[nodiscard]] T& operator()(int64_t i, int64_t j) { return values_[static_cast<size_t>(i * columns_ + j)]; }
  [[nodiscard]] const T& operator()(int64_t i, int64_t j) const {
    return values_[static_cast<size_t>(i * columns_ + j)];
  }

  [[nodiscard]] std::span<T> row(int64_t i) {
    return std::span<T>(values_).subspan(static_cast<size_t>(i * columns_), static_cast<size_t>(columns_));
  }
  [[nodiscard]] std::span<const T> row(int64_t i) const {
    return std::span<const T>(values_).subspan(static_cast<size_t>(i * columns_), static_cast<size_t>(columns_));
  }

  /// All rows, one after the other.
  [[nodiscard]] std::span<T> values() { return values_; }

  /// Appends a row of zeros.
  void add_row() {
    values_.resize(values_.size() + static_cast<size_t>(columns_));
    ++rows_;
  }

  [[nodiscard]] std::vector<std::vector<T>> nested() const {
    std::vector<std::vector<T>> lists;
    lists.reserve(static_cast<size_t>(rows_));
    for (int64_t i = 0; i < rows_; ++i) lists.emplace_back(row(i).begin(), row(i).end());
    return lists;
  }

  bool operator==(const Matrix&) const = default;

 private:
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<T> values_;
};

}  // namespace switchyard
