#include "switchyard/core/config.hpp"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {

// The source of each node (file or override, line) is kept by toml++ in the node itself.
struct ConfigNode::Impl {
  std::shared_ptr<const toml::table> root;  // keeps `table` alive
  const toml::table* table = nullptr;
  std::string name;  // the file
  std::string path;  // "balance", "arms[1]", empty at the root
};

namespace {

std::string join_path(const std::string& path, std::string_view key) {
  if (path.empty() || key.empty()) return path + std::string(key);
  return path + "." + std::string(key);
}

std::string place(const std::string& name, const toml::node& node, const std::string& path) {
  const toml::source_region& source = node.source();
  std::string text = source.path == nullptr ? name : *source.path;
  if (text == name && source.begin.line > 0) text += ":" + std::to_string(source.begin.line);
  return text + ": " + printable(path);
}

std::string describe(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string: return join_text("string ", toml_value(node.ref<std::string>()));
    case toml::node_type::integer: return join_text("integer ", node.ref<int64_t>());
    case toml::node_type::floating_point: return join_text("float ", toml_value(node.ref<double>()));
    case toml::node_type::boolean: return node.ref<bool>() ? "boolean true" : "boolean false";
    case toml::node_type::array: return "an array";
    case toml::node_type::table: return "a table";
    default: return "a date or time";
  }
}

// What errors name besides the line, which each node knows itself.
struct Position {
  std::string name;
  std::string path;
};

[[noreturn]] void throw_wrong_type(const Position& position, const toml::node& node, std::string_view expected) {
  throw ConfigError(join_text(place(position.name, node, position.path), ": expected ", expected, ", given ", describe(node)));
}

void convert(const toml::node& node, const Position& position, bool& value) {
  if (!node.is_boolean()) throw_wrong_type(position, node, "true or false");
  value = node.ref<bool>();
}

void convert(const toml::node& node, const Position& position, int64_t& value) {
  if (!node.is_integer()) throw_wrong_type(position, node, "an integer");
  value = node.ref<int64_t>();
}

void convert(const toml::node& node, const Position& position, double& value) {
  if (node.is_floating_point()) {
    value = node.ref<double>();
    return;
  }
  if (!node.is_integer()) throw_wrong_type(position, node, "a number");
  constexpr int64_t kLargestExact = int64_t{1} << std::numeric_limits<double>::digits;
  const int64_t integer = node.ref<int64_t>();
  if (integer > kLargestExact || integer < -kLargestExact) {
    throw_wrong_type(position, node, "a number that a double holds exactly");
  }
  value = static_cast<double>(integer);
}

void convert(const toml::node& node, const Position& position, std::string& value) {
  if (!node.is_string()) throw_wrong_type(position, node, "a string (in quotes)");
  value = node.ref<std::string>();
}

template <typename T>
void convert(const toml::node& node, const Position& position, std::vector<T>& value) {
  const toml::array* array = node.as_array();
  if (array == nullptr) throw_wrong_type(position, node, "an array");
  value.clear();
  for (const toml::node& item : *array) {
    const Position item_position{position.name, join_text(position.path, "[", value.size(), "]")};
    convert(item, item_position, value.emplace_back());
  }
}

void convert(const toml::node& node, const Position& position, std::map<std::string, double>& value) {
  const toml::table* table = node.as_table();
  if (table == nullptr) throw_wrong_type(position, node, "a table of numbers");
  value.clear();
  for (const auto& [key, item] : *table) {
    convert(item, {position.name, join_path(position.path, key.str())}, value[std::string(key.str())]);
  }
}

toml::table parse_toml(std::string_view text, std::string_view name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    throw ConfigError(join_text(name, ":", error.source().begin.line, ": not valid TOML: ", error.description()));
  }
}

struct Override {
  std::vector<std::string> keys;
  toml::table document;  // nested tables along `keys`, the value innermost
};

std::vector<std::string> override_keys(std::string_view key, const std::string& name) {
  std::vector<std::string> keys;
  const toml::table document = parse_toml(join_text(key, " = 0"), name);
  for (const toml::table* table = &document; table != nullptr && !table->empty();) {
    const auto first = table->begin();  // kept: what it points to lives inside it
    keys.emplace_back(first->first.str());
    table = first->second.as_table();
  }
  return keys;
}

std::string trimmed(const std::string& text) {
  const size_t start = text.find_first_not_of(" \t");
  if (start == std::string::npos) return "";
  return text.substr(start, text.find_last_not_of(" \t") - start + 1);
}

// As TOML writes one: 007 is none.
bool is_whole_number(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  return !text.empty() && !text.starts_with('0') && text.find_first_not_of("0123456789") == std::string_view::npos;
}

Override parse_override(const std::string& text) {
  const std::string name = "--set " + text;
  Override result;
  result.keys = override_path(text);
  const size_t equals = text.find('=');
  const std::string key = text.substr(0, equals);
  const std::string value = trimmed(text.substr(equals + 1));
  // Else a number that is too large would become a string.
  const bool must_be_toml = is_whole_number(value) || (!value.empty() && std::string_view("\"'[{").find(value[0]) != std::string::npos);
  try {
    result.document = toml::parse(join_text(key, " = ", value), name);
  } catch (const toml::parse_error& error) {
    SWITCHYARD_CHECK(!must_be_toml, ConfigError, name, ": not a TOML value: ", error.description());
    result.document = parse_toml(join_text(key, " = ", toml_value(value)), name);
  }
  return result;
}

// Nodes are moved, not copied: toml++ drops the source of a copy.
void apply_override(toml::table& root, const std::string& text) {
  Override change = parse_override(text);
  toml::table* to = &root;
  toml::table* from = &change.document;
  for (size_t depth = 0;; ++depth) {
    const std::string& key = change.keys[depth];
    toml::node* old = to->get(key);
    if (old == nullptr || depth + 1 == change.keys.size()) {
      to->insert_or_assign(key, std::move(*from->get(key)));
      return;
    }
    SWITCHYARD_CHECK(old->is_table(), ConfigError, "--set ", text, ": '", key, "' is ", describe(*old),
                     ", which has no keys; set it whole");
    to = old->as_table();
    from = from->get(key)->as_table();
  }
}

std::string quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char letter : text) {
    switch (letter) {
      case '"': quoted += "\\\""; break;
      case '\\': quoted += "\\\\"; break;
      case '\n': quoted += "\\n"; break;
      case '\t': quoted += "\\t"; break;
      case '\r': quoted += "\\r"; break;
      default: quoted += printable({&letter, 1});
    }
  }
  return quoted + "\"";
}

template <typename T>
std::string array_text(const std::vector<T>& items) {
  std::vector<std::string> texts;
  for (const T& item : items) texts.push_back(toml_value(item));
  return "[" + comma_list(texts) + "]";
}

const toml::node& find(const ConfigNode& node, const toml::table& table, std::string_view key) {
  const toml::node* found = table.get(key);
  SWITCHYARD_CHECK(found != nullptr, ConfigError, node.where(key), ": not given");
  return *found;
}

void collect_overrides(const toml::node& node, const std::string& file, std::vector<std::string>& found) {
  const auto& source = node.source().path;
  if (source != nullptr && *source != file && std::find(found.begin(), found.end(), *source) == found.end()) found.push_back(*source);
  if (const toml::table* table = node.as_table(); table != nullptr) {
    for (const auto& [key, item] : *table) collect_overrides(item, file, found);
  } else if (const toml::array* array = node.as_array(); array != nullptr) {
    for (const toml::node& item : *array) collect_overrides(item, file, found);
  }
}

}  // namespace

ConfigNode parse_config_file(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  std::string text;
  try {
    text = read_file(path);
  } catch (const DataError& error) {
    throw ConfigError(error.what());
  }
  return parse_config_text(text, path.string(), overrides);
}

ConfigNode parse_config_text(std::string_view text, std::string_view name, const std::vector<std::string>& overrides) {
  auto root = std::make_shared<toml::table>(parse_toml(text, name));
  for (const std::string& change : overrides) apply_override(*root, change);
  const toml::table* table = root.get();
  return ConfigNode(std::make_shared<ConfigNode::Impl>(ConfigNode::Impl{std::move(root), table, std::string(name), ""}));
}

std::vector<std::string> override_path(const std::string& text) {
  const std::string name = "--set " + text;
  const size_t equals = text.find('=');
  SWITCHYARD_CHECK(equals != std::string::npos && equals > 0, ConfigError, name, ": expected key=value");
  SWITCHYARD_CHECK(text.find('\n') == std::string::npos, ConfigError, name, ": expected a single line");
  std::vector<std::string> keys = override_keys(text.substr(0, equals), name);
  SWITCHYARD_CHECK(!keys.empty(), ConfigError, name, ": expected key=value");
  return keys;
}

bool ConfigNode::has(std::string_view key) const { return impl_->table->contains(key); }

std::string ConfigNode::where(std::string_view key) const {
  const toml::node* node = key.empty() ? nullptr : impl_->table->get(key);
  if (node == nullptr && impl_->path.empty()) return key.empty() ? impl_->name : join_text(impl_->name, ": ", printable(key));
  return place(impl_->name, node == nullptr ? *impl_->table : *node, join_path(impl_->path, key));
}

std::string ConfigNode::changed_by() const {
  std::vector<std::string> overrides;
  collect_overrides(*impl_->table, impl_->name, overrides);
  const auto& own = impl_->table->source().path;
  const bool is_named = overrides.size() == 1 && own != nullptr && *own == overrides.front();
  return overrides.empty() || is_named ? "" : join_text(" (changed by ", comma_list(overrides), ")");
}

ConfigNode ConfigNode::child(std::string_view key) const {
  const toml::node& node = find(*this, *impl_->table, key);
  const std::string path = join_path(impl_->path, key);
  if (!node.is_table()) throw_wrong_type({impl_->name, path}, node, join_text("a table, [", path, "]"));
  return ConfigNode(std::make_shared<Impl>(Impl{impl_->root, node.as_table(), impl_->name, path}));
}

std::vector<ConfigNode> ConfigNode::children(std::string_view key) const {
  const toml::node& node = find(*this, *impl_->table, key);
  const std::string path = join_path(impl_->path, key);
  const std::string expected = join_text("an array of tables, [[", path, "]]");
  if (!node.is_array()) throw_wrong_type({impl_->name, path}, node, expected);
  std::vector<ConfigNode> items;
  for (const toml::node& item : *node.as_array()) {
    const std::string item_path = join_text(path, "[", items.size(), "]");
    if (!item.is_table()) throw_wrong_type({impl_->name, item_path}, item, expected);
    items.emplace_back(std::make_shared<Impl>(Impl{impl_->root, item.as_table(), impl_->name, item_path}));
  }
  return items;
}

std::vector<std::string> ConfigNode::keys() const {
  std::vector<std::string> names;
  for (const auto& [key, node] : *impl_->table) names.emplace_back(key.str());
  return names;
}

template <typename T>
void ConfigNode::get_any(std::string_view key, T& value) const {
  T converted{};  // `value` is untouched when the conversion fails half way
  convert(find(*this, *impl_->table, key), {impl_->name, join_path(impl_->path, key)}, converted);
  value = std::move(converted);
}

void ConfigNode::get(std::string_view key, bool& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, int64_t& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, double& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, std::string& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, std::vector<std::string>& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, std::vector<int64_t>& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, std::vector<double>& value) const { get_any(key, value); }
void ConfigNode::get(std::string_view key, std::map<std::string, double>& value) const { get_any(key, value); }

void reject_unknown_keys(const ConfigNode& node, const std::vector<std::string>& valid) {
  std::string message;
  for (const std::string& key : node.keys()) {
    if (std::find(valid.begin(), valid.end(), key) != valid.end()) continue;
    if (!message.empty()) message += "\n";
    message += node.where(key) + ": " + unknown_name("key", key, valid);
  }
  if (!message.empty()) throw ConfigError(message);
}

std::string toml_value(bool value) { return value ? "true" : "false"; }

std::string toml_value(int64_t value) { return std::to_string(value); }

std::string toml_value(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0.0 ? "inf" : "-inf";
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  std::string text(buffer, result.ptr);
  // Without a point TOML would read an integer.
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string toml_value(const std::string& value) { return quote(value); }
std::string toml_value(const std::vector<std::string>& value) { return array_text(value); }
std::string toml_value(const std::vector<int64_t>& value) { return array_text(value); }
std::string toml_value(const std::vector<double>& value) { return array_text(value); }

std::string toml_value(const std::map<std::string, double>& value) {
  std::vector<std::string> items;
  for (const auto& [key, number] : value) items.push_back(quote(key) + " = " + toml_value(number));
  return items.empty() ? "{}" : "{ " + comma_list(items) + " }";
}

}  // namespace switchyard
