  // ---- Small helpers around Plotly and the document. -------------------------------------------------------------------

  // Plotly reads a little HTML in its texts (<b>, <a href>), and %{...} in hover templates.
  function plotText(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");
  }

  function shorten(text, length) {
    const characters = Array.from(text);
    return characters.length <= length ? text : characters.slice(0, length - 1).join("") + "\u2026";
  }

  function format(value, digits) {
    return value === null || value === undefined ? "\u2013" : value.toFixed(digits).replace("-", "\u2212");
  }

  function element(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  // A select with its label; `options` are strings, `onChange` gets the index.
  function addSelect(controls, label, options, chosen, onChange) {
    const select = element("select");
    options.forEach((text, i) => select.append(element("option", { value: i, textContent: text, selected: i === chosen })));
    select.addEventListener("change", () => onChange(Number(select.value)));
    controls.append(element("label", {}, label, select));
  }

  function baseLayout(overrides) {
    const axis = {
      gridcolor: cssColor("--rule"), zeroline: false, linecolor: cssColor("--quiet"), tickcolor: cssColor("--quiet"),
      ticks: "outside", ticklen: 4, automargin: true, title: { standoff: 10 },
    };
    return Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: cssColor("--text") },
      margin: { l: 56, r: 14, t: 14, b: 48 }, hovermode: "closest",
      hoverlabel: { bgcolor: cssColor("--raised"), bordercolor: cssColor("--rule"), font: { color: cssColor("--text"), size: 12 } },
    }, overrides, {
      xaxis: Object.assign({}, axis, overrides.xaxis), yaxis: Object.assign({}, axis, overrides.yaxis),
    });
  }

  // `label` is what a screen reader says in place of the picture.
  function drawPlot(node, traces, layout, label) {
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", label);
    const config = { displayModeBar: false, responsive: false, scrollZoom: false };
    Plotly.react(node, traces, Object.assign({ width: node.clientWidth || 300 }, baseLayout(layout)), config);
  }

  function say(node, text) {
    if (node.classList.contains("js-plotly-plot")) Plotly.purge(node);
    node.removeAttribute("role");
    node.removeAttribute("aria-label");
    node.replaceChildren(element("p", { className: "empty", textContent: text }));
  }

  function tableOf(caption, head, rows) {
    const headRow = element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text })));
    const bodyRows = rows.map((cells) => element("tr", {}, ...cells.map((text, i) =>
      element(i === 0 ? "th" : "td", Object.assign({ textContent: text }, i === 0 ? { scope: "row" } : {})))));
    const region = element("div", { className: "scroll", tabIndex: 0 }, element("table", {},
      element("caption", { textContent: caption }), element("thead", {}, headRow), element("tbody", {}, ...bodyRows)));
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", caption);
    return region;
  }

  // The numbers behind a chart, made when they are asked for. `tables` gives a list of tableOf.
  function offerNumbers(figure, tables) {
    let details = figure.querySelector(":scope > details.numbers");
    if (!details) {
      details = element("details", { className: "numbers" }, element("summary", { textContent: "Numbers behind this chart" }));
      details.addEventListener("toggle", () => fillNumbers(details));
      figure.append(details);
    }
    details.tables = tables;
    fillNumbers(details);
  }

  function fillNumbers(details) {
    const summary = details.firstElementChild;
    details.replaceChildren(summary, ...(details.open ? details.tables() : []));
  }

  function markOf(group, armIndex) {
    const mark = document.querySelector(".group[data-group='" + group.index + "'] .key button[data-arm='" + armIndex + "'] svg");
    return mark.cloneNode(true);
  }

  function runLabel(group, run) {
    return group.arms[run.arm].label + ", seed " + run.seed + (run.done ? "" : " (unfinished)");
  }

