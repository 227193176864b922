"""The page of the leaderboard: its numbers are those of standings, and, in a real browser, it works."""

import html
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest

from invbench.choices import Select
from invbench.errors import UserError
from invbench.leaderboard.build import RULES_IN_WORDS
from invbench.leaderboard.edition import Edition
from invbench.leaderboard.methods import knows
from invbench.leaderboard.overall import overall, ranking, sentence
from invbench.leaderboard.page import POINTS, page, write_page
from invbench.leaderboard.standings import standings
from invbench.leaderboard.verify import config_of
from invbench.results.rounding import rounded
from invbench.runs.commands import command_of
from invbench.runs.resolve import resolve

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = (
    "the extra browser is not installed" if not find_spec("playwright") else "" if CHROMIUM else "there is no Chromium"
)
NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\u202e"
BEST, LEFT_OUT, ORACLE = Select.best_validation, Select.leave_one_env_out, Select.oracle
STEPS = {"trainer.epochs": None, "trainer.steps": 4}
EDITION = Edition.parse(
    {
        "version": "test", "trials": 2, "seeds": "0-1", "fresh_seeds": "100-103",
        "ranges": {"trainer.learning_rate": {"low": 1e-3, "high": 1e-2}},
        "problems": {
            "spirals": {
                "what": NASTY, "dataset": "spirals", "left_out": 3,
                "set": {"trainer.steps": 4, "trainer.schedule": "constant", "dataset.environments": 3},
            },
            "penguins": {
                "what": "birds", "dataset": "penguins", "set": STEPS, "ranges": {"trainer.batch_size": [16, 32]},
                "impossible": {"fish": f"it takes too long {NASTY}"},
            },
            "toy": {"what": "two Gaussians", "dataset": "mi_toy", "set": STEPS},
            "later": {"what": "no rows yet", "dataset": "penguins", "set": STEPS},
        },
    },
    source="the edition",
)  # fmt: skip
MEANS = {
    "spirals": {"erm": 0.6, "vrex": 0.7, "irmv1": 0.5, "and_mask": 0.61},
    "penguins": {"erm": 0.9, "vrex": 0.91, "irmv1": 0.7, "coral": 0.9, "and_mask": 0.89},
    "toy": {"erm": 0.4, "rsc": 0.45},
}
SETTINGS = {"trainer.learning_rate": 0.002}


def made_up(name: str) -> pd.DataFrame:
    """Return rows of a problem: two trials of each method, and four fresh runs by each rule.

    On penguins all fresh runs of coral have failed; the oracle selects nothing for irmv1 on spirals.
    """
    problem, rng, rows = EDITION.problem(name), np.random.default_rng(len(name)), []
    rules = [BEST, *([LEFT_OUT] if problem.left_out else []), ORACLE]
    for number, (method, mean) in enumerate(MEANS[name].items()):
        common: dict[str, Any] = {
            "edition": "test", "problem": name, "method": method, "knows": knows(method), "status": "done",
            "code": "x", "kind": None, "data.metric": "test_accuracy", "data.primary": "accuracy",
            "data.higher_is_better": True,
            "best_validation.step": 4.0, "cost.wall_seconds": 1.5 + 7 * number, "data.fingerprint": "x",
        }  # fmt: skip
        for rate in (0.002, 0.004):
            score = {"best_validation.validation_accuracy": 0.9 - rate, "validation_accuracy": 0.9, "test_accuracy": 0}
            trial = {"stage": "search", "seed": 0, "run_id": "s", "best_validation.test_accuracy": mean - rate}
            rows.append(common | score | trial | {"trainer.learning_rate": rate})
        settings = EDITION.settings_of(method, problem) | SETTINGS
        for rule in rules:
            for seed in range(100, 104) if (name, method, rule) != ("spirals", "irmv1", ORACLE) else ():
                run_id = resolve(method, problem.dataset, seed, settings, protocol=rule).spec.run_id  # type: ignore[arg-type]
                value = mean + float(rng.normal(0, 0.01)) + 0.05 * (rule is ORACLE)
                score = {"best_validation.test_accuracy": value, "test_accuracy": value}
                fresh = {"stage": rule.value, "seed": seed, "run_id": run_id, "validation_accuracy": 0.8, **SETTINGS}
                broken: dict[str, Any] = (
                    {"status": "failed", "kind": "diverged"} if (name, method) == ("penguins", "coral") else {}
                )
                rows.append(common | score | fresh | {"best_validation.validation_accuracy": 0.8} | broken)
    table = pd.DataFrame(rows)
    return table.assign(test_distance_correlation=0.25) if name == "toy" else table


ROWS = {name: made_up(name) for name in MEANS}
CURVES = {
    name: pd.concat([
        pd.DataFrame({
            "method": method, "seed": seed, "step": range(1, 102), "validation": 0.9,
            "test": mean + seed / 1000 - 1 / np.arange(1, 102),
        }) for method, mean in MEANS[name].items() for seed in (100, 101)
    ]) for name in ("spirals", "penguins")
}  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    return page(EDITION, ROWS, CURVES)


@pytest.fixture(scope="module")
def data(text: str) -> dict[str, Any]:
    return data_of(text)


def data_of(text: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    content: dict[str, Any] = json.loads(match[1])
    return content


def test_it_needs_no_network(text: str) -> None:
    """Every source is in the page, and its own policy forbids others."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"], "a name of a language, not fetched"


def test_numbers_of_problems_are_those_of_standings(data: dict[str, Any]) -> None:
    heads = list(data["heads"]["standings"])
    for name, table in ROWS.items():
        for rule in (BEST, ORACLE):
            expected, rows = standings(table, rule), data["problems"][name]["standings"][rule]
            assert [row[0] for row in rows] == list(expected["method"])
            for (_, wanted), row in zip(expected.iterrows(), rows, strict=True):
                cells = dict(zip(heads, row, strict=True))
                assert cells["verdict"] == wanted["verdict"]
                if wanted["n"] == 0:
                    assert cells["mean"] == ["", None]
                    assert wanted["verdict"] == "failed in 4 of 4 runs"
                    continue
                assert cells["mean"] == [
                    rounded(wanted["mean"], wanted["half_width"]),
                    pytest.approx(wanted["mean"], rel=1e-5),
                ]
                assert cells["rank"][1] == wanted["rank"]
                assert cells["tuning"][1] == pytest.approx(wanted["tuning_seconds"])
                if wanted["method"] != "erm":
                    assert cells["vs ERM"][1] == pytest.approx(wanted["difference"], rel=1e-5)
                has_nuisance = not math.isnan(wanted["dependence"])
                assert cells["dependence"] == (["0.25", 0.25] if has_nuisance else ["", None])
    assert set(data["problems"]["penguins"]["standings"]) == {BEST, ORACLE}, "no environment is left out there"


def test_numbers_of_the_summary_are_those_of_overall(data: dict[str, Any], text: str) -> None:
    heads = list(data["heads"]["summary"])
    static = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(<th scope=\"row.*?)\n", text)
    ]
    for rule in RULES_IN_WORDS:
        expected, rows = overall(ROWS, rule), data["summary"][rule]
        assert [row[0] for row in rows] == list(expected["method"])
        for number, (_, wanted) in enumerate(expected.iterrows()):
            cells = dict(zip(heads, rows[number], strict=True))
            known = not math.isnan(wanted["mean_rank"])
            assert cells["mean rank"][1] == (pytest.approx(wanted["mean_rank"], rel=1e-5) if known else None)
            assert cells["top 3"][1] == (pytest.approx(wanted["top"], rel=1e-5) if known else None)
            assert cells["cost"][1] == pytest.approx(wanted["cost"], rel=1e-5)
            assert cells["problems"] == wanted["problems"]
            if wanted["method"] != "erm":
                assert [cells[name] for name in ("better", "same", "worse")] == [
                    wanted[name] for name in ("better", "same", "worse")
                ]
            if rule is BEST:
                assert static[number] == [str(cell[0] if isinstance(cell, list) else cell) for cell in rows[number]]
    assert len(static) == len(data["summary"][BEST])


def test_it_answers_in_words(text: str) -> None:
    words = html.unescape(text)
    assert f"6 methods on 3 of 4 problems, {sum(map(len, ROWS.values()))} runs" in words
    assert "the settings of its recipe and 2 random ones, each with the seeds 0-1" in words
    assert "run again with the seeds 100-103" in words
    order = sentence(ROWS)
    assert order
    assert f"{order[0].upper()}{order[1:]}." in words
    difference = ranking(ROWS, BEST, resamples=1).critical_difference
    assert f"mean ranks (Nemenyi, 5 %); they must be {difference:.1f} apart" in words
    assert "No rows yet of later." in words
    assert "Sorting, filters, other rules" in words


def test_cells_without_a_run_say_why(data: dict[str, Any]) -> None:
    def why(name: str, method: str, rule: Select = BEST) -> tuple[str, str]:
        brief, place = data["problems"][name]["missing"][rule][method]
        return brief, data["texts"][place]

    assert why("penguins", "fish")[0] == "impossible"
    assert why("penguins", "fish")[1].startswith("it takes too long")
    brief, reason = why("toy", "vrex")
    assert brief == "cannot run"
    assert reason.endswith("does not provide")
    assert "needs environments" in reason
    assert why("spirals", "coral") == ("not run", "it could be run here, and was not yet")
    assert why("penguins", "coral") == ("failed", "all 4 fresh runs of the selected settings failed (diverged)")
    assert why("spirals", "irmv1", ORACLE)[0] == "none selected"
    assert why("penguins", "vrex", LEFT_OUT)[0] == "no rule"
    for name in ROWS:
        for rule in data["rules"]:
            here = set(data["problems"][name]["details"].get(rule, {}))
            assert here ^ set(data["problems"][name]["missing"][rule]) == set(data["methods"]), "one or the other"


def test_every_number_has_its_command(data: dict[str, Any]) -> None:
    for name, table in ROWS.items():
        for rule, methods in data["problems"][name]["details"].items():
            for method, found in methods.items():
                runs = table[(table["stage"] == rule) & (table["method"] == method)]
                _, run = next(runs.iterrows())
                command = " --set ".join(data["texts"][place] for place in found["command"])
                assert command == command_of(config_of(EDITION, run).spec, [100, 101, 102, 103])
                assert [data["texts"][place] for place in found["settings"]] == ["trainer.learning_rate = 0.002"]
                values = dict(zip(runs["seed"].astype(str), runs["test_accuracy"], strict=True))
                assert found["seeds"] == pytest.approx(values, rel=1e-5)


def test_a_row_of_another_edition_has_no_command() -> None:
    rows = ROWS | {"toy": ROWS["toy"].assign(run_id="another")}
    data = data_of(page(EDITION, rows, {}))
    (place,) = data["problems"]["toy"]["details"][BEST]["rsc"]["command"]
    assert data["texts"][place].startswith("none: toy: run another of rsc is none of this edition")
    assert data["problems"]["toy"]["curves"] == {}


def test_curves_are_thin(data: dict[str, Any]) -> None:
    curve = data["problems"]["spirals"]["curves"]["vrex"]
    assert len(curve["step"]) == POINTS
    assert (curve["step"][0], curve["step"][-1]) == (1, 101)
    mean, least, largest = curve["test"]
    at = 7
    table = CURVES["spirals"].query(f"method == 'vrex' and step == {curve['step'][at]}")["test"]
    assert mean[at] == pytest.approx(table.mean(), rel=1e-3)
    assert (least[at], largest[at]) == (pytest.approx(table.min(), rel=1e-3), pytest.approx(table.max(), rel=1e-3))


def test_it_stays_small(text: str) -> None:
    """The page of 20 problems and 30 methods, as it would be if each cell were like those here."""
    empty = page(EDITION, {"toy": ROWS["toy"]}, {})
    cells = sum(len(MEANS[name]) for name in ("spirals", "penguins"))
    assert len(empty) + (len(text) - len(empty)) / cells * 20 * 30 < 3e6


def test_texts_of_strangers_are_texts(text: str, data: dict[str, Any]) -> None:
    assert NASTY not in text
    assert "</script><script>window" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "&lt;/script&gt;" in text
    assert data["problems"]["spirals"]["what"] == NASTY.replace("\u202e", r"\u202e")


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no rows with selected settings"):
        page(EDITION, {}, {})
    with pytest.raises(UserError, match="cannot be written"):
        write_page(EDITION, {"toy": ROWS["toy"]}, {}, tmp_path / "none" / "page.html")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no file, and is left as it is"):
        write_page(EDITION, {"toy": ROWS["toy"]}, {}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_one_problem_has_no_ranks(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_page(EDITION, {"toy": ROWS["toy"]}, {}, out)
    words = html.unescape(out.read_text(encoding="utf-8"))
    assert "There are no ranks by best_validation: that takes two methods on the same two problems." in words
    assert data_of(words)["difference"] == {BEST: None, ORACLE: None}


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=["desktop", "phone"])
def opened(browser: "Browser", text: str, request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[Tab]":
    """Open the page on a large light screen and a small dark one, and check that the browser reports no error."""
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    phone = request.param == "phone"
    size = {"width": 375, "height": 800} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(
        viewport=size,  # type: ignore[arg-type]
        color_scheme="dark" if phone else "light",
        permissions=["clipboard-read", "clipboard-write"],
    )
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda one: complaints.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    opened.goto(path.as_uri())
    yield opened
    assert complaints == []
    assert opened.evaluate("window.broken") is None
    context.close()


def column(opened: "Tab", table: str, number: int) -> list[str]:
    return opened.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()


def fits(opened: "Tab") -> None:
    """Only tables and figures scroll sideways."""
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.evaluate("window.innerWidth")


def sort_and_filter(opened: "Tab") -> None:
    first = list(overall(ROWS, BEST)["method"])
    assert column(opened, "summary-table", 1) == first
    for number, name in enumerate(("cost", "method"), start=1):
        head = opened.locator("#summary-table").get_by_role("button", name=name, exact=True)
        head.focus()
        opened.keyboard.press("Enter")
        if number == 2:
            opened.keyboard.press("Enter")
            assert column(opened, "summary-table", 1) == sorted(first, reverse=True)
            assert head.locator("..").get_attribute("aria-sort") == "descending"
        else:
            costs = [float(cell) for cell in column(opened, "summary-table", 10)]
            assert costs == sorted(costs)
    opened.get_by_label("Method", exact=True).fill("REX")
    assert column(opened, "summary-table", 1) == column(opened, "map-table", 1) == ["vrex"]
    opened.get_by_label("Method", exact=True).fill("")
    opened.get_by_label("Changes").select_option("the gradient")
    assert column(opened, "summary-table", 1) == ["and_mask"]
    opened.get_by_label("Changes").select_option("")
    opened.get_by_label("Knows").select_option("nothing")
    assert set(column(opened, "summary-table", 1)) == {"erm", "rsc"}
    opened.get_by_label("Knows").select_option("")
    opened.get_by_label("Largest cost").fill("1")
    assert column(opened, "summary-table", 1) == ["erm"]
    opened.get_by_label("Largest cost").fill("")
    assert opened.locator("#shown").inner_text() == f"{len(first)} of {len(first)} methods"


def rules(opened: "Tab") -> None:
    colours = "getComputedStyle(document.querySelector('#summary')).filter"
    assert opened.evaluate(colours) == "none"
    opened.get_by_label("Settings selected by").select_option(ORACLE)
    assert "Looks at the test data: no result" in opened.locator("#rule-words").inner_text()
    assert opened.evaluate(colours) == "grayscale(1)"
    assert set(column(opened, "summary-table", 1)) == set(overall(ROWS, ORACLE)["method"])
    cell = opened.get_by_role("button", name="irmv1 on spirals: none selected")
    assert cell.inner_text() == "none selected"
    opened.get_by_label("Settings selected by").select_option(BEST)
    assert opened.evaluate(colours) == "none"


def heat_map(opened: "Tab") -> None:
    """By keyboard: arrows, Enter, Escape; then the command is copied."""
    better = opened.get_by_role("button", name=re.compile("vrex on spirals: rank 1, better than ERM, "))
    assert better.inner_text() == "▲ 1"
    assert opened.get_by_role("button", name=re.compile("irmv1 on spirals: rank 4, worse")).inner_text() == "▼ 4"
    opened.get_by_label("Cells show").select_option("difference")
    assert re.fullmatch(r"▲ \+0\.\d+", better.inner_text())
    opened.locator("#map-table tbody button[tabindex='0']").focus()
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowLeft")
    focused = opened.evaluate("document.activeElement.dataset")
    second = column(opened, "map-table", 1)[1]
    assert focused == {"problem": "spirals", "method": second}
    opened.keyboard.press("Enter")
    dialog = opened.get_by_role("dialog", name=f"{second} on spirals")
    dialog.wait_for()
    shown = dialog.inner_text()
    for part in ("Fresh seeds", "trainer.learning_rate = 0.002", f"bench run --method {second} --dataset spirals"):
        assert part in shown
    assert "bench leaderboard verify --problem spirals" in shown
    dialog.get_by_role("button", name="Copy").first.click()
    dialog.get_by_text("Copied").wait_for()
    copied = opened.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"bench run --method {second} --dataset spirals --seeds 100-103 --set ")
    opened.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert opened.evaluate("document.activeElement.dataset.method") == second, "the focus is where it was"
    opened.get_by_role("button", name="fish on penguins: impossible").click()
    assert "it takes too long </script>" in opened.get_by_role("dialog").inner_text()
    opened.get_by_role("button", name="Close").click()


def one_problem(opened: "Tab") -> None:
    opened.locator("#map-table").get_by_role("link", name="penguins").click()
    opened.get_by_role("heading", name="penguins").wait_for()
    assert opened.title().startswith("penguins: ")
    assert not opened.locator("#main-view").is_visible()
    assert column(opened, "standings-table", 1) == list(standings(ROWS["penguins"], BEST)["method"])
    assert "dependence" not in opened.locator("#standings-table thead").inner_text(), "it has no nuisance"
    opened.locator("#standings-table").get_by_role("button", name="tuning").click()
    seconds = [float(text) for text in column(opened, "standings-table", 10)]
    assert seconds == sorted(seconds)
    assert opened.locator("polyline").count() == 2 * 3, "ERM and two others, in the test and in validation"
    opened.get_by_role("checkbox", name="coral").check()
    assert opened.locator("polyline").count() == 2 * 4
    assert opened.get_by_role("checkbox", name="erm").is_disabled()
    opened.locator("#standings-table tbody button").first.focus()
    opened.keyboard.press("Enter")
    assert "bench run --method erm --dataset penguins" in opened.get_by_role("dialog").inner_text()
    opened.keyboard.press("Escape")
    opened.get_by_label("Settings selected by").select_option(LEFT_OUT)
    opened.get_by_text("Nothing was selected by leave one environment out on this problem.").wait_for()
    opened.get_by_label("Settings selected by").select_option(BEST)
    fits(opened)
    assert min(opened.evaluate(CONTRASTS)) >= 4.5
    opened.reload()
    assert opened.get_by_role("heading", name="penguins").is_visible(), "the address leads to the problem"
    opened.get_by_role("link", name="all problems").click()
    opened.locator("#main-view").wait_for()
    assert urlsplit(opened.url).fragment == "problems"


CONTRASTS = """() => {
  const parts = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const light = (text) => parts(text).map((part) => part / 255)
    .map((part) => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
  const ground = (node) => { const colour = getComputedStyle(node).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentNode) : colour; };
  const texts = document.querySelectorAll("main button, main td, main th, main p, main a, main li, .bar p");
  return [...texts].map((node) => {
    const [first, second] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    return (first + .05) / (second + .05); });
}"""
OVERLAPS = """() => {
  const many = Array.from({ length: 26 }, (_, i) => ({ method: `long_name_of_method_${i}`, rank: 3 + (i * 7 % 26) / 2,
    cost: 10 ** ((i * 5 % 26) / 13) })).sort((a, b) => a.rank - b.rank);
  drawCost(many); drawCritical(many);
  return ["#cost text.name", "#critical .leader + text"].map((texts) => {
    const boxes = [...document.querySelectorAll(texts)].map((node) => node.getBoundingClientRect());
    const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
    return [boxes.length, boxes.filter((one, i) => boxes.slice(i + 1).some((other) => meet(one, other))).length]; });
}"""


def looks(opened: "Tab") -> None:
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    )
    for rule in (ORACLE, BEST):
        opened.get_by_label("Settings selected by").select_option(rule)
        assert min(opened.evaluate(CONTRASTS)) >= 4.5
    assert opened.locator("#critical svg, #cost svg").count() == 2
    assert opened.evaluate(OVERLAPS) == [[26, 0], [26, 0]]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
def test_in_a_browser(opened: "Tab", tmp_path: Path) -> None:
    fits(opened)
    sort_and_filter(opened)
    rules(opened)
    heat_map(opened)
    one_problem(opened)
    looks(opened)
    assert len(opened.screenshot(path=tmp_path / "page.png", full_page=True)) > 20_000


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
def test_without_scripts(browser: "Browser", text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    assert tab.locator("#summary-table tbody th").all_inner_texts() == list(overall(ROWS, BEST)["method"])
    assert tab.locator("noscript p").is_visible()
    assert not tab.locator("#map").is_visible()
    context.close()
