#pragma once
// Internal to building: the text of all domains, with where it came from.

#include <vector>

#include "switchyard/data/build.hpp"
#include "switchyard/data/manifest.hpp"

namespace switchyard {

struct SourceDomain {
  DomainRecord record;  // without the splits
  DomainText text;
};

/// Fetches and extracts a preset's domains.
[[nodiscard]] std::vector<SourceDomain> load_preset(const BuildOptions& options, PackageFetcher& fetcher, Progress& progress);

/// Reads the domains of options.from.
[[nodiscard]] std::vector<SourceDomain> load_folder(const BuildOptions& options, Progress& progress);

}  // namespace switchyard
