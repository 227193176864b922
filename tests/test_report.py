"""The page about many runs: what stands in it, and, in a real browser, that it works."""

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cells import small_cell

from invbench.errors import UserError
from invbench.records import Record, RunFolder
from invbench.report import DETAILED, report, server, write_report
from invbench.runner import Options, run_cell

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = (
    "the extra browser is not installed" if not find_spec("playwright") else "" if CHROMIUM else "there is no Chromium"
)
NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with two seeds, and a run that failed with a message that means harm."""
    out = tmp_path_factory.mktemp("results")
    for method in ("erm", "and_mask"):
        for seed in (0, 1):
            run_cell(small_cell(method, "spirals", seed), Options(out=out))
    spec = small_cell("vrex", "spirals").spec
    folder = RunFolder(out / spec.run_id)
    folder.create(spec)
    folder.write_record(Record.of_failure(spec, "oom", NASTY))
    return out


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return report([results])


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def test_it_needs_no_network(page: str) -> None:
    """Every source is in the page, and its own policy forbids others."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_it_tells_all(page: str) -> None:
    assert "5 runs: 4 done, 1 failed" in page
    assert "bench run --method and_mask --dataset spirals --seeds 0-1 --set" in page
    assert page.count("data:image/svg+xml;base64,") == 2, "curves and cost; nothing else has enough runs"
    assert "not in the table: 1 failed (oom)" in page


def test_its_data_are_those_of_the_runs(page: str, results: Path) -> None:
    data = data_of(page)
    runs, details = data["runs"], data["details"]
    assert isinstance(runs, list)
    assert isinstance(details, dict)
    assert {run["run"] for run in runs} == set(details) == {path.name for path in results.iterdir() if path.is_dir()}
    for run in runs:
        record = RunFolder(results / run["run"]).read_record()
        assert record is not None
        assert run["status"] == record.status
        assert run["test_accuracy"] == record.metrics.get("test_accuracy")
        assert details[run["run"]]["metrics"] == record.metrics
        assert details[run["run"]]["message"] == record.message


def test_names_that_mean_something_in_html(page: str) -> None:
    assert NASTY not in page
    assert "&lt;/script&gt;" in page


def test_bad_input(tmp_path: Path, results: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run in .*empty"):
        report([tmp_path / "empty"])
    with pytest.raises(UserError, match="no run has the metric 'what'"):
        report([results], "what")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([results], tmp_path / "none" / "report.html")


def test_no_run_is_finished(tmp_path: Path) -> None:
    spec = small_cell("erm", "spirals").spec
    RunFolder(tmp_path / spec.run_id).create(spec)
    page = report([tmp_path])
    assert "1 runs: 1 queued" in page
    assert "No run is finished yet." in page
    assert len(data_of(page)["runs"]) == 1  # type: ignore[arg-type]


def test_half_written_files(tmp_path: Path, results: Path) -> None:
    out = tmp_path / "results"
    shutil.copytree(results, out)
    first, second, third, *_ = sorted(path for path in out.iterdir() if path.is_dir())
    (first / "curves.parquet").write_bytes(b"PAR1")
    (second / "spec.yaml").write_text("method: [")
    (third / "log.txt").write_bytes(b"\xff\xfe")
    assert "5 runs" in report([out])


def test_more_runs_than_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    monkeypatch.setattr("invbench.report.DETAILED", 2)
    page = report([results])
    assert "3 runs are in the list without their details" in page
    details = data_of(page)["details"]
    assert isinstance(details, dict)
    assert len(details) == 2 < DETAILED
    assert any(one["kind"] == "oom" for one in details.values()), "failed ones first"


def test_it_is_served_to_this_machine_only(results: Path) -> None:
    with server(lambda: report([results]), 0) as running:
        host, port = running.server_address[:2]
        assert host == "127.0.0.1"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"5 runs: 4 done" in answer.read()
        for request in (
            urllib.request.Request(f"http://127.0.0.1:{port}/other"),
            urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "example.org"}),
        ):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(request)  # noqa: S310
        with pytest.raises(UserError, match=f"--port {port}: .*give another one"):
            server(lambda: "", port)
        running.shutdown()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(results: Path, page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(params=["desktop", "phone"])
def opened(browser: "Browser", file: Path, request: pytest.FixtureRequest) -> "Iterator[Page]":
    """The page in a browser that complains of nothing, on a large light screen and a small dark one."""
    phone = request.param == "phone"
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    opened = browser.new_page(viewport=size, color_scheme="dark" if phone else "light")  # type: ignore[arg-type]
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda one: complaints.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    opened.goto(file.as_uri())
    yield opened
    assert complaints == []
    assert opened.evaluate("window.broken") is None
    opened.close()


def column(opened: "Page", table: str, place: int) -> list[str]:
    return opened.locator(f"#{table} tbody tr:visible > :nth-child({place})").all_inner_texts()


def sort_and_filter(opened: "Page") -> None:
    assert column(opened, "summary", 1) == ["and_mask", "erm"]
    sort = opened.locator("#summary").get_by_role("button", name="method", exact=True)
    sort.focus()
    opened.keyboard.press("Enter")
    opened.keyboard.press("Enter")
    assert column(opened, "summary", 1) == ["erm", "and_mask"]
    assert sort.locator("..").get_attribute("aria-sort") == "descending"
    opened.locator("[data-filters=summary]").fill("mask")
    assert column(opened, "summary", 1) == ["and_mask"]


def list_of_runs(opened: "Page") -> None:
    assert opened.locator("#shown").inner_text() == "5 of 5 runs"
    opened.get_by_label("Status").select_option("failed")
    assert opened.locator("#shown").inner_text() == "1 of 5 runs"
    opened.get_by_label("Status").select_option("")
    opened.locator("#filter").fill("spirals ERM")
    assert column(opened, "list", 3) == ["erm", "erm"]
    opened.locator("#filter").fill("")
    opened.locator("#list").get_by_role("button", name="seed").click()
    seeds = [int(text) for text in column(opened, "list", 6)]
    assert seeds == sorted(seeds)


def one_run(opened: "Page") -> None:
    opened.get_by_label("Status").select_option("done")
    button = opened.locator("#list tbody button").first
    button.focus()
    opened.keyboard.press("Enter")
    dialog = opened.get_by_role("dialog")
    dialog.wait_for()
    text = dialog.inner_text()
    for part in (
        "bench run --method",
        "Metrics",
        "test_accuracy",
        "trainer.learning_rate",
        "fingerprint",
        "packages.torch",
    ):
        assert part in text
    assert dialog.locator("polyline").count() >= 2
    opened.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    opened.wait_for_function("location.hash === ''")


def failure(opened: "Page") -> None:
    opened.get_by_label("Status").select_option("failed")
    opened.locator("#list tbody button").first.click()
    assert NASTY in opened.get_by_role("dialog").inner_text()
    opened.reload()
    assert NASTY in opened.get_by_role("dialog").inner_text(), "the address leads to the run"
    opened.get_by_role("button", name="Close").click()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
def test_in_a_browser(opened: "Page", tmp_path: Path) -> None:
    sort_and_filter(opened)
    list_of_runs(opened)
    one_run(opened)
    failure(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.evaluate("window.innerWidth")
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    )
    assert len(opened.screenshot(path=tmp_path / "report.png", full_page=True)) > 20_000
