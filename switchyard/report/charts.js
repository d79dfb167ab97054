  // ---- Charts over runs and steps. A group of the JSON is
  // {domains, numLayers, numExperts, numChosen, arms: [{label, kind, color, marker, dash}], runs: [{name, arm, seed, done, state,
  //  curve: {window, step, loss, lbl, maxVioStep, maxVioMicroBatch}, history: [{step, specialization, maxVio, loss}],
  //  evaluation: null | {step, specialization, maxVio, maxVioMicroBatch, loss,
  //                      layers: [{layer, specialization, maxVio, dead, shares, order, load, distance}]}}]}

  function isShown(group, run) {
    return !group.hidden.has(run.arm);
  }

  // S of every run against another of its numbers.
  function setUpScatter(group, figure, field, title) {
    const plot = figure.querySelector(".plot");
    const runs = group.runs.filter((run) => run.evaluation && run.evaluation.specialization !== null && run.evaluation[field] !== null);
    if (runs.length === 0) return say(plot, "No run has a held-out S: it needs an evaluation and at least two domains.");
    const bounds = [0, 1].map((y) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: cssColor("--quiet"), width: 1, dash: "dot" } }));
    group.draws.push(() => {
      const shown = runs.filter((run) => isShown(group, run));
      bounds.forEach((line) => { line.line.color = cssColor("--quiet"); });
      const traces = shown.map((run) => ({
        type: "scatter", mode: "markers", x: [run.evaluation[field]], y: [run.evaluation.specialization], hoverinfo: "text",
        text: [plotText(runLabel(group, run)) + "<br>S " + format(run.evaluation.specialization, 3) + "<br>" + title + " " +
               format(run.evaluation[field], 3)],
        marker: { size: 11, symbol: group.arms[run.arm].marker, color: cssColor(group.arms[run.arm].color), opacity: run.done ? 0.9 : 0.35,
                  line: { width: 1.5, color: cssColor(group.arms[run.arm].color) } },
      }));
      drawPlot(plot, traces, {
        height: 380, shapes: bounds, xaxis: { title: { text: title, standoff: 10 }, nticks: 7 },
        yaxis: { title: { text: "S, specialisation", standoff: 6 }, nticks: 8 },
        annotations: [["null", 0, "top"], ["attainable", 1, "bottom"]].map(([text, y, yanchor]) => ({
          text, y, x: 1, xref: "paper", xanchor: "right", yanchor, showarrow: false, font: { size: 11, color: cssColor("--quiet") } })),
      }, "Specialisation against " + title + ", one mark a run; the numbers are in the table below the chart");
    });
    offerNumbers(figure, () => [tableOf("Specialisation and " + title, ["Run", "S", title],
      runs.map((run) => [runLabel(group, run), format(run.evaluation.specialization, 3), format(run.evaluation[field], 3)]))]);
  }

  function setUpCurve(group, figure, points, title, digits) {
    const curves = group.runs.map((run) => ({ run, points: points(run) }))
      .filter((curve) => curve.points.y.some((y) => y !== null && y !== undefined));
    if (curves.length === 0) {
      figure.hidden = true;
      return;
    }
    const window = Math.max(...curves.map((curve) => curve.points.window));
    if (window > 1) figure.querySelector("figcaption").append(" Each point is the mean of up to " + window + " steps.");
    group.draws.push(() => {
      const traces = curves.filter((curve) => isShown(group, curve.run)).map((curve) => {
        const arm = group.arms[curve.run.arm];
        return {
          type: "scatter", mode: curve.points.marks ? "lines+markers" : "lines", x: curve.points.x, y: curve.points.y, opacity: 0.85,
          line: { color: cssColor(arm.color), width: 1.4, dash: arm.dash }, marker: { symbol: arm.marker, size: 7 }, hoverinfo: "text",
          text: curve.points.x.map((x, i) => plotText(runLabel(group, curve.run)) + "<br>step " + x + "<br>" + title + " " +
                                             format(curve.points.y[i], digits)),
        };
      });
      drawPlot(figure.querySelector(".plot"), traces, {
        height: 300, xaxis: { title: { text: "optimizer steps", standoff: 8 }, nticks: 7 },
        yaxis: { title: { text: title, standoff: 6 }, nticks: 6 },
      }, title + " over the optimizer steps, one line a run; the numbers are in the table below the chart");
    });
    offerNumbers(figure, () => [tableOf(title + " at the first, middle and last point", ["Run", "First", "Middle", "Last"],
      curves.map(({ run, points: { y } }) =>
        [runLabel(group, run)].concat([0, Math.floor(y.length / 2), y.length - 1].map((i) => format(y[i], digits)))))]);
  }

  function fromCurve(field) {
    return (run) => ({ x: run.curve.step, y: run.curve[field], window: run.curve.window, marks: false });
  }

  function setUpCurves(group, find) {
    setUpCurve(group, find("curve-loss"), fromCurve("loss"), "training loss", 3);
    setUpCurve(group, find("curve-lbl"), fromCurve("lbl"), "LBL at its own scope", 3);
    setUpCurve(group, find("curve-step"), fromCurve("maxVioStep"), "MaxVio, whole step", 2);
    setUpCurve(group, find("curve-micro"), fromCurve("maxVioMicroBatch"), "MaxVio, micro-batch", 2);
    // One evaluation at the end is no curve; the summary has it.
    const several = group.runs.some((run) => run.history.length > 1);
    setUpCurve(group, find("curve-specialization"), (run) => ({
      x: run.history.map((point) => point.step), y: several ? run.history.map((point) => point.specialization) : [], window: 1, marks: true,
    }), "S, held-out", 3);
  }

  function meanTable(tables) {
    // A layer without the number leaves the mean without one: null would count as 0, which means "the same experts".
    const mean = (i, j) => tables.some((table) => table[i][j] === null) ? null :
      tables.reduce((sum, table) => sum + table[i][j], 0) / tables.length;
    return tables[0].map((row, i) => row.map((_, j) => mean(i, j)));
  }

  function setUpDistance(group, figure) {
    const plot = figure.querySelector(".plot");
    const runs = measured(group).filter((run) => run.evaluation.layers.every((layer) => layer.distance.length > 1));
    if (runs.length === 0) return say(plot, "No run has distances: they need an evaluation and at least two domains.");
    const state = { run: 0, layer: 0 };
    const chosen = () => {
      const layers = runs[state.run].evaluation.layers;
      return state.layer === 0 ? meanTable(layers.map((layer) => layer.distance)) : layers[state.layer - 1].distance;
    };
    const names = group.domains.map((name) => plotText(shorten(name, 14)));
    const indices = names.map((_, i) => i);
    const layers = ["mean of layers"].concat(layerNames(group));
    group.draws.push(() => {
      const z = chosen();
      const title = runLabel(group, runs[state.run]) + ", " + (state.layer === 0 ? "" : "layer ") + layers[state.layer];
      figure.querySelector(".chosen").replaceChildren(markOf(group, runs[state.run].arm), title);
      const few = names.length <= 10 && plot.clientWidth >= 480;
      drawPlot(plot, [{
        type: "heatmap", x: indices, y: indices, z, zmin: 0, zmax: Math.LN2, colorscale: shades(), showscale: false, xgap: 1, ygap: 1,
        text: z.map((row) => row.map((value) => format(value, 2))), texttemplate: few ? "%{text}" : "", textfont: { size: 10.5 },
        customdata: z.map((row, i) => row.map((value, j) => names[i] + "<br>" + names[j] + "<br>" + format(value, 3) + " nats")),
        hovertemplate: "%{customdata}<extra></extra>",
      }], {
        height: 70 + 34 * names.length, margin: { l: 12, r: 4, t: 6, b: 30 },
        xaxis: { tickvals: indices, ticktext: names, showgrid: false, ticks: "", linecolor: "rgba(0,0,0,0)", fixedrange: true },
        yaxis: { tickvals: indices, ticktext: names, autorange: "reversed", showgrid: false, ticks: "", linecolor: "rgba(0,0,0,0)",
                 fixedrange: true },
      }, "Pairwise Jensen-Shannon divergence of domains, " + title);
      offerNumbers(figure, () => [tableOf("Jensen-Shannon divergence in nats, " + title,
        ["Domain"].concat(group.domains), group.domains.map((name, i) => [name].concat(z[i].map((value) => format(value, 3)))))]);
    });
    const draw = group.draws[group.draws.length - 1];
    const controls = figure.querySelector(".controls");
    addSelect(controls, "Run", runs.map((run) => runLabel(group, run)), 0, (i) => { state.run = i; draw(); });
    addSelect(controls, "Layer", layers, 0, (i) => { state.layer = i; draw(); });
  }

