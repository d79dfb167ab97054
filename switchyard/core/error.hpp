#pragma once
// Errors of the library. It never prints and never exits: it throws one of these, and cli turns them into exit codes.

#include <sstream>
#include <stdexcept>
#include <string>

namespace switchyard {

/// Base of all errors. The message says what was given, what was expected and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller asked for something that does not exist or cannot be combined (exit code 2).
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A configuration file or override is wrong (exit code 2).
class ConfigError : public UsageError {
 public:
  using UsageError::UsageError;
};

/// Data, a checkpoint or a run folder cannot be used as it lies there (exit code 1).
class DataError : public Error {
 public:
  using Error::Error;
};

/// A tensor has the wrong shape, type or values (exit code 1).
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// Calls came in an order, or with a result, that the contract forbids, such as a routing that does not replay (exit code 1).
class StateError : public Error {
 public:
  using Error::Error;
};

/// A collective operation failed; names rank, operation and step (exit code 1).
class CommError : public Error {
 public:
  using Error::Error;
};

/// Joins its arguments into one string, as operator<< writes them.
template <typename... Parts>
[[nodiscard]] std::string join_text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace switchyard

/// Throws ErrorType with the joined message parts unless the condition holds.
#define SWITCHYARD_CHECK(condition, ErrorType, ...)                                              \
  do {                                                                                           \
    if (!(condition)) throw ::switchyard::ErrorType(::switchyard::join_text(__VA_ARGS__));       \
  } while (false)
