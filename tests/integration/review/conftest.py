"""A headless Chromium, controlled through the DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
LONG = 60.0


class Browser:
    """One page; what the console said, which requests were made, and what failed, since `open`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._number = socket, loop, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        return self._loop.run_until_complete(self._send(self._number, method, parameters))

    async def _send(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), LONG)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path) -> None:
        self.events.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + LONG
        while self.run("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            modifiers = 8 if shift else 0
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    def look(self, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console and of the policy."""
        of_console = [e for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        thrown = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e for e in self.events if e["method"] == "Log.entryAdded"]
        return [json.dumps(event["params"])[:500] for event in (*of_console, *thrown, *logged)]

    @property
    def requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    profile = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + LONG
        while not (port_file.is_file() and port_file.read_text().count("\n")) and time.monotonic() < deadline:
            time.sleep(0.1)
        port = port_file.read_text().split()[0]

        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession()
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (target,) = [one for one in await answer.json() if one["type"] == "page"]
            return session, await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        yield Browser(socket, loop)
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(LONG)
        loop.close()


SWEPT_KEYS = ("reward.terms.consistency.weight", "reward.terms.hard_negative.weight", "optim.learning_rate", "name")
SWEPT_VALUES = ("0", "0.3", "0.5", "0.51", "1")
SWEPT_METRIC = "val/stsb/rationale"


@pytest.fixture(scope="session")
def sweep_of_25(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...], list[float | None]]:
    """What such a sweep leaves: folder, values of the first two settings, figures job by job (None: it failed)."""
    folder = tmp_path_factory.mktemp("sweeps") / "grid"
    figures: list[float | None] = []
    jobs = []
    for number, (a, b) in enumerate((a, b) for a in SWEPT_VALUES for b in SWEPT_VALUES):
        value = None if number == 7 else 40 + 10 * float(a) - 3 * float(b) + number / 100
        figures.append(value)
        jobs.append(
            {
                "folder": f"consistency.weight-{a}_hard_negative.weight-{b}",
                "status": "failed" if value is None else "finished",
                "swept": dict(
                    zip(SWEPT_KEYS, (a, b, f"{1e-4 * (1 + number % 3):g}", f"run_{number % 2}"), strict=True)
                ),
                "seconds": 2.0 + number,
                "figures": {} if value is None else {SWEPT_METRIC: value, "reward/total/mean": -value},
                "error": ["grace-exp: <b>out of memory</b>"] if value is None else [],
            }
        )
    folder.mkdir()
    about = {"started": "now", "optimized_metric": SWEPT_METRIC, "direction": "maximize", "best": None, "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(about))
    return folder, SWEPT_VALUES, figures
