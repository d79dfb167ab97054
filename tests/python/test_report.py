"""The HTML report in a real browser: drawn, quiet, alone, in both themes, narrow, by keyboard and on paper."""

import base64
import functools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from browser import Browser, Page

TOOL = Path(os.environ["SWITCHYARD_BUILD_DIR"]) / "tests" / "report" / "make_report_fixtures"
REPORTS = ("demo", "nasty", "interrupted", "groups")
ATTACK = "</script><img src=x onerror=\"document.title='broken'\"><b>&amp;'\"%{x}{{page}}"
DOMAINS, EXPERTS, CHOSEN, LAYERS, ARMS = 8, 16, 2, 4, 7


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reports")
    subprocess.run([TOOL, path], check=True)
    return path


@pytest.fixture(scope="session")
def browser():
    instance = Browser()
    yield instance
    instance.close()


@pytest.fixture
def open_report(browser, folder):
    pages = []

    def opened(name, **options):
        pages.append(Page(browser, folder / f"{name}.html", **options))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def shared(browser, folder):
    """Pages at their first state, for tests that only look."""
    return functools.cache(lambda name: Page(browser, folder / f"{name}.html"))


def last_evaluation(folder, run):
    records = [json.loads(line) for line in (folder / "demo" / run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "evaluation"][-1]


def resized(page, width):
    """Changes the width and waits until the charts are drawn anew: the page redraws once after the last change."""
    plot = "document.querySelector('[data-chart=balance] .plot')"
    page.run(f"window.drawn = new Promise((done) => {plot}.on('plotly_afterplot', done)); 0")
    page.resize(width)
    page.run("window.drawn.then(() => 0)")


def set_scheme_and_wait(page, scheme):
    """Changes the system's colours and waits until the page was told: its own listener is the older one and runs first."""
    query = "window.query = matchMedia('(prefers-color-scheme: dark)')"
    page.run(f"window.told = new Promise((done) => ({query}).addEventListener('change', done)); 0")
    page.set_scheme(scheme)
    page.run("window.told.then(() => 0)")


@pytest.mark.parametrize("name", REPORTS)
def test_is_quiet_and_asks_for_nothing(shared, name):
    page = shared(name)
    assert page.run("document.documentElement.dataset.drawn") == "true"
    assert page.complaints() == []
    assert page.requests() == [page.url]


def test_the_watch_on_requests_and_errors_works(open_report):
    page = open_report("interrupted")
    page.run("fetch('http://example.com/x').catch(() => 0)")
    page.run("console.error('seen'); new Image().src = 'http://example.com/y.png'; 0")
    assert any("Content Security Policy" in text for text in page.complaints())
    assert any("seen" in text for text in page.complaints())


def test_every_chart_of_the_demo_is_drawn(shared):
    page = shared("demo")
    charts = page.run("""Array.from(document.querySelectorAll('figure[data-chart]')).map((figure) => ({
        name: figure.dataset.chart, hidden: figure.hidden, caption: figure.querySelector('figcaption').textContent.length,
        plots: Array.from(figure.querySelectorAll('.plot')).map((plot) => ({
          traces: plot.data ? plot.data.length : 0, label: plot.getAttribute('aria-label') || '', role: plot.getAttribute('role'),
          width: plot.querySelector('svg.main-svg').clientWidth,
          drawn: plot.querySelectorAll('.heatmaplayer image, .scatterlayer .trace path, .barlayer .point path').length}))}))""")
    plots = {chart["name"]: len(chart["plots"]) for chart in charts}
    assert plots == {"balance": 1, "loss": 1, "arms": ARMS, "layers": LAYERS, "distance": 1, "curve-loss": 1, "curve-lbl": 1,
                     "curve-step": 1, "curve-micro": 1, "curve-specialization": 1, "load": ARMS}
    for chart in charts:
        assert not chart["hidden"] and chart["caption"] > 60
        for plot in chart["plots"]:
            assert plot["role"] == "img" and len(plot["label"]) > 20
            assert plot["traces"] > 0 and plot["drawn"] > 0 and plot["width"] > 150, (chart["name"], plot)


def test_a_heat_map_shows_the_log(shared, folder):
    counts = last_evaluation(folder, "optimizer_batch-seed0")["layers"][2]["counts"]
    shares = [[CHOSEN * count / sum(row) for count in row] for row in counts]
    home = [max(range(DOMAINS), key=lambda d: shares[d][e]) for e in range(EXPERTS)]
    order = sorted(range(EXPERTS), key=lambda e: (home[e], -shares[home[e]][e]))
    page = shared("demo")
    plot = "document.querySelector('[data-chart=arms] .panel .plot')"
    assert page.run(f"{plot}.layout.xaxis.ticktext") == [str(e) for e in order]
    shown = page.run(f"{plot}.data[0].z")
    for d in range(DOMAINS):
        assert shown[d] == pytest.approx([shares[d][e] for e in order], rel=1e-3)


def test_the_summary_shows_the_means_of_the_logs(shared, folder):
    page = shared("demo")
    rows = page.run("""Array.from(document.querySelectorAll('#g0-summary ~ .scroll tbody tr')).map((row) =>
        Array.from(row.children).map((cell) => cell.firstChild.nodeName === 'svg' ? cell.childNodes[1].textContent
                                                                                 : cell.firstChild.textContent))""")
    row = next(row for row in rows if row[0] == "micro_batch")
    runs = [last_evaluation(folder, f"micro_batch-seed{seed}") for seed in (0, 1)]
    assert row[1] == "0, 1"
    assert row[2] == f"{sum(run['specialization'] for run in runs) / 2:.3f}".replace("-", "\u2212")
    assert row[3] == f"{sum(run['global']['max_vio'] for run in runs) / 2:.2f}"
    assert row[6] == f"{sum(run['loss'] for run in runs) / 2:.3f}"
    kinds = [row[0] for row in rows if len(row) == 1]
    assert [kind.split(":")[0] for kind in kinds] == ["Trained routers", "Floors", "Ceiling"]


def test_choices_change_the_pictures(open_report):
    page = open_report("demo")
    heading = "document.querySelector('[data-chart=arms] .panel h3').textContent"
    assert "seed 0, layer 2" in page.run(heading)
    page.run("""document.querySelectorAll('[data-chart=arms] select').forEach((select) => {
        select.value = select.options.length - 1; select.dispatchEvent(new Event('change')); })""")
    assert "seed 1, layer 3" in page.run(heading)
    # An arm without this seed shows the one it has, and says so.
    assert "seed 0, layer 3" in page.run("document.querySelectorAll('[data-chart=arms] .panel h3')[2].textContent")
    run = "document.querySelector('[data-chart=layers] select')"
    page.run(f"{run}.value = 2; {run}.dispatchEvent(new Event('change'))")
    assert "micro_batch, seed 0" in page.run("document.querySelector('[data-chart=layers] .panel h3').textContent")


def test_keys_hide_an_arm_in_all_charts(open_report):
    page = open_report("demo")
    traces = "document.querySelector('[data-chart=\"%s\"] .plot').data.length"
    before = [page.run(traces % name) for name in ("balance", "loss", "curve-step")]
    page.run("document.querySelector('[data-key] .key button').click()")
    assert [page.run(traces % name) for name in ("balance", "loss", "curve-step")] == [count - 2 for count in before]
    assert page.run("document.querySelectorAll('.key button[aria-pressed=false]').length") == 2


def test_numbers_stand_behind_every_chart(open_report):
    page = open_report("demo")
    tables = page.run("""(() => { const counts = {};
        document.querySelectorAll('figure[data-chart]').forEach((figure) => {
          const details = figure.querySelector('details.numbers'); details.open = true; counts[figure.dataset.chart] = details; });
        return new Promise((done) => setTimeout(() => done(Object.fromEntries(Object.entries(counts).map(([name, details]) =>
          [name, details.querySelectorAll('tbody td').length]))), 0)); })()""")
    assert tables["arms"] == ARMS * DOMAINS * EXPERTS and tables["load"] == ARMS * EXPERTS
    assert all(count > 0 for count in tables.values())


def test_light_and_dark(open_report):
    page = open_report("demo", scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    text = "document.querySelector('[data-chart=balance] .plot').layout.font.color"
    dark = [page.run(background), page.run(text)]
    page.run("document.getElementById('theme').click()")
    light = [page.run(background), page.run(text)]
    assert light[0] == "rgb(255, 255, 255)"

    def brightness(color):
        return sum(int(part) for part in re.findall(r"\d+", color)[:3])

    assert brightness(dark[0]) < 150 < 600 < brightness(dark[1])
    assert brightness(light[1]) < 200
    page.run("document.getElementById('theme').click()")
    assert [page.run(background), page.run(text)] == dark


def test_follows_the_system_theme(open_report):
    page = open_report("demo")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    set_scheme_and_wait(page, "dark")
    assert page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert page.run("document.getElementById('theme').textContent") == "Light colours"


@pytest.mark.parametrize("name", REPORTS)
def test_fits_a_narrow_window(open_report, name):
    page = open_report(name, width=400)
    assert page.run("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", [1024, 1239, 1240, 1440])
def test_no_column_of_the_tables_is_out_of_sight(open_report, width):
    """Two seeds, so with brackets; eight domains."""
    page = open_report("demo", width=width)
    tables = page.run("""Object.fromEntries(Array.from(document.querySelectorAll('section > .scroll')).map((node) =>
        [node.getAttribute('aria-label'), node.scrollWidth - node.clientWidth]))""")
    assert {"Summary of the arms", "Paired differences", "Loss per domain", "Every run"} <= set(tables)
    assert [name for name, hidden in tables.items() if hidden > 0] == []


def test_a_table_that_is_too_wide_shows_it_and_keeps_the_names(open_report):
    page = open_report("demo", width=800)
    node = "document.querySelector('#g0-summary ~ .scroll')"
    edges = f"[{node}.getBoundingClientRect().left, {node}.querySelector('tbody th[scope=row]').getBoundingClientRect().left]"
    assert page.run(f"{node}.scrollWidth - {node}.clientWidth") > 20
    assert page.run(f"getComputedStyle({node}).backgroundImage").count("linear-gradient") == 4
    page.run(f"{node}.scrollLeft = 1000; 0")
    assert page.run(f"{node}.scrollLeft") > 20
    left, name = page.run(edges)
    assert name == pytest.approx(left, abs=1)


def test_headings_stand_over_their_columns(shared):
    misplaced = shared("demo").run("""Array.from(document.querySelectorAll('table')).flatMap((table) => {
        const heads = Array.from(table.querySelectorAll('thead th'));
        const row = Array.from(table.querySelectorAll('tbody tr')).find((row) => row.children.length === heads.length);
        const side = (cell) => getComputedStyle(cell).textAlign;
        return row ? heads.filter((head, i) => side(head) !== side(row.children[i])).map((head) => head.textContent) : []; })""")
    assert misplaced == []


def test_charts_follow_the_window(open_report):
    page = open_report("demo")
    width = "document.querySelector('[data-chart=balance] svg.main-svg').clientWidth"
    before = page.run(width)
    resized(page, 420)
    assert page.run(width) < before and page.run(width) <= 420


def test_prints_in_light_colours_and_comes_back(open_report):
    page = open_report("demo", scheme="dark")
    page.run("""addEventListener('beforeprint', () => { window.printed = {
        background: getComputedStyle(document.body).backgroundColor,
        widest: Math.max(...Array.from(document.querySelectorAll('svg.main-svg, table')).map((node) => node.getBoundingClientRect().right)),
        open: document.querySelectorAll('details.run[open]').length}; })""")
    pdf = base64.b64decode(page.command("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 25
    printed = page.run("window.printed")
    assert printed["background"] == "rgb(255, 255, 255)"
    assert printed["open"] == 9
    assert printed["widest"] <= 700
    assert page.run("document.querySelectorAll('details.run[open]').length") == 0
    assert page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_keyboard_reaches_skip_link_theme_and_tables(open_report):
    page = open_report("demo")
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.run("document.activeElement.className || document.activeElement.id || document.activeElement.tagName"))
    assert reached[0] == "skip" and reached[1] == "theme"
    assert "scroll" in reached and "SUMMARY" in reached
    page.run("document.querySelector('.skip').focus()")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "main"


@pytest.mark.parametrize("name", REPORTS)
def test_structure_is_semantic(shared, name):
    page = shared(name)
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.querySelectorAll('h1').length") == 1
    assert page.run("Array.from(document.querySelectorAll('table')).filter((table) => !table.caption).length") == 0
    assert page.run("document.querySelectorAll('th:not([scope])').length") == 0
    assert page.run("document.querySelectorAll('.js-plotly-plot:not([role=img][aria-label])').length") == 0
    ids = page.run("Array.from(document.querySelectorAll('[id]')).filter((node) => !node.closest('svg')).map((node) => node.id)")
    assert len(ids) == len(set(ids))
    targets = page.run("Array.from(document.querySelectorAll('a[href^=\"#\"]')).map((link) => link.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)
    levels = page.run("Array.from(document.querySelectorAll('h1, h2, h3, h4')).map((node) => Number(node.tagName[1]))")
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))


def test_nasty_names_stay_text(shared):
    page = shared("nasty")
    assert page.run("document.title") == ATTACK
    assert page.run("document.querySelectorAll('body img, a[href^=\"javascript\"]').length") == 0
    assert page.run("document.scripts.length") == 3
    assert page.run("document.querySelector('h1').textContent") == ATTACK
    options = page.run("Array.from(document.querySelectorAll('[data-chart=layers] option')).map((node) => node.textContent)")
    assert options == [ATTACK + ", seed 0"]
    ticks = page.run("""Array.from(document.querySelectorAll('[data-chart=distance] .ytick text')).map((node) => node.textContent)""")
    assert ticks == [ATTACK[:13] + "\u2026", "12", "<a href=\"java\u2026", "\u65e5\u672c"]


def test_hover_shows_nasty_names_as_text(open_report):
    page = open_report("nasty")
    plot = "document.querySelector('[data-chart=balance] .plot')"
    page.run(f"Plotly.Fx.hover({plot}, [{{curveNumber: 0, pointNumber: 0}}])")
    shown = page.run(f"{plot}.querySelector('.hoverlayer').textContent")
    assert "</script><img" in shown and "S 0." in shown
    assert page.complaints() == []


def test_an_interrupted_run_is_called_so(shared):
    page = shared("interrupted")
    text = page.run("document.body.innerText")
    assert "alone-seed3 is not finished (interrupted after step 40 of 300)" in text
    assert "No run was evaluated" in text
    assert page.run("document.querySelector('[data-chart=\"curve-loss\"] .plot').data[0].x.length") == 40
    assert page.run("document.querySelector('[data-chart=\"curve-specialization\"]').hidden")


def test_groups_stay_apart(shared):
    page = shared("groups")
    assert page.run("document.querySelectorAll('.group[data-group]').length") == 3
    assert "Numbers of different groups do not compare" in page.run("document.body.innerText")
    one_domain = "document.querySelector('.group[data-group=\"2\"] [data-chart=%s] .plot')"
    assert "at least two domains" in page.run((one_domain % "balance") + ".textContent")
    assert page.run((one_domain % "load") + ".data.length") == 1
