#include "switchyard/data/manifest.hpp"

#include <algorithm>
#include <cctype>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "switchyard data set";

Json to_json(const PackageRecord& package) {
  return {{"name", package.name},
          {"version", package.version},
          {"file", package.file},
          {"sha256", package.sha256},
          {"bytes", package.bytes}};
}

Json to_json(const SplitRecord& split) {
  return {{"file", split.file}, {"sha256", split.sha256}, {"documents", split.documents}, {"tokens", split.tokens}};
}

Json to_json(const DomainRecord& domain) {
  Json packages = Json::array();
  for (const PackageRecord& package : domain.packages) packages.push_back(to_json(package));
  return {{"name", domain.name},           {"description", domain.description}, {"license", domain.license},
          {"packages", packages},          {"text_sha256", domain.text_sha256}, {"text_bytes", domain.text_bytes},
          {"documents", domain.documents}, {"train", to_json(domain.train)},    {"heldout", to_json(domain.heldout)}};
}

// The library would cut a fraction off, and wrap a number that is too large.
int64_t whole_number(const Json& json, const char* key) {
  const Json& value = json.at(key);
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()}
                                               : value.is_number_integer() && value.get<int64_t>() >= 0;
  SWITCHYARD_CHECK(fits, DataError, "'", key, "' is ", value.dump(), ", no whole number of 0 or more");
  return value.get<int64_t>();
}

PackageRecord package_from(const Json& json) {
  PackageRecord package;
  json.at("name").get_to(package.name);
  json.at("version").get_to(package.version);
  json.at("file").get_to(package.file);
  json.at("sha256").get_to(package.sha256);
  package.bytes = whole_number(json, "bytes");
  return package;
}

SplitRecord split_from(const Json& json) {
  SplitRecord split;
  json.at("file").get_to(split.file);
  json.at("sha256").get_to(split.sha256);
  split.documents = whole_number(json, "documents");
  split.tokens = whole_number(json, "tokens");
  return split;
}

DomainRecord domain_from(const Json& json) {
  DomainRecord domain;
  json.at("name").get_to(domain.name);
  json.at("description").get_to(domain.description);
  json.at("license").get_to(domain.license);
  SWITCHYARD_CHECK(json.at("packages").is_array(), DataError, "'packages' is no list");
  for (const Json& package : json.at("packages")) domain.packages.push_back(package_from(package));
  json.at("text_sha256").get_to(domain.text_sha256);
  domain.text_bytes = whole_number(json, "text_bytes");
  domain.documents = whole_number(json, "documents");
  domain.train = split_from(json.at("train"));
  domain.heldout = split_from(json.at("heldout"));
  return domain;
}

void check_domains(const Manifest& manifest) {
  std::set<std::string> names, files;
  for (const DomainRecord& domain : manifest.domains) {
    SWITCHYARD_CHECK(is_domain_name(domain.name), DataError, toml_value(domain.name), " is no name of a domain");
    SWITCHYARD_CHECK(names.insert(domain.name).second, DataError, "two domains are named '", domain.name, "'");
    for (const SplitRecord* split : {&domain.train, &domain.heldout}) {
      SWITCHYARD_CHECK(files.insert(split->file).second, DataError, "the shard ", split->file, " is named twice");
    }
    SWITCHYARD_CHECK(domain.documents == domain.train.documents + domain.heldout.documents, DataError, "domain '", domain.name, "' has ",
                     domain.documents, " documents, but its shards ", domain.train.documents, " and ", domain.heldout.documents);
  }
}

Manifest manifest_from(const Json& json) {
  Manifest manifest;
  json.at("source").get_to(manifest.source);
  manifest.cap_bytes = whole_number(json, "cap_bytes");
  manifest.vocab_size = whole_number(json, "vocab_size");
  manifest.end_of_document = whole_number(json, "end_of_document");
  SWITCHYARD_CHECK(manifest.end_of_document < manifest.vocab_size, DataError, "'end_of_document' is ", manifest.end_of_document,
                   ", which a vocabulary of ", manifest.vocab_size, " does not have");
  json.at("tokenizer_sha256").get_to(manifest.tokenizer_sha256);
  json.at("heldout_fraction").get_to(manifest.heldout_fraction);
  SWITCHYARD_CHECK(manifest.heldout_fraction > 0.0 && manifest.heldout_fraction <= 0.5, DataError, "'heldout_fraction' is ",
                   manifest.heldout_fraction, ", which is not in (0, 0.5]");
  SWITCHYARD_CHECK(json.at("domains").is_array(), DataError, "'domains' is no list");
  for (const Json& domain : json.at("domains")) manifest.domains.push_back(domain_from(domain));
  check_domains(manifest);
  return manifest;
}

}  // namespace

std::string manifest_to_json(const Manifest& manifest) {
  Json domains = Json::array();
  for (const DomainRecord& domain : manifest.domains) domains.push_back(to_json(domain));
  const Json json = {{"format", kFormat},
                     {"version", kDatasetVersion},
                     {"source", manifest.source},
                     {"cap_bytes", manifest.cap_bytes},
                     {"vocab_size", manifest.vocab_size},
                     {"end_of_document", manifest.end_of_document},
                     {"tokenizer_sha256", manifest.tokenizer_sha256},
                     {"heldout_fraction", manifest.heldout_fraction},
                     {"domains", domains}};
  return json.dump(2) + "\n";
}

bool is_domain_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char letter) {
    return std::isalnum(letter) != 0 || letter == '_' || letter == '-';
  });
}

Manifest manifest_from_json(std::string_view text, std::string_view name) {
  const auto problem = [name](std::string_view what) {
    return DataError(join_text(name, ": not a data set manifest: ", what, "; build the data set again"));
  };
  Json json;
  int64_t version = 0;
  try {
    json = Json::parse(text);
    SWITCHYARD_CHECK(json.at("format").get<std::string>() == kFormat, DataError, "'format' is not '", kFormat, "'");
    version = whole_number(json, "version");
    if (version == kDatasetVersion) return manifest_from(json);
  } catch (const nlohmann::json::exception& error) {
    throw problem(without_error_name(error.what()));
  } catch (const DataError& error) {
    throw problem(error.what());
  }
  throw DataError(join_text(name, ": data set version ", version, ", this program reads ", kDatasetVersion, "; build the data set again"));
}

}  // namespace switchyard
