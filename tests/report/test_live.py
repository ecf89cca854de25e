"""The served report: who may read it, that it follows its run, and that it ends cleanly."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.report.live import LiveReport, Server
from tests.report import nano_run
from tests.report.test_browser import WIDE, browse, complaints, enter, prefer
from tests.report.test_page import FEW


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run whose reinforcement learning has begun."""
    return nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))


@pytest.fixture
def server(running: Path) -> Iterator[Server]:
    with Server(running, 0) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


def ask(server: Server, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_only_this_machine_and_this_page_may_read_it(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page, headers = ask(server, "/")
    assert status == 200 and b"<h1><bdi>run</bdi></h1>" in page
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"
    index = re.search(rb'data-index="([^"]+)"', page)
    assert index is not None
    samples = f"/report-data/{index[1].decode()}"
    assert ask(server, samples)[0] == 200
    for host in ("evil.example", "evil.example:8021", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert ask(server, "/", Host=host)[0] == 403, host
    for host in ("localhost", "127.0.0.1:9", "LOCALHOST:8021"):  # ssh -L has a port of its own
        assert ask(server, "/state", Host=host)[0] == 200, host
    for site in ("cross-site", "same-site"):
        assert ask(server, samples, Sec_Fetch_Site=site)[0] == 403
    assert ask(server, samples, Sec_Fetch_Site="same-origin")[0] == 200
    for path in (
        "/run.json",
        "/report-data/../report.html",
        "/report-data/%2e%2e/x.js",
        "/report-data/",
        "//etc/passwd",
    ):
        assert ask(server, path)[0] == 404, path


def test_it_is_written_anew_only_when_the_run_goes_on(running: Path, tmp_path: Path) -> None:
    now = 0.0
    report = LiveReport(running, tmp_path / "page", clock=lambda: now)
    report.refresh()
    first = report.version
    events = next((running / "scratch").glob("zero-*")) / "events.jsonl"
    with events.open("a") as sink:
        sink.write(json.dumps({"step": 81, "reward": 0.9}) + "\n")
    report.refresh()
    assert report.version == first  # too soon
    now = 60.0
    report.refresh()
    assert report.version != first and report.trouble == ""
    second = report.version
    record = (running / "run.json").read_text()
    (running / "run.json").write_text("{")
    now = 120.0
    report.refresh()
    assert report.version == second and "run.json" in report.trouble
    (running / "run.json").write_text(record)
    now = 180.0
    report.refresh()
    assert report.trouble == "" and report.version == second


def test_the_open_page_shows_what_is_new_and_keeps_the_rest(
    browser: webdriver.Chrome, server: Server, running: Path
) -> None:
    server.report.share = 1.0
    prefer(browser, "light", WIDE)
    browser.get(server.url)
    WebDriverWait(browser, 30).until(lambda b: "live · " in b.find_element(By.CSS_SELECTOR, ".live").text)
    browse(browser)
    enter(browser, "status", "right")
    before = enter(browser, "text", "eight")[1]
    browser.execute_script("document.querySelector('#stages').dataset.mark = 'kept'")
    browser.execute_script("document.querySelector('#details details').open = true")
    scratch = next((running / "scratch").glob("zero-*"))
    rows = [nano_run.sample("new", "+1 *7", 8, True, nano_run.random.Random(1), think=True, step=99) for _ in range(3)]
    with (scratch / "output" / "samples.jsonl").open("a") as sink:
        sink.write("".join(json.dumps(row | {"completion": "it is eight"}) + "\n" for row in rows))
    (scratch / "log.txt").write_text("INFO zero\nValueError: something new\n")
    said = "return document.querySelector('.diagnosis').textContent"
    WebDriverWait(browser, 60).until(lambda b: "something new" in b.execute_script(said))
    counted = (
        "document.getElementById('browse').scrollIntoView(); return document.getElementById('browse-count').textContent"
    )
    more = f"{int(before.split()[0]) + 3} of {int(before.split()[2]) + 3} samples"  # the filters are still set
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(counted) == more)
    assert browser.find_element(By.ID, "browse-text").get_attribute("value") == "eight"
    assert browser.execute_script("return document.querySelector('#stages').dataset.mark") == "kept"
    assert browser.execute_script("return document.querySelector('#details details').open")
    assert complaints(browser) == []
    server.shutdown()
    server.server_close()
    sign = "return document.querySelector('.live').textContent"
    WebDriverWait(browser, 60).until(lambda b: "the server has ended" in b.execute_script(sign))
    browser.get("about:blank")
    complaints(browser)


def test_a_taken_port_is_one_clear_line(running: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = CliRunner().invoke(app, ["report", str(running), "--watch", "--port", str(port)])
    assert refused.exit_code == 1
    assert f"port {port} of 127.0.0.1: Address already in use; take another with --port" in refused.output
    assert CliRunner().invoke(app, ["report", str(running), "--port", "1"]).exit_code == 2


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(running: Path, ending: signal.Signals) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "report", "--watch", str(running), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal, wherever the tests run
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "is served at http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(ending)
        assert process.wait(120) == 0
        assert process.stdout.read() == "stopped\n" and process.stderr.read() == ""
