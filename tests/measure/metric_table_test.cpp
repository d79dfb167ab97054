#include "switchyard/measure/metric_table.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <string>

namespace switchyard {
namespace {

// Sections "## `name`, `other name`" of the page, each name with the lines below it.
std::map<std::string, std::string> sections_of_page() {
  std::ifstream page(std::string(SWITCHYARD_SOURCE_DIR) + "/docs/metrics.md");
  std::map<std::string, std::string> sections;
  std::set<std::string> open;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) {
      open.clear();
      for (size_t begin = line.find('`'); begin != std::string::npos; begin = line.find('`', begin)) {
        const size_t end = line.find('`', begin + 1);
        if (end == std::string::npos) break;
        open.insert(line.substr(begin + 1, end - begin - 1));
        sections[line.substr(begin + 1, end - begin - 1)] = "";
        begin = end + 1;
      }
      continue;
    }
    for (const std::string& name : open) sections[name] += line + "\n";
  }
  return sections;
}

TEST(MetricTable, IsComplete) {
  std::set<std::string_view> names;
  for (const MetricEntry& metric : metric_table()) {
    EXPECT_TRUE(names.insert(metric.name).second) << metric.name << " is listed twice";
    EXPECT_FALSE(metric.description.empty() || metric.range.empty() || metric.unit.empty() || metric.scope.empty())
        << metric.name;
    EXPECT_EQ(metric.description.find('\n'), std::string_view::npos) << metric.name;
  }
}

TEST(MetricTable, IsDocumented) {
  const auto sections = sections_of_page();
  for (const MetricEntry& metric : metric_table()) {
    const auto found = sections.find(std::string(metric.name));
    ASSERT_NE(found, sections.end()) << "docs/metrics.md has no section ## `" << metric.name << "`";
    for (const char* part : {"**Definition.**", "**Range, unit.**", "**Scope.**", "**Misleads**", "**Source.**", "**Code, test.**"}) {
      EXPECT_NE(found->second.find(part), std::string::npos) << metric.name << " has no " << part;
    }
    EXPECT_NE(found->second.find(metric.range), std::string::npos) << metric.name << ": the page gives another range than "
                                                                    << metric.range;
  }
}

TEST(MetricTable, HasEveryDocumentedMetric) {
  std::set<std::string> names;
  for (const MetricEntry& metric : metric_table()) names.emplace(metric.name);
  for (const auto& [name, text] : sections_of_page()) EXPECT_TRUE(names.contains(name)) << name;
}

}  // namespace
}  // namespace switchyard
