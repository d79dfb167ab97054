#include "switchyard/data/manifest.hpp"

#include <nlohmann/json.hpp>

#include "switchyard/core/error.hpp"

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

PackageRecord package_from(const Json& json) {
  PackageRecord package;
  json.at("name").get_to(package.name);
  json.at("version").get_to(package.version);
  json.at("file").get_to(package.file);
  json.at("sha256").get_to(package.sha256);
  json.at("bytes").get_to(package.bytes);
  return package;
}

SplitRecord split_from(const Json& json) {
  SplitRecord split;
  json.at("file").get_to(split.file);
  json.at("sha256").get_to(split.sha256);
  json.at("documents").get_to(split.documents);
  json.at("tokens").get_to(split.tokens);
  return split;
}

DomainRecord domain_from(const Json& json) {
  DomainRecord domain;
  json.at("name").get_to(domain.name);
  json.at("description").get_to(domain.description);
  json.at("license").get_to(domain.license);
  for (const Json& package : json.at("packages")) domain.packages.push_back(package_from(package));
  json.at("text_sha256").get_to(domain.text_sha256);
  json.at("text_bytes").get_to(domain.text_bytes);
  json.at("documents").get_to(domain.documents);
  domain.train = split_from(json.at("train"));
  domain.heldout = split_from(json.at("heldout"));
  return domain;
}

// Without the library's name for it: "[json.exception.out_of_range.403] key 'version' not found".
std::string plain_text(const nlohmann::json::exception& error) {
  const std::string text = error.what();
  const size_t end = text.starts_with('[') ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
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

Manifest manifest_from_json(std::string_view text, std::string_view name) {
  try {
    const Json json = Json::parse(text);
    SWITCHYARD_CHECK(json.at("format").get<std::string>() == kFormat, DataError, name, ": 'format' is not '", kFormat, "'; build the data set again");
    const auto version = json.at("version").get<int64_t>();
    SWITCHYARD_CHECK(version == kDatasetVersion, DataError, name, ": data set version ", version, ", this program reads ",
                     kDatasetVersion, "; build the data set again");
    Manifest manifest;
    json.at("source").get_to(manifest.source);
    json.at("cap_bytes").get_to(manifest.cap_bytes);
    json.at("vocab_size").get_to(manifest.vocab_size);
    json.at("end_of_document").get_to(manifest.end_of_document);
    json.at("tokenizer_sha256").get_to(manifest.tokenizer_sha256);
    json.at("heldout_fraction").get_to(manifest.heldout_fraction);
    for (const Json& domain : json.at("domains")) manifest.domains.push_back(domain_from(domain));
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    throw DataError(join_text(name, ": not a data set manifest: ", plain_text(error), "; build the data set again"));
  }
}

}  // namespace switchyard
