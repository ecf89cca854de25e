"""The page in a real browser: nothing is asked of the network, nothing fails, and everything can be seen."""

from __future__ import annotations

import json
import random
import shutil
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.report import nano_run

LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of ordinary size
NARROW, WIDE = 390, 1280  # CSS pixels
LONGEST_FILTER = 100  # milliseconds
COVERED = 3  # CSS pixels by which two texts may touch

SEEN_TEXT = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(at.matches("svg *") ? "transparent" : getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")].filter((element) =>
  !["SCRIPT", "STYLE", "title"].includes(element.tagName) && element.getClientRects().length &&
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((element) => {
  const style = getComputedStyle(element);
  const [a, b] = [light(rgba(element.matches("svg *") ? style.fill : style.color)), light(behind(element))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName, element.textContent.slice(0, 40)];
});
"""

OVERLAPS = Path(__file__).with_name("overlaps.js").read_text(encoding="utf-8")
TIMED = """
const [name, value, done] = arguments;
const field = document.getElementById(`browse-${name}`);
const started = performance.now();
field.value = value;
field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input"));
const drawn = () => {
  document.body.getBoundingClientRect();
  const count = document.getElementById("browse-count").textContent;
  if (count.startsWith("reading")) requestAnimationFrame(drawn);  // the first search reads all texts
  else done([performance.now() - started, count]);
};
requestAnimationFrame(() => requestAnimationFrame(drawn));
"""


def show(browser: webdriver.Chrome, run: Path, scheme: str, width: int) -> None:
    """Open the report in a window of some width, in a system that prefers a scheme; unfold everything."""
    network(browser)  # what came before, such as the browser's own start page, is not the report's
    prefer(browser, scheme, width)
    browser.get((run / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((part) => (part.open = true))")


def prefer(browser: webdriver.Chrome, scheme: str, width: int) -> None:
    """Make the window and the system so."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    metrics: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def network(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """What happened on the network since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]  # type: ignore[no-untyped-call]
    return [message for message in messages if message["method"].startswith("Network.")]


def requests(browser: webdriver.Chrome) -> set[str]:
    sent = [message for message in network(browser) if message["method"] == "Network.requestWillBeSent"]
    return {message["params"]["request"]["url"] for message in sent}


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_seen(browser: webdriver.Chrome, nano: Path, scheme: str, width: int) -> None:
    show(browser, nano, scheme, width)
    assert complaints(browser) == []
    assert requests(browser) <= {(nano / "report.html").as_uri(), "data:,"}
    inside, window = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert inside <= window == width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg.plot')].map((svg) => "
        "[...svg.querySelectorAll('path')].map((path) => path.getBoundingClientRect())"
        ".reduce(([w, h], box) => [Math.max(w, box.width), Math.max(h, box.height)], [0, 0]))"
    )
    assert len(sizes) > 30 and all(w > 100 and h > 20 for w, h in sizes), sizes
    graphs = browser.execute_script(
        "return [...document.querySelectorAll('svg.lineage')].map((svg) => svg.getBoundingClientRect().width)"
    )
    assert browser.execute_script(OVERLAPS, COVERED) == []
    assert [drawn > 0 for drawn in graphs] == ([False, True] if width == NARROW else [True, False])
    texts = browser.execute_script(SEEN_TEXT)
    assert len(texts) > 500
    faint = [entry for entry in texts if entry[0] < LEAST_CONTRAST]
    assert faint == []


def test_schemes_differ_and_the_switch_overrides_the_system(browser: webdriver.Chrome, nano: Path) -> None:
    def background() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    show(browser, nano, "light", WIDE)
    light = background()
    show(browser, nano, "dark", WIDE)
    dark = background()
    assert light != dark
    button = browser.find_element(By.ID, "theme")
    assert button.text == "Light"
    button.click()
    assert background() == light and button.text == "Dark"
    browser.refresh()
    assert background() == light  # remembered
    browser.find_element(By.ID, "theme").click()
    assert background() == dark
    browser.execute_script("localStorage.clear()")
    assert complaints(browser) == []


def test_hostile_output_neither_runs_nor_breaks_the_page(browser: webdriver.Chrome, hostile: Path) -> None:
    show(browser, hostile, "light", NARROW)
    assert browser.execute_script("return window.pwned") is None
    assert complaints(browser) == []
    assert requests(browser) <= {(hostile / "report.html").as_uri(), "data:,"}
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.find_element(By.TAG_NAME, "footer").is_displayed()
    assert browser.execute_script("return document.querySelector('footer').parentElement === document.body")


def test_the_policy_stops_a_script_that_slipped_through(browser: webdriver.Chrome, nano: Path, tmp_path: Path) -> None:
    page = (nano / "report.html").read_text(encoding="utf-8")
    attack = "<script>window.pwned = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.pwned = 1'></body>"
    (tmp_path / "report.html").write_text(page.replace("</body>", attack), encoding="utf-8")
    show(browser, tmp_path, "light", WIDE)
    assert browser.execute_script("return window.pwned") is None
    assert any("Content Security Policy" in complaint for complaint in complaints(browser))
    failed = [m["params"].get("blockedReason") for m in network(browser) if m["method"] == "Network.loadingFailed"]
    assert failed == ["csp"]


def browse(browser: webdriver.Chrome) -> None:
    """Bring the sample browser into sight, and wait until it has read its index."""
    ready = "const part = document.getElementById('browse'); part.scrollIntoView(); return part.dataset.ready"
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(ready))


def enter(browser: webdriver.Chrome, name: str, value: str) -> tuple[float, str]:
    """Set a filter; the milliseconds until the list is drawn, and what the count says."""
    took, count = browser.execute_async_script(TIMED, name, value)
    return took, count


def every_sample() -> list[dict[str, Any]]:
    return [row for stage, config in nano_run.STAGES.items() for row in nano_run.nano_samples(stage, config)]


def detail(browser: webdriver.Chrome, holding: str) -> str:
    """What is shown of the chosen sample, once it holds a text."""
    shown = browser.find_element(By.ID, "browse-detail")
    WebDriverWait(browser, 10).until(lambda _: holding in shown.text)
    return shown.text


@pytest.mark.parametrize(("scheme", "width"), [("light", NARROW), ("dark", WIDE)])
def test_samples_are_found_read_and_compared(browser: webdriver.Chrome, nano: Path, scheme: str, width: int) -> None:
    show(browser, nano, scheme, width)
    browse(browser)
    assert enter(browser, "text", "")[1] == "350 of 350 samples"
    wrong = sum(row["status"] != "correct" for row in every_sample())
    assert enter(browser, "status", "not right")[1] == f"{wrong} of 350 samples"
    assert enter(browser, "stage", "zero")[1] == "2 of 350 samples"
    assert enter(browser, "step", "20")[1] == "1 of 350 samples"
    enter(browser, "stage", "")
    enter(browser, "step", "")
    enter(browser, "status", "right")
    enter(browser, "text", "no such words")
    assert browser.find_element(By.ID, "browse-none").is_displayed()
    enter(browser, "text", "六")
    found = browser.find_elements(By.CSS_SELECTOR, ".row.good")
    assert found and not browser.find_elements(By.CSS_SELECTOR, ".row.bad")
    enter(browser, "model", "r1")
    browser.find_element(By.CSS_SELECTOR, ".row").click()
    text = detail(browser, "right answer")
    assert "六" in text and "r1" in text and "correct" in text and "tokens" in text
    others = Select(browser.find_element(By.ID, "browse-against"))
    assert [option.text.split()[0] for option in others.options[1:]] == [m for m in nano_run.SCORES if m != "r1"]
    others.select_by_index(1)
    detail(browser, "difference")
    assert browser.find_elements(By.CSS_SELECTOR, ".difference ins")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script(OVERLAPS, COVERED) == []
    assert [entry for entry in browser.execute_script(SEEN_TEXT) if entry[0] < LEAST_CONTRAST] == []
    assert complaints(browser) == []
    folder = (nano / "report-data").as_uri()
    asked = requests(browser) - {(nano / "report.html").as_uri(), "data:,"}
    assert asked and all(url.startswith(folder) for url in asked)


def test_twenty_thousand_samples_stay_fluid(browser: webdriver.Chrome, large: Path) -> None:
    show(browser, large, "light", WIDE)
    browse(browser)
    assert browser.find_element(By.ID, "browse-count").text == "20,000 of 20,000 samples"
    enter(browser, "text", "read them all")
    WebDriverWait(browser, 20).until(lambda b: b.find_element(By.ID, "browse-count").text == "0 of 20,000 samples")
    for name, value, expected in (
        ("text", "problem 77:", "8 of 20,000 samples"),
        ("text", "六", None),
        ("text", "", "20,000 of 20,000 samples"),
        ("model", "zero", "2,500 of 20,000 samples"),
        ("status", "not right", None),
        ("order", "longest", None),
        ("model", "", None),
    ):
        tries = [enter(browser, name, value)]
        while tries[-1][0] >= LONGEST_FILTER and len(tries) < 5:  # another process may have had the processor
            tries.append(enter(browser, name, value))
        assert tries[-1][0] < LONGEST_FILTER, (name, value, tries)
        assert expected is None or tries[-1][1] == expected
    assert len(browser.find_elements(By.CSS_SELECTOR, ".row")) < 40  # only what is in sight is drawn
    browser.execute_script("document.getElementById('browse-list').scrollTop = 1e6")
    last = "return Number([...document.querySelectorAll('.row')].at(-1).style.top.slice(0, -2))"
    WebDriverWait(browser, 5).until(lambda b: b.execute_script(last) > 1e5)
    assert complaints(browser) == []


def test_differences_are_the_shortest_edits(browser: webdriver.Chrome, nano: Path) -> None:
    """Against difflib, whose blocks are the longest common subsequence where the kept words stay in order."""
    show(browser, nano, "light", WIDE)
    noise = random.Random(1)
    for _ in range(20):
        before = noise.sample(range(40), 15)
        after = [word for word in before if noise.random() < 0.7]
        for word in range(40, 44):
            after.insert(noise.randrange(len(after) + 1), word)
        pieces = browser.execute_script(
            "return zero2r1.compare(...arguments)", [str(w) for w in before], [str(w) for w in after]
        )
        assert [word for kind, word in pieces if kind != "ins"] == [str(w) for w in before]
        assert [word for kind, word in pieces if kind != "del"] == [str(w) for w in after]
        kept = sum(kind == "" for kind, _ in pieces)
        assert kept == sum(
            block.size for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        )


def test_without_its_folder_the_page_says_what_is_missing(
    browser: webdriver.Chrome, nano: Path, tmp_path: Path
) -> None:
    shutil.copy(nano / "report.html", tmp_path)
    show(browser, tmp_path, "light", WIDE)
    browser.execute_script("document.getElementById('browse').scrollIntoView()")
    WebDriverWait(browser, 10).until(lambda b: "keep the folder beside" in b.find_element(By.ID, "browse-count").text)
    complaints(browser)


def test_hostile_samples_are_read_as_text(browser: webdriver.Chrome, hostile: Path) -> None:
    show(browser, hostile, "dark", NARROW)
    browse(browser)
    enter(browser, "text", "<script>window.pwned")
    rows = browser.find_elements(By.CSS_SELECTOR, ".row")
    assert len(rows) > 5
    for index in range(3):
        browser.execute_script("document.querySelectorAll('.row')[arguments[0]].click()", index)
        detail(browser, "question")
        select = browser.find_element(By.ID, "browse-against")
        browser.execute_script(
            "arguments[0].selectedIndex = 4; arguments[0].dispatchEvent(new Event('change'))", select
        )
        detail(browser, "difference")
    assert "<script>window.pwned = 1</script>" in browser.find_element(By.ID, "browse-detail").text
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert complaints(browser) == []
