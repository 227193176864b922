"""The page about many runs: what stands in it, and, in a real browser, that it works."""

import base64
import html
import json
import os
import re
import shutil
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from cells import small_config

import invbench
from invbench.errors import UserError
from invbench.reporting.page import DETAILED, report, write_report
from invbench.reporting.serving import Server
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import resolve
from invbench.runs.spec import RunSpec
from invbench.training.runner import run_one

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = (
    "the extra browser is not installed" if not find_spec("playwright") else "" if CHROMIUM else "there is no Chromium"
)
NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two methods with two seeds, and add a run that failed with a harmful message."""
    out = tmp_path_factory.mktemp("results")
    for method in ("erm", "and_mask"):
        for seed in (0, 1):
            run_one(small_config(method, "spirals", seed), Options(out=out))
    spec = small_config("vrex", "spirals").spec
    folder = RunFolder(out / spec.run_id)
    folder.create(spec)
    folder.write_record(Record.of_failure(spec, "oom", NASTY))
    return out


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return report([results])


def data_of(page: str) -> dict[str, object]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data: dict[str, object] = json.loads(match[1])
    return data


def test_it_needs_no_network(page: str) -> None:
    """Every source is in the page, and its own policy forbids others."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_it_tells_all(page: str, results: Path) -> None:
    assert "5 runs: 4 done, 1 failed" in page
    assert "bench run --method and_mask --dataset spirals --seeds 0-1 --set" in page
    assert re.search(rf"--seeds 0-1 --set [^<]* --out {results.name}<", page), "the same folder, so nothing is repeated"
    assert page.count("data:image/svg+xml;base64,") == 2, "curves and cost; nothing else has enough runs"
    assert "not in the table: 1 failed (oom)" in page
    assert "4 of 5 runs done, 1 failed" in page
    assert '<th scope="row">AND-mask</th>' in page
    assert "Bold: the best" in page


def test_only_some_runs(results: Path) -> None:
    page = report([results], where=["method=erm"])
    assert "2 runs: 2 done" in page
    assert ", method=erm</title>" in page
    assert f"{results.name} --where method=erm</code>" in page
    chosen = report([results], "test_loss", "oracle", ["method=erm"])
    assert f"{results.name} --where method=erm --metric test_loss --select oracle</code>" in chosen
    assert "AND-mask" not in page
    with pytest.raises(UserError, match="--where method=emr: no run has it; did you mean 'erm'"):
        report([results], where=["method=emr"])


def test_figures_are_for_light_and_dark_pages(page: str) -> None:
    """Nothing is behind the lines, and what is black is light where the page is dark."""
    for picture in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        drawn = base64.b64decode(picture).decode()
        background = re.search(r'<g id="patch_1">\s*<path [^>]*style="([^"]*)"', drawn)
        assert background
        assert "fill: none" in background[1] or "opacity: 0" in background[1]
        assert drawn.count("@media (prefers-color-scheme: dark) { svg { fill: #e4e7eb }") == 1


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


def texts(value: object) -> Iterator[str]:
    """Yield every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from texts(part)


def all_texts(page: str) -> str:
    """Return the text of the page and of the pictures in it."""
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(pictures) >= 2
    drawn = [base64.b64decode(picture).decode() for picture in pictures]
    return "\n".join([html.unescape(page), *texts(data_of(page)), *drawn])


def failed(out: Path, spec: RunSpec, error: BaseException) -> RunFolder:
    """Write a run that failed with an error, as runs do."""
    folder = RunFolder(out / spec.run_id)
    folder.create(spec)
    trace = "".join(traceback.format_exception(error))
    folder.write_record(Record.of_failure(spec, "error", str(error)).model_copy(update={"traceback": trace}))
    folder.log.write_text(f"2026-01-01T00:00:00  failed: {error}\n", encoding="utf-8")
    return folder


def test_folders_of_this_machine_stay_out(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they were given, are in a setting, or are said in messages, tracebacks and logs."""
    out = tmp_path / "some folder" / "results"
    shutil.copytree(results, out)
    spec = resolve("erm", "tabular_nuisance", assignments={"dataset.table": "/home/ann/data/table.parquet"}).spec
    with pytest.raises(UserError) as caught:
        RunFolder(Path("/dev/null/some/run")).create(spec)
    folder = failed(out, spec, UserError(f"{caught.value}, {out}").with_traceback(caught.tb))
    failed(out, small_config("coral", "spirals").spec, UserError(f"{folder.log} is full"))
    monkeypatch.chdir(out.parent)
    for paths in ([out], [Path("results")], sorted(path for path in out.iterdir() if path.is_dir())):
        text = all_texts(report(paths))
        for hidden in (
            tmp_path,
            Path(__file__).parent.parent,
            Path(invbench.__path__[0]),
            Path(sys.prefix),
            "/home/ann",
        ):
            assert str(hidden) not in text
        assert "dataset.table=…/table.parquet" in text
        assert "cannot write to …/run" in text
        assert 'File "invbench/runs/folder.py", line' in text
    page = report([out])
    assert "<title>Results: results</title>" in page
    assert "bench plot curves results</code>" in page
    assert f"results/{folder.path.name}/log.txt is full" in page


def test_names_that_command_or_hide(tmp_path: Path, results: Path) -> None:
    """Control characters, text from right to left, formulas, and names that JavaScript has itself."""
    out = tmp_path / "results"
    shutil.copytree(results, out)
    for seed, name in enumerate(("__proto__", "%zz", "constructor")):
        folder = failed(out, small_config("vrex", "spirals", seed).spec, ValueError("\x1b[2J\u202e\0 and \n more"))
        folder.path.rename(out / name)
    for path in out.glob("*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["spec"]["method"] == "erm":
            record["spec"]["method"] = "a$\\frac$\x1b"
            path.write_text(json.dumps(record), encoding="utf-8")
    text = all_texts(report([out]))
    for harmful in (r"a$\frac$\x1b", "%zz", r"\x1b[2J\u202e\x00 and", "__proto__", "constructor"):
        assert harmful in text
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


def test_bad_input(tmp_path: Path, results: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run in .*empty"):
        report([tmp_path / "empty"])
    with pytest.raises(UserError, match="no run has the metric 'what'"):
        report([results], "what")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([results], tmp_path / "none" / "report.html")


def test_no_run_is_finished(tmp_path: Path) -> None:
    spec = small_config("erm", "spirals").spec
    RunFolder(tmp_path / spec.run_id).create(spec)
    page = report([tmp_path])
    assert "1 runs: 1 queued" in page
    assert "No run is finished yet." in page
    assert len(data_of(page)["runs"]) == 1  # type: ignore[arg-type]


def test_half_written_files(tmp_path: Path, results: Path) -> None:
    out = tmp_path / "results"
    shutil.copytree(results, out)
    first, second, third, *_ = sorted(path.parent for path in out.glob("*/curves.parquet"))
    (first / "curves.parquet").write_bytes(b"PAR1")
    (second / "spec.yaml").write_text("method: [")
    (third / "log.txt").write_bytes(b"\xff\xfe")
    with pytest.warns(UserWarning, match=r"curves.parquet cannot be understood"):
        assert "5 runs" in report([out])


def test_a_run_of_a_newer_version(tmp_path: Path, results: Path) -> None:
    """It is in the list, with the reason why it is in no table."""
    out = tmp_path / "results"
    shutil.copytree(results, out)
    newer = next(path for path in sorted(out.glob("*/record.json")) if '"done"' in path.read_text(encoding="utf-8"))
    newer.write_text(json.dumps(json.loads(newer.read_text(encoding="utf-8")) | {"schema_version": 99}))
    with pytest.warns(UserWarning, match="left out: .*newer invbench"):
        page = report([out])
    details = data_of(page)["details"]
    assert isinstance(details, dict)
    reason = f"results/{newer.parent.name}/record.json was written by a newer invbench"
    assert details[newer.parent.name]["message"].startswith(reason)
    assert "5 runs: 3 done, " in page
    assert "1 unreadable" in page


def test_logs_that_are_none(tmp_path: Path, results: Path) -> None:
    """Of a long one the end is read; a pipe is not waited for."""
    out = tmp_path / "results"
    shutil.copytree(results, out)
    long, pipe, folder, link, *_ = [path / "log.txt" for path in sorted(out.iterdir()) if path.is_dir()]
    for path in (long, pipe, folder, link):
        path.unlink(missing_ok=True)
    with long.open("wb") as file:
        file.truncate(10**12)  # no disk is that large: a hole
        file.seek(0, 2)
        file.write("\nthe énd".encode())
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to("/dev/zero")
    details = data_of(report([out]))["details"]
    assert isinstance(details, dict)
    logs = {path.parent: details[path.parent.name]["log"] for path in (long, pipe, folder, link)}
    assert logs.pop(long.parent).endswith("the énd")
    assert set(logs.values()) == {""}


def test_more_runs_than_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    monkeypatch.setattr("invbench.reporting.page.DETAILED", 2)
    page = report([results])
    assert "3 runs are in the list without their details" in page
    details = data_of(page)["details"]
    assert isinstance(details, dict)
    assert len(details) == 2 < DETAILED
    assert any(one["kind"] == "oom" for one in details.values()), "failed ones first"


def test_twelve_visitors_at_once_get_one_page(results: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """But for the time at which it was made: figures are drawn by one thread at a time."""
    with Server(lambda: report([results]), 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def visit(_: int) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.server_address[1]}/", timeout=120) as answer:
                return re.sub(r"made \S+ by", "", answer.read().decode())

        with ThreadPoolExecutor(12) as pool:
            pages = set(pool.map(visit, range(12)))
        running.shutdown()
        thread.join()
    assert len(pages) == 1
    assert "5 runs: 4 done" in pages.pop()
    assert capfd.readouterr().err == ""


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
    """Open the page on a large light screen and a small dark one, and check that the browser reports no error."""
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


def column(opened: "Page", table: str, number: int) -> list[str]:
    return opened.locator(f"#{table} tbody tr:visible > :nth-child({number})").all_inner_texts()


def sort_and_filter(opened: "Page") -> None:
    assert column(opened, "summary", 1) == ["AND-mask", "ERM"]
    sort = opened.locator("#summary").get_by_role("button", name="Method", exact=True)
    sort.focus()
    opened.keyboard.press("Enter")
    opened.keyboard.press("Enter")
    assert column(opened, "summary", 1) == ["ERM", "AND-mask"]
    assert sort.locator("..").get_attribute("aria-sort") == "descending"
    opened.locator("[data-filters=summary]").fill("mask")
    assert column(opened, "summary", 1) == ["AND-mask"]


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
    opened.wait_for_url(lambda url: not urlsplit(url).fragment)


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
