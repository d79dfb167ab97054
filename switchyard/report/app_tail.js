  // ---- Start -----------------------------------------------------------------------------------------------------------

  function setUpKeys(group, node) {
    const key = node.querySelector(".key");
    node.querySelectorAll("[data-key]").forEach((place) => place.append(key.cloneNode(true)));
    const buttons = Array.from(node.querySelectorAll(".key button"));
    buttons.forEach((button) => button.addEventListener("click", () => {
      const arm = Number(button.dataset.arm);
      if (!group.hidden.delete(arm)) group.hidden.add(arm);
      buttons.filter((other) => Number(other.dataset.arm) === arm)
        .forEach((other) => other.setAttribute("aria-pressed", String(!group.hidden.has(arm))));
      group.draws.forEach((draw) => draw());
    }));
  }

  function setUpGroup(group, index) {
    const node = document.querySelector(".group[data-group='" + index + "']");
    const find = (name) => node.querySelector("[data-chart='" + name + "']");
    Object.assign(group, { index, draws: [], hidden: new Set() });
    const loads = measured(group).flatMap((run) => run.evaluation.layers.flatMap((layer) => layer.load));
    group.maxLoad = loads.reduce((most, load) => Math.max(most, load), 1);  // too many for arguments of one call
    setUpKeys(group, node);
    setUpScatter(group, find("balance"), "maxVio", "MaxVio, global");
    setUpScatter(group, find("loss"), "loss", "held-out loss");
    node.querySelectorAll("[data-scale]").forEach((scale) => group.draws.push(() => drawScale(scale, group)));
    setUpArmPanels(group, find("arms"), "shares");
    setUpLayerPanels(group, find("layers"));
    setUpDistance(group, find("distance"));
    setUpCurves(group, find);
    setUpArmPanels(group, find("load"), "load");
  }

  function drawAll() {
    report.groups.forEach((group) => group.draws.forEach((draw) => draw()));
  }

  function setUpPrint() {
    addEventListener("beforeprint", () => {
      document.documentElement.classList.add("printing");
      document.querySelectorAll("details:not(.numbers)").forEach((details) => {
        details.wasOpen = details.open;
        details.open = true;
      });
      drawAll();
    });
    addEventListener("afterprint", () => {
      document.documentElement.classList.remove("printing");
      document.querySelectorAll("details:not(.numbers)").forEach((details) => { details.open = details.wasOpen; });
      drawAll();
    });
  }

  report.groups.forEach(setUpGroup);
  setUpThemeButton(drawAll);
  setUpPrint();
  drawAll();
  let width = document.documentElement.clientWidth;
  let timer = 0;
  addEventListener("resize", () => {
    if (width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 120);
  });
  document.documentElement.dataset.drawn = "true";
})();
