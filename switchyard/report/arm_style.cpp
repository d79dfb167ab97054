#include "switchyard/report/arm_style.hpp"

#include <array>
#include <string_view>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

struct Marker {
  std::string_view symbol;
  std::string_view path;  // in a box of 12 x 12
};

constexpr std::array<Marker, 8> kMarkers = {{
    {"circle", "M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z"},
    {"square", "M2 2h8v8h-8z"},
    {"diamond", "M6 .8L11.2 6L6 11.2L.8 6z"},
    {"triangle-up", "M6 1.2L11 10H1z"},
    {"triangle-down", "M6 10.8L11 2H1z"},
    {"cross", "M4.4 1h3.2v3.4H11v3.2H7.6V11H4.4V7.6H1V4.4h3.4z"},
    {"x", "M3 1l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z"},
    {"hexagon", "M6 1l4.4 2.5v5L6 11L1.6 8.5v-5z"},
}};
constexpr Marker kCeilingMarker = {"star", "M6 .6l1.6 3.5l3.8.4l-2.8 2.6l.8 3.8L6 9l-3.4 1.9l.8-3.8L.6 4.5l3.8-.4z"};
constexpr std::array<std::string_view, 3> kFloorDashes = {"dash", "dot", "dashdot"};
constexpr std::size_t kNumColors = 8;
constexpr std::string_view kOpen = "-open";

}  // namespace

std::vector<ArmStyle> arm_styles(const std::vector<StudyArm>& arms) {
  std::vector<ArmStyle> styles;
  std::size_t num_trained = 0;
  std::size_t num_floors = 0;
  for (const StudyArm& arm : arms) {
    switch (arm.kind) {
      case ArmKind::Trained:
        styles.push_back({join_text("--arm-", num_trained % kNumColors + 1),
                          std::string(kMarkers[(num_trained + num_trained / kNumColors) % kMarkers.size()].symbol),
                          num_trained < kNumColors ? "solid" : "longdash"});
        ++num_trained;
        break;
      case ArmKind::Floor:
        styles.push_back({"--floor", join_text(kMarkers[num_floors % kMarkers.size()].symbol, kOpen),
                          std::string(kFloorDashes[num_floors % kFloorDashes.size()])});
        ++num_floors;
        break;
      case ArmKind::Ceiling: styles.push_back({"--ceiling", std::string(kCeilingMarker.symbol), "solid"}); break;
    }
  }
  return styles;
}

std::string marker_svg(const ArmStyle& style) {
  const bool is_open = style.marker.ends_with(kOpen);
  const std::string_view symbol = std::string_view(style.marker).substr(0, style.marker.size() - (is_open ? kOpen.size() : 0));
  std::string_view path = kCeilingMarker.path;
  for (const Marker& marker : kMarkers) {
    if (marker.symbol == symbol) path = marker.path;
  }
  return join_text("<svg class=\"mark\" viewBox=\"0 0 12 12\" aria-hidden=\"true\"><path d=\"", path, "\" style=\"stroke:var(", style.color,
                   ");fill:", is_open ? "none" : "var(" + style.color + ")", "\"/></svg>");
}

}  // namespace switchyard
