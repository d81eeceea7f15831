"""Open every page of the built site in headless Chromium, in the light, in the dark and as wide as a phone.

    python docs/check_site.py build/site [--shots FOLDER] [--only TEXT]

A page fails if it writes an error to the console, asks another host for anything, leaves a formula unset, or is wider
than its window. Exit status 1 if a page fails. Chromium or Chrome must be on the path.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}
"""Width and height of the window in pixels, and the colours that the reader prefers."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-allow-origins=*",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
WIDTHS = """(() => {
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  const unset = document.querySelectorAll("div.math, span.math").length && !document.querySelector("mjx-container");
  return JSON.stringify({wide, unset: Boolean(unset)});
})()"""
TALLEST = 3000
"""Pixels of a page that a picture shows."""
TIMEOUT = 300.0
"""Seconds that a page may take."""


class Browser:
    """A headless browser, driven by its debugging protocol."""

    def __init__(self, program: str, folder: Path) -> None:
        self.process = subprocess.Popen([program, *FLAGS, f"--user-data-dir={folder}", "about:blank"], stderr=-3)
        port_file = folder / "DevToolsActivePort"
        deadline = time.monotonic() + TIMEOUT
        while not port_file.is_file() or "\n" not in port_file.read_text():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{program} did not start")
            time.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            [target] = [each for each in json.load(answer) if each["type"] == "page"]
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=TIMEOUT)
        self.number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is kept in `events`."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (message := self._receive()).get("id") != self.number:
            pass
        return message.get("result", {})

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self.socket.recv())
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, address: str, view: tuple[int, int, str]) -> None:
        """Open a page in a view and wait until it and its formulas are drawn."""
        width, height, colours = view
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}])
        self.events.clear()
        self.ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()
        ready = "Promise.resolve(window.MathJax && MathJax.startup && MathJax.startup.promise).then(() => 1)"
        self.ask("Runtime.evaluate", expression=ready, awaitPromise=True)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, which must be a JSON text."""
        return json.loads(self.ask("Runtime.evaluate", expression=expression)["result"]["value"])

    def shoot(self, path: Path, width: int) -> None:
        """Write a picture of the page as PNG, down to `TALLEST` pixels."""
        height = min(TALLEST, self.evaluate("JSON.stringify(document.documentElement.scrollHeight)"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png", clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.terminate()
        self.process.wait()


def find_faults(browser: Browser, host: str) -> list[str]:
    """Return what is wrong with the page that is open."""
    faults = []
    for event in browser.events:
        given = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            faults.append(f"exception: {given['exceptionDetails'].get('text')}")
        elif event["method"] == "Runtime.consoleAPICalled" and given["type"] == "error":
            faults.append(f"console: {[each.get('value') for each in given['args']]}")
        elif event["method"] == "Log.entryAdded" and given["entry"]["level"] == "error":
            if given["entry"].get("url", "").endswith("/favicon.ico"):
                continue  # the browser asks for it, not the page
            faults.append(f"log: {given['entry']['text']} {given['entry'].get('url', '')}")
        elif event["method"] == "Network.requestWillBeSent":
            address = given["request"]["url"]
            if not address.startswith((host, "data:", "blob:")):
                faults.append(f"asks another host: {address}")
    found = browser.evaluate(WIDTHS)
    if found["wide"] > 0:
        faults.append(f"is {found['wide']} pixels wider than its window")
    if found["unset"]:
        faults.append("formulas are not set")
    return faults


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def check_site(site: Path, program: str, shots: Path | None, only: str = "") -> int:
    """Check every page in every view, print the faults, and return how many pages have some."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    pages = [path.relative_to(site) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = [page for page in pages if only in page.as_posix()]
    failed = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with contextlib.closing(Browser(program, Path(folder))) as browser:
            for page in pages:
                for name, view in VIEWS.items():
                    browser.open(f"{host}/{page.as_posix()}", view)
                    faults = find_faults(browser, host)
                    failed += bool(faults)
                    for fault in faults:
                        print(f"{page} ({name}): {fault}")
                    if shots:
                        shot = f"{page.with_suffix('').as_posix().replace('/', '-')}-{name}.png"
                        browser.shoot(shots / shot, view[0])
    server.shutdown()
    print(f"{len(pages)} pages in {len(VIEWS)} views, {failed} with faults")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("site", type=Path)
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--only", default="", help="check only pages whose path contains this text")
    chosen = parser.parse_args()
    found = next((path for path in map(shutil.which, PROGRAMS) if path), None)
    if found is None:
        sys.exit("neither Chromium nor Chrome is on the path; the pages were not opened")
    if chosen.shots:
        chosen.shots.mkdir(parents=True, exist_ok=True)
    sys.exit(1 if check_site(chosen.site, found, chosen.shots, chosen.only) else 0)
