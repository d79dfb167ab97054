// Draws the charts of a report from the JSON in #report-data. Joined from app_head, theme, plot_base, panels, charts and
// app_tail by CMake. Names from data never reach innerHTML, and reach Plotly only through plotText.
(function () {
  "use strict";

  const report = JSON.parse(document.getElementById("report-data").textContent);
