"""The HTML report: whole, self-contained, accessible, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_runs import add, document, grid, lorsa_report

from lorsa.runner.report.html_runs import MOST_RUNS
from lorsa.runner.report.plot_curves import MOST_POINTS
from lorsa.runner.report.plot_curves import MOST_RUNS as MOST_CURVES

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = ("meta", "link", "br", "img", "input", "hr")


class Page(HTMLParser):
    """The elements of a page, each with its attributes, its text and the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "in": [each["tag"] for each in self.open], "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "in": [each["tag"] for each in self.open], "text": "", **dict(attributes)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, *tags: str) -> list[dict[str, Any]]:
        return [element for element in self.elements if element["tag"] in tags]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on two tasks; a failed run, a half-written one, an undefined score; names that want escaping."""
    folder = grid(tmp_path_factory.mktemp("page") / "runs", {"lora": 0.6, "head": 0.4}, ("cola", "rte"))
    for seed in range(3):
        add(folder, f"lora{EVIL}", "cola", seed, 0.7 + 0.01 * seed)
    add(folder, "lora", "stsb", 0, None)
    add(folder, "lora", "cola", 0, 0.9, is_demo=True, data_source="demo v1")
    gone = folder / ("f" * 16)
    gone.mkdir()
    failed = {"state": "failed", "method": "lora", "task": "mrpc", "seed": 1, "error": f"MemoryError: {EVIL}"}
    (gone / "status.json").write_text(json.dumps(failed | {"traceback": f"Traceback\n{EVIL}"}))
    half = add(folder, "lora", "mrpc", 0, 0.5) / "result.json"
    half.write_text(half.read_text()[:100])
    return folder


@pytest.fixture(scope="module")
def file(runs: Path) -> Path:
    path = runs.parent / "report.html"
    printed = lorsa_report(runs, "--baseline", "lora", "--html", path)
    assert f"HTML: {path}" in printed.replace("\n", "")
    return path


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_the_page_needs_no_other_file_and_no_network(file, page):
    text = file.read_text(encoding="utf-8")
    assert not page.all("link", "iframe", "object", "embed", "base")
    for element in page.elements:
        for attribute in ("src", "href", "xlink:href"):
            assert (element.get(attribute) or "#").startswith(("#", "data:image/png"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert file.stat().st_size < 1_000_000


def test_nothing_from_a_run_becomes_markup(file, page):
    assert "alert(1)</script>" not in file.read_text(encoding="utf-8")
    assert len(page.all("script")) == 1
    assert not [element for element in page.elements if any(name.startswith("on") for name in element)]
    assert any(EVIL in element["text"] for element in page.all("th"))


def test_every_table_can_be_read_by_a_screen_reader(page):
    tables = page.all("table")
    assert len(tables) >= 8
    assert len(page.all("caption")) == len(tables)
    assert {head["scope"] for head in page.all("th")} == {"row", "col"}
    hidden = [element["text"] for element in page.all("span") if element.get("class") == "hidden"]
    assert {"missing", "best"} <= set(hidden)


def test_every_figure_has_a_name_and_a_description_that_are_there(page):
    ids = Counter(element["id"] for element in page.elements if "id" in element)
    assert set(ids.values()) == {1}
    drawings = page.all("svg")
    assert len(drawings) >= 6
    for drawing in drawings:
        assert drawing["role"] == "img"
    for element in page.elements:
        for attribute in ("aria-labelledby", "aria-describedby"):
            assert set((element.get(attribute) or "").split()) <= ids.keys()
        if (element.get("href") or "").startswith("#"):
            assert element["href"][1:] in ids
    assert all(len(description["text"]) > 20 for description in page.all("desc"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(drawings)


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(element["tag"][1]) for element in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_colours_follow_the_reader(page, file):
    text = file.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#b0b0b0"}  # the grid; the rest are the style sheet's
    assert "var(--series-0)" in drawn


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_lines_contrast_with_what_is_behind_them(repository, scheme):
    css = (repository / "runner" / "report" / "report.css").read_text()
    colors = dict(
        re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[scheme])
    )

    def contrast(first: str, second: str) -> float:
        low, high = sorted((luminance(colors[first]), luminance(colors[second])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "soft", "link", "bad"):
        for behind in ("paper", "tint"):
            assert contrast(text, behind) >= 4.5, (text, behind)
    assert min(contrast("ink", "best"), contrast("soft", "best")) >= 4.5
    assert min(contrast(f"series-{number}", "paper") for number in range(8)) >= 3


def test_the_page_says_the_same_as_the_tables(runs, page):
    texts = [element["text"] for element in page.all("td")]
    for table in document(runs, "--baseline", "lora")["tables"]:
        for row in table["rows"]:
            for cell in row["scores"].values():
                if cell["mean"] is not None:
                    assert any(text.startswith(f"{cell['mean']:.1f}") for text in texts)
    assert page.all("h2")[0]["text"].startswith("GLUE")
    assert any("Demo: made-up rows" in element["text"] for element in page.all("h2"))


def test_failures_and_configs_are_there(page):
    errors = [element["text"] for element in page.all("details") if "Traceback" in element["text"]]
    assert len(errors) == 1
    assert EVIL in errors[0]
    assert any("damaged or half-written" in element["text"] for element in page.all("td"))
    configs = [element["text"] for element in page.all("pre")]
    assert any("optim.name: adamw_torch" in text for text in configs)  # shared by all
    assert any("method.config._target_: peft.lora" in text for text in configs)  # of one run


def test_a_long_log_and_many_runs_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr("lorsa.runner.report.html_runs.MOST_RUNS", 5)
    folder = grid(tmp_path / "runs", {"lora": 0.5}, ("cola",), seeds=8)
    lines = [json.dumps({"step": step, "epoch": step / 9, "loss": 1.0}) for step in range(20 * MOST_POINTS)]
    for path in folder.iterdir():
        (path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1, "epo']))
    lorsa_report(folder, "--html", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 500_000
    assert "The first 5 of 8." in text
    assert (MOST_RUNS, MOST_CURVES) == (1000, 60)


@pytest.mark.slow
def test_a_lorsa_run_shows_what_it_chose_and_moved(job, tmp_path):
    made = job("debug=smoke", "data.train_rows=40", "method=lorsa", "task=sst2")
    lorsa_report(tmp_path / "runs", "--html", tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert any("Components that LoRSA chose" in element["text"] for element in page.all("h3"))
    (numbers,) = [element for element in page.all("table") if "Modules of lorsa on sst2" in element["text"]]
    assert numbers["text"].count("64/128") == len(made["components"])
    (tmp_path / "runs" / made["signature"] / "adapter" / "adapter_model.safetensors").unlink()
    lorsa_report(tmp_path / "runs", "--html", tmp_path / "report.html")
    assert "is damaged" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        program = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(program).is_file():
            pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
        # A container's root has no sandbox; the page is ours.
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def shown(browser: Any, file: Path) -> Iterator[Any]:
    """The page in a browser as wide as a desk; no error, and no request for anything else."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if request.url != file.as_uri() else None)
    tab.goto(file.as_uri())
    yield tab
    assert problems == []
    tab.close()


def column(tab: Any, number: int) -> list[str]:
    cells = tab.locator("#s1-scores").locator("xpath=..").locator(f"tbody tr > :nth-child({number})")
    return [text.split()[0] for text in cells.all_text_contents()]


@pytest.mark.slow
def test_tables_are_sorted_by_mouse_and_keyboard_and_say_so(shown):
    head = shown.locator("#s1-scores").locator("xpath=..").locator("thead th").nth(1)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(text) for text in column(shown, 2)]
    assert values == sorted(values, reverse=True)
    assert shown.locator("#sorted").text_content() == "Sorted by cola, descending."
    shown.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(shown, 2)] == values[::-1]
    shown.keyboard.press("Tab")
    shown.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "none"
    assert column(shown, 3)[-1].startswith("-")  # what is missing comes last, in both directions
    shown.keyboard.press("Space")
    assert column(shown, 3)[-1].startswith("-")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_colours_contrast(shown, width, scheme, tmp_path):
    shown.set_viewport_size({"width": width, "height": 800})
    shown.emulate_media(color_scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = (
        [int(part) for part in re.findall(r"\d+", shown.evaluate(f"getComputedStyle(document.body).{name}"))[:3]]
        for name in ("backgroundColor", "color")
    )
    assert (sum(paper) < sum(ink)) == (scheme == "dark")
    shown.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.slow
def test_without_a_script_the_page_is_all_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert tab.locator("table").count() >= 8
    assert tab.locator("thead button").count() == 0
    context.close()
