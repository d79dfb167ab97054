"""A headless Chromium driven through its DevTools pipe, with nothing but the standard library.

Every host name fails to resolve, so that a page which asks for anything outside itself cannot hide it.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

TIMEOUT = 60.0  # seconds for one command; the machine may be busy


def find_chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise RuntimeError("no chromium found: run 'make setup', which installs the Debian package")


class Browser:
    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="switchyard_chromium_")
        read_end, to_browser = os.pipe()
        from_browser, write_end = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; ours may already have these numbers.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (read_end, write_end)]

        def place_pipes():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=place_pipes, pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        for end in (read_end, write_end, *high):
            os.close(end)
        self.to_browser, self.from_browser = to_browser, from_browser
        self.buffer, self.number, self.events = b"", 0, []

    def close(self):
        os.close(self.to_browser)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.from_browser)
        shutil.rmtree(self.profile, ignore_errors=True)

    def receive(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.from_browser, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError("chromium gave no answer" if not ready else "chromium ended")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def command(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to_browser, data):]
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, session, method):
        deadline = time.monotonic() + TIMEOUT
        while not any(e.get("sessionId") == session and e.get("method") == method for e in self.events):
            self.events.append(self.receive(deadline))


class Page:
    """One tab with one file in it."""

    def __init__(self, browser, path, width=1400, height=1000, scheme="light"):
        self.browser = browser
        self.target = browser.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.command("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.resize(width, height)
        self.set_scheme(scheme)
        browser.events = [e for e in browser.events if e.get("sessionId") != self.session]  # those of the empty page
        self.url = path.resolve().as_uri()
        self.command("Page.navigate", url=self.url)
        browser.wait_for(self.session, "Page.loadEventFired")

    def command(self, method, **parameters):
        return self.browser.command(method, session=self.session, **parameters)

    def close(self):
        self.browser.command("Target.closeTarget", targetId=self.target)

    def resize(self, width, height=1000):
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def set_scheme(self, scheme):
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, expression):
        """The value of a JavaScript expression, which may be a promise."""
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", str(result)))
        return result["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9, "Enter": 13}[key],
                         text={"Enter": "\r"}.get(key, "") if kind == "keyDown" else "")

    def events(self, *methods):
        self.run("0")  # so that all that was sent before is here
        return [e["params"] for e in self.browser.events if e.get("sessionId") == self.session and e.get("method") in methods]

    def complaints(self):
        """Uncaught errors, console errors and warnings, blocked loads, dialogs."""
        said = [e["exceptionDetails"]["text"] for e in self.events("Runtime.exceptionThrown")]
        said += [str(e["args"]) for e in self.events("Runtime.consoleAPICalled") if e["type"] in ("error", "warning", "assert")]
        said += [e["entry"]["text"] for e in self.events("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
        return said + [e["message"] for e in self.events("Page.javascriptDialogOpening")]

    def requests(self):
        urls = [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]
