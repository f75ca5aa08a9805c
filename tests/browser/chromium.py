"""Runs headless Chromium on a local page: what its console says, what a probe script finds, how it looks."""

import html
import json
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--force-color-profile=srgb", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
RESULT = "data-probe"


def program() -> str:
    """Return the browser's path; a plain error says what to install."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError("no Chromium found; `make test-browser` installs it, or run `apt-get install chromium`")
    return found


def _run(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [program(), *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def _scheme(is_dark: bool) -> list[str]:
    return [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"]


def probe(page: Path, script: str, work: Path, is_dark: bool = False) -> tuple[Any, list[str]]:
    """Load a copy of the page with `script` at its end; return the value of its promise, and the console's messages.

    The script is the body of an async function. It runs under the page's own content security policy.
    """
    inserted = (
        "<script>addEventListener('load', () => { (async () => {" + script + "})()"
        f".catch((error) => ({{ failure: String(error) }})).then((value) => document.documentElement"
        f".setAttribute('{RESULT}', JSON.stringify(value))); }});</script>"
    )
    copy = work / "probed.html"
    text = page.read_text(encoding="utf-8")
    head, _, tail = text.rpartition("</body>")
    copy.write_text(f"{head}{inserted}</body>{tail}", encoding="utf-8")
    flags = ["--dump-dom", "--window-size=1280,900", "--virtual-time-budget=20000", *_scheme(is_dark)]
    done = _run(copy, work / "profile", *flags)
    found = re.search(rf'{RESULT}="([^"]*)"', done.stdout)
    if found is None:
        raise AssertionError(f"the probe gave nothing; the console said: {console(done.stderr)}")
    return json.loads(html.unescape(found.group(1))), console(done.stderr)


def console(log: str) -> list[str]:
    """Return the messages that the page wrote to the console, or that the browser wrote there about it."""
    return [line for line in log.splitlines() if "CONSOLE" in line]


def screenshot(page: Path, picture: Path, work: Path, width: int, height: int, is_dark: bool = False) -> Path:
    """Write a PNG of the page's top."""
    _run(page, work / "profile", f"--screenshot={picture}", f"--window-size={width},{height}", *_scheme(is_dark))
    return picture


def axe_script() -> str:
    """Return axe-core's source, from the files of the package `axe-playwright-python`, which is never imported."""
    files = distribution("axe-playwright-python").files or []
    return next(Path(str(f.locate())).read_text(encoding="utf-8") for f in files if f.name == "axe.min.js")
