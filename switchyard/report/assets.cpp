#include "switchyard/report/assets.hpp"

// The assembler copies the files: a 5 MB array literal would cost the compiler a minute. The macros hold paths and come from
// CMakeLists.txt. Labels carry our prefix because they are visible to the linker.
#define SWITCHYARD_EMBED(label, path)                                                      \
  __asm__(".pushsection .rodata\n"                                                         \
          ".global switchyard_asset_" #label "\n"                                          \
          ".global switchyard_asset_" #label "_end\n"                                      \
          "switchyard_asset_" #label ":\n"                                                 \
          ".incbin \"" path "\"\n"                                                         \
          "switchyard_asset_" #label "_end:\n"                                             \
          ".byte 0\n"                                                                      \
          ".popsection\n");                                                                \
  extern "C" const char switchyard_asset_##label[];                                        \
  extern "C" const char switchyard_asset_##label##_end[]

SWITCHYARD_EMBED(plotly, SWITCHYARD_PLOTLY_PATH);
SWITCHYARD_EMBED(script, SWITCHYARD_SCRIPT_PATH);
SWITCHYARD_EMBED(style, SWITCHYARD_REPORT_FOLDER "/report.css");
SWITCHYARD_EMBED(page, SWITCHYARD_REPORT_FOLDER "/page.html");
SWITCHYARD_EMBED(group, SWITCHYARD_REPORT_FOLDER "/group.html");
SWITCHYARD_EMBED(definitions, SWITCHYARD_REPORT_FOLDER "/definitions.html");

namespace switchyard {

ReportAssets report_assets() {
  const auto view = [](const char* begin, const char* end) { return std::string_view(begin, end); };
  return {.plotly = view(switchyard_asset_plotly, switchyard_asset_plotly_end),
          .script = view(switchyard_asset_script, switchyard_asset_script_end),
          .style = view(switchyard_asset_style, switchyard_asset_style_end),
          .page = view(switchyard_asset_page, switchyard_asset_page_end),
          .group = view(switchyard_asset_group, switchyard_asset_group_end),
          .definitions = view(switchyard_asset_definitions, switchyard_asset_definitions_end)};
}

}  // namespace switchyard
