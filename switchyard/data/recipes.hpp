#pragma once
// The 16 domains: which packages, which files, which recipe. docs/data.md has the same table with sizes and licences.

#include <functional>
#include <string_view>
#include <vector>

#include "switchyard/data/documents.hpp"
#include "switchyard/data/package_archive.hpp"

namespace switchyard {

/// Files of one of the recipe's packages, named as the recipe names it.
using PackageReader = std::function<std::vector<PackageFile>(std::string_view package, const FileFilter& wanted)>;

struct Recipe {
  std::string_view name;
  std::string_view description;            // one line
  std::string_view license;                // as the packages' copyright files say
  std::vector<std::string_view> packages;  // patterns of package_fetch.hpp
  void (*extract)(const PackageReader& read, DocumentSink& sink);
};

/// All domains, sorted by name.
[[nodiscard]] const std::vector<Recipe>& recipe_table();

struct Preset {
  std::string_view name;  // "mix8"
  std::vector<std::string_view> domains;
};

[[nodiscard]] const std::vector<Preset>& preset_table();

/// @throws UsageError with the known names and the nearest one
[[nodiscard]] const Preset& find_preset(std::string_view name);
[[nodiscard]] const Recipe& find_recipe(std::string_view name);

}  // namespace switchyard
