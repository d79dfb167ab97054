  // ---- Theme: colours come from report.css, so that tables and charts agree. -------------------------------------------

  // light-dark() is resolved only on a real property of a real element.
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  function cssColor(name) {
    probe.style.color = "var(" + name + ")";
    return getComputedStyle(probe).color;
  }

  function isDark() {
    const root = document.documentElement;
    if (root.classList.contains("printing")) return false;
    if (root.dataset.theme !== "auto") return root.dataset.theme === "dark";
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  // One hue, from the page's ground to its strongest contrast, so that "more" is "further from the paper" in both themes.
  function shades() {
    return isDark()
      ? [[0, "#181f27"], [0.15, "#1c3c58"], [0.4, "#2c6c9e"], [0.7, "#7db8e4"], [1, "#f0f8ff"]]
      : [[0, "#f5f7f9"], [0.15, "#cfe1f0"], [0.4, "#79b0d8"], [0.7, "#2a6fae"], [1, "#082f5f"]];
  }

  function setUpThemeButton(onChange) {
    const button = document.getElementById("theme");
    const label = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      label();
      onChange();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { label(); onChange(); });
  }

