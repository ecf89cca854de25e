"""The page in a real browser: nothing is asked of the network, nothing fails, and everything can be seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of ordinary size
NARROW, WIDE = 390, 1600  # CSS pixels

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail("the report is looked at in Chromium: apt-get install -y chromium chromium-driver")
    options = Options()
    options.binary_location = binary
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.get("about:blank")
    yield started
    started.quit()


def show(browser: webdriver.Chrome, run: Path, scheme: str, width: int) -> None:
    """Open the report in a window of some width, in a system that prefers a scheme; unfold everything."""
    network(browser)  # what came before, such as the browser's own start page, is not the report's
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    metrics: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((run / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((part) => (part.open = true))")


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
