#pragma once
// The report's scripts, style and templates, part of the library so that `switchyard report` needs no file beside itself.

#include <string_view>

namespace switchyard {

struct ReportAssets {
  std::string_view plotly;       // plotly.min.js with its licence comment
  std::string_view script;       // our own scripts, joined
  std::string_view style;
  std::string_view page;         // template of the whole file
  std::string_view group;        // template of one group of comparable runs
  std::string_view definitions;  // what each number means and when it misleads
};

[[nodiscard]] ReportAssets report_assets();

}  // namespace switchyard
