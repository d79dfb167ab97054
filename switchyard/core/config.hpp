#pragma once
// Configuration: plain structs whose fields are declared once, in a member
//
//   template <class Visitor> void for_each_field(Visitor&& visit) {
//     visit("width", width, "model width D");
//     visit("balance", balance, "balancing loss");   // another such struct: a section
//   }
//
// The same visit reads TOML, applies --set, writes the resolved file, lists the keys and rejects unknown ones. A struct may
// have `void validate(const std::string& where) const`, called after reading; it throws ConfigError.
//
// Field types: bool, int64_t, double, std::string, std::vector<std::string>, std::vector<int64_t>, std::vector<double>,
// sections, vectors of sections ([[arms]]), std::map<std::string, double>, and any type with
// `void parse(std::string_view, T&)` and `std::string to_string(const T&)` (enums, Scope).

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {

struct FieldProbe {
  template <typename T>
  void operator()(std::string_view, T&, std::string_view) {}
};

template <typename T>
concept ConfigSection = requires(T section, FieldProbe probe) { section.for_each_field(probe); };

template <typename T>
concept ParsedField = requires(T value, const T& constant, std::string_view text) {
  parse(text, value);
  { to_string(constant) } -> std::convertible_to<std::string>;
};

/// A place in a configuration tree. Keeps file and line of what it came from, so that errors can name them.
class ConfigNode {
 public:
  struct Impl;
  explicit ConfigNode(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

  [[nodiscard]] bool has(std::string_view key) const;
  [[nodiscard]] ConfigNode child(std::string_view key) const;  // a table
  [[nodiscard]] std::vector<ConfigNode> children(std::string_view key) const;  // an array of tables
  [[nodiscard]] std::vector<std::string> keys() const;
  [[nodiscard]] std::string where(std::string_view key) const;  // "demo.toml:12: balance.scope"
  /// " (changed by --set data.path=mine)": names the overrides of what lies here and below, for the end of an error. Empty if
  /// there is none, or if where("") names the only one already.
  [[nodiscard]] std::string changed_by() const;

  void get(std::string_view key, bool& value) const;
  void get(std::string_view key, int64_t& value) const;
  void get(std::string_view key, double& value) const;
  void get(std::string_view key, std::string& value) const;
  void get(std::string_view key, std::vector<std::string>& value) const;
  void get(std::string_view key, std::vector<int64_t>& value) const;
  void get(std::string_view key, std::vector<double>& value) const;
  void get(std::string_view key, std::map<std::string, double>& value) const;

 private:
  template <typename T>
  void get_any(std::string_view key, T& value) const;

  std::shared_ptr<const Impl> impl_;
};

/// Parses a TOML file and applies overrides "a.b=value" (value in TOML syntax; a bare word is taken as a string).
/// @throws ConfigError naming file, line and what is wrong
[[nodiscard]] ConfigNode parse_config_file(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});
[[nodiscard]] ConfigNode parse_config_text(std::string_view text, std::string_view name,
                                           const std::vector<std::string>& overrides = {});

/// The keys of an override "a.b=value", here a and b: at least one, without the quotes and blanks of TOML.
/// @throws ConfigError for what is no override
[[nodiscard]] std::vector<std::string> override_path(const std::string& text);

/// Throws for each key of `node` that is not in `valid`: names file, line, key, the valid keys and the nearest match.
void reject_unknown_keys(const ConfigNode& node, const std::vector<std::string>& valid);

namespace detail {

struct KeyCollector {
  std::vector<std::string> keys;
  template <typename T>
  void operator()(std::string_view key, T&, std::string_view) { keys.emplace_back(key); }
};

template <typename T>
struct IsSectionVector : std::false_type {};
template <ConfigSection T>
struct IsSectionVector<std::vector<T>> : std::true_type {};

}  // namespace detail

/// Fills `section` from `node`; fields that are not given keep their values. Unknown keys and bad values are errors.
template <ConfigSection Section>
void read_config(const ConfigNode& node, Section& section);

namespace detail {

struct Reader {
  const ConfigNode& node;

  template <typename T>
  void operator()(std::string_view key, T& value, std::string_view) const {
    if (!node.has(key)) return;
    if constexpr (ConfigSection<T>) {
      read_config(node.child(key), value);
    } else if constexpr (IsSectionVector<T>::value) {
      value.clear();
      for (const ConfigNode& item : node.children(key)) read_config(item, value.emplace_back());
    } else if constexpr (ParsedField<T>) {
      std::string text;
      node.get(key, text);
      try {
        parse(text, value);
      } catch (const UsageError& error) {
        throw ConfigError(join_text(node.where(key), ": ", error.what()));
      }
    } else {
      node.get(key, value);
    }
  }
};

}  // namespace detail

template <ConfigSection Section>
void read_config(const ConfigNode& node, Section& section) {
  detail::KeyCollector known;
  section.for_each_field(known);
  reject_unknown_keys(node, known.keys);
  section.for_each_field(detail::Reader{node});
  if constexpr (requires { section.validate(std::string()); }) {
    try {
      section.validate(node.where(""));
    } catch (const UsageError& error) {  // its place is the file's, and the wrong value may be an override's
      throw ConfigError(error.what() + node.changed_by());
    }
  }
}

/// A value in TOML syntax. Doubles are the shortest text that reads back to the same bits, with '.' or exponent.
/// Strings must be UTF-8 (TOML knows nothing else).
[[nodiscard]] std::string toml_value(bool value);
[[nodiscard]] std::string toml_value(int64_t value);
[[nodiscard]] std::string toml_value(double value);
[[nodiscard]] std::string toml_value(const std::string& value);
[[nodiscard]] std::string toml_value(const std::vector<std::string>& value);
[[nodiscard]] std::string toml_value(const std::vector<int64_t>& value);
[[nodiscard]] std::string toml_value(const std::vector<double>& value);
[[nodiscard]] std::string toml_value(const std::map<std::string, double>& value);

/// Writes values as TOML. Sections become [a.b] tables after the plain fields.
class ConfigWriter {
 public:
  explicit ConfigWriter(std::string prefix = {}) : prefix_(std::move(prefix)) {}

  template <typename T>
  void operator()(std::string_view key, T& value, std::string_view) {
    if constexpr (ConfigSection<T>) {
      add_section(key, value, "[", "]");
    } else if constexpr (detail::IsSectionVector<T>::value) {
      // Written even when empty: the reader's default may hold some.
      if (value.empty()) plain_ += std::string(key) + " = []\n";
      for (auto& item : value) add_section(key, item, "[[", "]]");
    } else if constexpr (ParsedField<T>) {
      plain_ += std::string(key) + " = " + toml_value(std::string(to_string(value))) + "\n";
    } else {
      plain_ += std::string(key) + " = " + toml_value(value) + "\n";
    }
  }

  [[nodiscard]] std::string text() const { return plain_ + sections_; }

 private:
  template <typename Section>
  void add_section(std::string_view key, Section& section, std::string_view open, std::string_view close) {
    const std::string path = prefix_.empty() ? std::string(key) : prefix_ + "." + std::string(key);
    ConfigWriter inner(path);
    section.for_each_field(inner);
    sections_ += "\n" + std::string(open) + path + std::string(close) + "\n" + inner.text();
  }

  std::string prefix_;
  std::string plain_;
  std::string sections_;
};

/// The section as TOML; read_config of the text gives an equal section.
template <ConfigSection Section>
[[nodiscard]] std::string to_toml(const Section& section) {
  Section copy = section;
  ConfigWriter writer;
  copy.for_each_field(writer);
  return writer.text();
}

/// One line of documentation per key, for `--help` and the docs.
struct FieldDoc {
  std::string key;    // "balance.scope"; keys of a list of sections are "arms[].name"
  std::string value;  // as in the given section, in TOML syntax
  std::string help;
};

namespace detail {

struct DocCollector {
  std::string prefix;
  std::vector<FieldDoc> docs;

  template <typename T>
  void operator()(std::string_view key, T& value, std::string_view help) {
    const std::string path = prefix + std::string(key);
    if constexpr (ConfigSection<T>) {
      add_section(path + ".", value);
    } else if constexpr (IsSectionVector<T>::value) {
      typename T::value_type item{};
      add_section(path + "[].", item);
    } else if constexpr (ParsedField<T>) {
      docs.push_back({path, toml_value(std::string(to_string(value))), std::string(help)});
    } else {
      docs.push_back({path, toml_value(value), std::string(help)});
    }
  }

  template <typename Section>
  void add_section(const std::string& inner_prefix, Section& section) {
    DocCollector inner{inner_prefix, {}};
    section.for_each_field(inner);
    docs.insert(docs.end(), inner.docs.begin(), inner.docs.end());
  }
};

}  // namespace detail

/// All keys of a section in declared order, with the values it holds (its defaults, when given a fresh one).
template <ConfigSection Section>
[[nodiscard]] std::vector<FieldDoc> describe_config(const Section& section) {
  Section copy = section;
  detail::DocCollector collector;
  copy.for_each_field(collector);
  return collector.docs;
}

}  // namespace switchyard
