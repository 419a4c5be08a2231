"""Chromium without a screen, over the WebDriver protocol (W3C) with nothing but HTTP: what a page says, asks for and shows."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Browser:
    """One window. `width` is what the page sees, as a telephone or a large screen would give it."""

    def __init__(self, profile):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}"
        self._wait()
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self.address += f"/session/{session}"
        self._post("/url", {"url": "about:blank"})  # a new window shows a page of Chromium's own

    def open(self, page, width):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **screen)
        self._post("/url", {"url": page.as_uri()})

    def ask(self, script, *arguments):
        """What a function's body in JavaScript returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def console(self):
        """What was said on the console, errors of loading among it."""
        return self._post("/se/log", {"type": "browser"})

    def requested(self):
        """Every address that the page asked for."""
        entries = [json.loads(entry["message"])["message"] for entry in self._post("/se/log", {"type": "performance"})]
        return [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]

    def picture(self, path):
        """The whole page, however long."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))

    def devtools(self, command, **parameters):
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self):
        urllib.request.urlopen(urllib.request.Request(self.address, method="DELETE"), timeout=60)
        self.driver.terminate()
        self.driver.wait()

    def _wait(self):
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.address}/status", timeout=5)
            except urllib.error.URLError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError("chromedriver does not answer")

    def _post(self, path, data):
        body, kind = json.dumps(data).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data=body, headers=kind)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {json.load(error)['value']['message']}") from None
