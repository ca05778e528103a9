"""What the pages of a Dagster webserver show in a real browser: all of their text, and all that they were sent for it.

Needs the extra ``browser`` and Chromium. Pages are found by their links, from the first one on.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page

MOST_OF_A_KIND = 3
"""Pages whose addresses differ by a name or a number alone: assets, runs, partitions."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
_SECONDS = 15
_KNOWN = {"jobs", "sensors", "schedules", "resources", "assets", "runs", "uses", "playground", "daemons", "config", "b"}
_TELLING = {"view", "tab", "logType"}
_STARTS = ("/overview", "/assets", "/runs", "/automation", "/deployment", "/locations", "/jobs", "/config", "/health")
_TEXT = """() => [
    document.documentElement.outerHTML,
    document.body.innerText,
    ...[...document.querySelectorAll('input, textarea')].map(it => it.value),
    ...[...document.querySelectorAll('.CodeMirror')].map(it => it.CodeMirror ? it.CodeMirror.getValue() : ''),
].join('\\n')"""
_LINKS = "() => [...document.querySelectorAll('a[href]')].map(it => it.href)"


def missing() -> str | None:
    """Return what is missing to open a page in a browser; None if it is all there."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "the package playwright is not installed: pip install -c constraints.txt -e '.[browser]'"
    return None if _browser() else "no Chromium is installed: apt-get install chromium"


def everything(address: str, most: int) -> Iterator[tuple[str, str]]:
    """Open page after page; returns the path of each, and what it shows and was sent, as text.

    Args:
        address: Of the webserver, as ``http://127.0.0.1:3000``.
        most: Pages to open.
    """
    from playwright import sync_api as browsers

    sent: list[str] = []

    def keep(response: browsers.Response) -> None:
        if response.request.resource_type in {"fetch", "xhr", "document"}:
            try:
                sent.append(response.text())
            except browsers.Error:
                sent.append("")  # of a page that was left before it was there

    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_browser(), args=list(OPTIONS))
        page = browser.new_page(viewport={"width": 1600, "height": 2400})
        page.on("response", keep)
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(str(frame))))
        left, seen, kinds = ["/", *_STARTS], set(), Counter[str]()
        while left and len(seen) < most:
            path = left.pop(0)
            if path in seen or kinds[_kind(path)] >= MOST_OF_A_KIND:
                continue
            seen.add(path)
            kinds[_kind(path)] += 1
            sent.clear()
            page.goto(address + path, wait_until="domcontentloaded", timeout=_SECONDS * 1000)
            _settle(page)
            yield path, "\n".join([page.evaluate(_TEXT), *sent])
            found = (urldefrag(link).url for link in page.evaluate(_LINKS))
            left += [link.removeprefix(address) for link in found if link.startswith(f"{address}/")]
        browser.close()


def _settle(page: "Page") -> None:
    """Wait until the page has shown the same for a while, but for figures: it tells how long ago things were."""
    shown, same = "", 0
    for _ in range(_SECONDS * 5):
        page.wait_for_timeout(200)
        now = re.sub(r"\d+", "", page.evaluate("() => document.body.innerText"))
        same = same + 1 if now == shown and now.strip() else 0
        if same == 3:
            return
        shown = now


def _kind(path: str) -> str:
    """Return a path without what tells pages of a kind from each other."""
    parts = urlsplit(path)
    steps = [step if step in _KNOWN or number == 1 else "*" for number, step in enumerate(parts.path.split("/"))]
    query = (item.partition("=") for item in sorted(parts.query.split("&")))
    return "/".join(steps) + "?" + "&".join(name + value * (name in _TELLING) for name, _, value in query)


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)
