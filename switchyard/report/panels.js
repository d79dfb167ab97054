  // ---- Grids of small pictures: domain x expert tables and expert loads. -----------------------------------------------

  // Expert numbers below the columns, where they do not run into each other; hover and tables have them anyway.
  function hasRoomForNumbers(node, group) {
    return node.clientWidth >= 15 * group.numExperts + 60;
  }

  function drawShares(node, group, layer, label) {
    const position = layer.order.map((_, i) => i);
    const z = group.domains.map((_, d) => layer.order.map((e) => layer.shares[d][e]));
    const hover = group.domains.map((name, d) => layer.order.map((e) =>
      plotText(name) + "<br>expert " + e + "<br>" + format(100 * layer.shares[d][e], 1) + " % of its tokens"));
    drawPlot(node, [{
      type: "heatmap", x: position, y: group.domains.map((_, d) => d), z, text: hover, hoverinfo: "text",
      colorscale: shades(), zmin: 0, zmax: 1, showscale: false, xgap: 1, ygap: 1,
    }], {
      height: 20 * group.domains.length + 42, margin: { l: 12, r: 4, t: 6, b: 30 },
      xaxis: { tickvals: hasRoomForNumbers(node, group) ? position : [], ticktext: layer.order.map(String), tickfont: { size: 9 },
               tickangle: 0, showgrid: false, ticks: "", linecolor: "rgba(0,0,0,0)", fixedrange: true },
      yaxis: { tickvals: group.domains.map((_, d) => d), ticktext: group.domains.map((name) => plotText(shorten(name, 14))),
               tickfont: { size: 11 }, autorange: "reversed", showgrid: false, ticks: "", linecolor: "rgba(0,0,0,0)",
               fixedrange: true },
    }, label);
  }

  function sharesTable(group, layer, caption) {
    return tableOf(caption + "; per cent of the domain's tokens", ["Domain"].concat(layer.order.map((e) => "e" + e)),
      group.domains.map((name, d) => [name].concat(layer.order.map((e) => format(100 * layer.shares[d][e], 1)))));
  }

  function drawLoad(node, group, layer, label, color) {
    const order = layer.load.map((_, e) => e).sort((a, b) => layer.load[b] - layer.load[a] || a - b);
    drawPlot(node, [{
      type: "bar", x: order.map((_, i) => i), y: order.map((e) => layer.load[e]), marker: { color },
      text: order.map((e) => "expert " + e + "<br>" + format(layer.load[e], 2) + " of an even share"), hoverinfo: "text",
      textposition: "none",
    }], {
      height: 170, bargap: 0.25, margin: { l: 34, r: 4, t: 8, b: 28 },
      xaxis: { tickvals: hasRoomForNumbers(node, group) ? order.map((_, i) => i) : [], ticktext: order.map(String), tickfont: { size: 9 },
               tickangle: 0, showgrid: false, ticks: "", fixedrange: true },
      yaxis: { range: [0, group.maxLoad * 1.05], nticks: 5, fixedrange: true },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: cssColor("--text"), width: 1, dash: "dot" } }],
    }, label);
  }

  function loadTable(layer, caption) {
    return tableOf(caption + "; load relative to an even share", ["Expert", "Load"],
      layer.load.map((load, e) => [String(e), format(load, 3)]));
  }

  // One picture each for `items` of {run, layer, title, below}.
  function drawPanels(figure, group, items, kind) {
    const panels = figure.querySelector(".panels");
    while (panels.children.length > items.length) panels.lastElementChild.remove();
    while (panels.children.length < items.length) {
      panels.append(element("div", { className: "panel" }, element("h3"), element("div", { className: "plot" })));
    }
    items.forEach((item, i) => {
      const [heading, plot] = panels.children[i].children;
      heading.replaceChildren(markOf(group, item.run.arm), item.title, element("small", { textContent: item.below }));
      if (kind === "load") {
        drawLoad(plot, group, item.layer, "Load of the experts: " + item.title + ", " + item.below,
                 cssColor(group.arms[item.run.arm].color));
      } else {
        drawShares(plot, group, item.layer, "Domain by expert: " + item.title + ", " + item.below);
      }
    });
    offerNumbers(figure, () => items.map((item) => kind === "load"
      ? loadTable(item.layer, item.title + ", " + item.below) : sharesTable(group, item.layer, item.title + ", " + item.below)));
  }

  function measured(group) {
    return group.runs.filter((run) => run.evaluation && run.evaluation.layers.length > 0);
  }

  // The arm's run with this seed, else its first one: a missing seed must not make an arm vanish. The title says which it is.
  function runOfArm(group, arm, seed) {
    const runs = measured(group).filter((run) => run.arm === arm);
    return runs.find((run) => run.seed === seed) || runs[0];
  }

  // A grid over the arms, with a choice of seed and layer.
  function setUpArmPanels(group, figure, kind) {
    const seeds = Array.from(new Set(measured(group).map((run) => run.seed))).sort((a, b) => a - b);
    if (seeds.length === 0) return say(figure.querySelector(".panels"), "No run was evaluated with expert counts.");
    const state = { seed: seeds[0], layer: Math.floor(group.numLayers / 2) };
    const draw = () => {
      const runs = group.arms.map((_, arm) => runOfArm(group, arm, state.seed)).filter(Boolean);
      drawPanels(figure, group, runs.map((run) => {
        const layer = run.evaluation.layers[state.layer];
        const value = kind === "load" ? "MaxVio " + format(layer.maxVio, 2) + ", " + format(layer.dead, 0) + " dead"
                                      : "S " + format(layer.specialization, 2);
        return { run, layer, title: group.arms[run.arm].label,
                 below: "seed " + run.seed + ", layer " + layer.layer + ", " + value + (run.done ? "" : ", unfinished") };
      }), kind);
    };
    const controls = figure.querySelector(".controls");
    addSelect(controls, "Seed", seeds.map(String), 0, (i) => { state.seed = seeds[i]; draw(); });
    addSelect(controls, "Layer", layerNames(group), state.layer, (i) => { state.layer = i; draw(); });
    group.draws.push(draw);
  }

  // A grid over the layers of one run.
  function setUpLayerPanels(group, figure) {
    const runs = measured(group);
    if (runs.length === 0) return say(figure.querySelector(".panels"), "No run was evaluated with expert counts.");
    let chosen = 0;
    const draw = () => {
      const run = runs[chosen];
      drawPanels(figure, group, run.evaluation.layers.map((layer) => ({
        run, layer, title: "Layer " + layer.layer,
        below: runLabel(group, run) + ", S " + format(layer.specialization, 2),
      })), "shares");
    };
    addSelect(figure.querySelector(".controls"), "Run", runs.map((run) => runLabel(group, run)), 0, (i) => { chosen = i; draw(); });
    group.draws.push(draw);
  }

  function layerNames(group) {
    return measured(group)[0].evaluation.layers.map((layer) => String(layer.layer));
  }

  function drawScale(node, group) {
    const even = group.numChosen / group.numExperts;
    const stops = shades().map(([at, color]) => color + " " + 100 * at + "%").join(", ");
    const bar = element("span", { className: "bar" }, element("span", { className: "even" }));
    bar.style.background = "linear-gradient(to right, " + stops + ")";
    bar.firstElementChild.style.left = 100 * even + "%";
    node.replaceChildren("none", bar, "all of its tokens");
    node.append(element("span", { textContent: "\u2502 mark: spread evenly, " + format(100 * even, 1) + " %" }));
  }

