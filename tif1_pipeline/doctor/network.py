"""The mirrors: whether each answers, with what, and how fast."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, unquote, urlsplit

from tif1_pipeline.config import Config
from tif1_pipeline.doctor.base import Check, ok, problem, warning

SLOW_SECONDS = 2.0
SLOW_BYTES_PER_SECOND = 100_000
"""A race is some 30 MB: five minutes at this speed."""
LIMIT_SECONDS = 10.0
"""For all mirrors together, which are asked at once."""
_TIMEOUT_SECONDS = 5.0
_LEAST_BYTES = 32_768
"""From so many bytes on, their speed says something."""
_MOST_BYTES = 1 << 20
_UNKNOWN = ("Monaco Grand Prix", "Race", "doctor.json")
"""A file that no mirror has: that it says so is an answer, too."""


@dataclass
class _Visit:
    """One mirror, what it is asked for, and what came of it.

    Attributes:
        setting: ``cdn_urls`` or ``schedule_urls``.
        urls: In the order they are asked for, the next one if the mirror has not the one before.
        may_be_missing: A mirror that has none of them is well all the same.
    """

    setting: str
    urls: list[str]
    may_be_missing: bool
    url: str = ""
    seconds: float = 0.0
    size: int = 0
    status: int = 0
    error: str = ""
    remedy: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return urlsplit(self.urls[0]).netloc


def mirrors(config: Config, sources: Sequence[tuple[int, str]], limit: float = LIMIT_SECONDS) -> Iterator[Check]:
    """Ask each mirror for one small file.

    Args:
        config: Settings.
        sources: Seasons and addresses of files that were fetched once.
        limit: Seconds for all together.
    """
    if config.offline:
        yield warning(
            "CDN",
            "the mirrors were not asked: offline is on, so nothing is fetched that is not stored",
            "Switch offline off to fetch again",
        )
        return
    visits = list(_visits(config, sources))
    for visit in visits:
        # Daemons: a name that cannot be looked up holds a thread for longer than anybody wants to wait.
        threading.Thread(target=_ask, args=(visit, limit), daemon=True, name="tif1-doctor").start()
    deadline = time.monotonic() + limit
    for visit in visits:
        if not visit.done.wait(max(0.0, deadline - time.monotonic())):
            visit.error = f"no answer within {limit:g} s"
            visit.remedy = _UNREACHABLE
    for visit in visits:
        others = [other for other in visits if other.setting == visit.setting and not other.error]
        yield _judge(visit, is_alone=not others)


_UNREACHABLE = "Check the connection, a firewall or proxy (HTTPS_PROXY), and whether the mirror is up in a browser"


def _visits(config: Config, sources: Sequence[tuple[int, str]]) -> Iterator[_Visit]:
    year = datetime.now(UTC).year
    known = _known(config, sources)
    season, names = known or (year, _UNKNOWN)
    for template in config.cdn_urls:
        url = "/".join([template.replace("{year}", str(season)), *(quote(name, safe="") for name in names)])
        yield _Visit("cdn_urls", [url], known is None)
    for template in config.schedule_urls:
        urls = [template.replace("{year}", str(each)) for each in (year, year - 1)]
        yield _Visit("schedule_urls", list(dict.fromkeys(urls)), False)


def _known(config: Config, sources: Sequence[tuple[int, str]]) -> tuple[int, tuple[str, ...]] | None:
    """Return season and names of a file that a mirror had."""
    for year, url in sources:
        for template in config.cdn_urls:
            prefix = template.replace("{year}", str(year)) + "/"
            if url.startswith(prefix):
                return year, tuple(unquote(name) for name in url.removeprefix(prefix).split("/"))
    return None


def _ask(visit: _Visit, limit: float) -> None:
    deadline = time.monotonic() + limit
    try:
        for url in visit.urls:
            visit.url = url
            _get(visit, deadline)
            if visit.status != 404 or visit.error:
                break
        if visit.status == 404 and not visit.may_be_missing:
            visit.error = "HTTP 404: it does not have this file"
            visit.remedy = f"Correct {visit.setting}, if the address is not that of a mirror; else ask again later"
    except Exception as error:  # noqa: BLE001 - in a thread; whatever it is, the mirror cannot be used
        visit.error, visit.remedy = _explain(error, visit)
    visit.done.set()


def _get(visit: _Visit, deadline: float) -> None:
    import httpx

    from tif1_pipeline.cdn.transport import is_loopback

    started = time.perf_counter()
    proxied = not is_loopback(urlsplit(visit.url).hostname or "")
    body = b""
    with (
        httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=proxied, follow_redirects=True) as client,
        client.stream("GET", visit.url, headers={"User-Agent": "tif1_pipeline doctor"}) as response,
    ):
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES or time.monotonic() > deadline:
                break
    visit.status, visit.size, visit.seconds = response.status_code, len(body), time.perf_counter() - started
    if response.status_code == 404:
        return
    if response.status_code != 200:
        visit.error = f"HTTP {response.status_code} {response.reason_phrase}"
        visit.remedy = _http_remedy(response.status_code)
    elif len(body) <= _MOST_BYTES and not _is_json(body):
        visit.error = "it answered with something else than the file"
        visit.remedy = (
            f"Look at {visit.url} in a browser: a network's login page or a proxy may answer in its place, or the "
            f"address in {visit.setting} is wrong"
        )


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _http_remedy(status: int) -> str:
    if status == 429:
        return "It limits how much is asked of it: wait, and lower max_concurrent_requests"
    if status >= 500:
        return "The mirror is in trouble: try again later; other mirrors stand in"
    return "Look at the address in a browser; if it stays so, put another mirror first in the setting"


def _explain(error: BaseException, visit: _Visit) -> tuple[str, str]:
    """Say what a failure to connect means, by its causes."""
    import httpx

    text = str(error) or type(error).__name__
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, ssl.SSLError) for each in causes) or "SSL" in text:
        return f"TLS failed: {text}", (
            "Check the clock of this machine, and whether a proxy stands in between (SSL_CERT_FILE names its "
            "certificate); certificates are always verified"
        )
    if any(isinstance(each, socket.gaierror) for each in causes):
        return f"its name cannot be looked up: {text}", f"Check the connection, DNS and the name in {visit.setting}"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {_TIMEOUT_SECONDS:g} s ({type(error).__name__})", _UNREACHABLE
    if isinstance(error, httpx.ProxyError):
        return f"the proxy refused: {text.rpartition('@')[2]}", "Check HTTPS_PROXY and NO_PROXY"
    return f"it cannot be reached: {text}", _UNREACHABLE


def _judge(visit: _Visit, *, is_alone: bool) -> Check:
    name = "CDN" if visit.setting == "cdn_urls" else "schedules"
    about = f"{visit.host} ({visit.setting}, {visit.url or visit.urls[0]})"
    if visit.error:
        if is_alone:
            return problem(name, f"{about}: {visit.error}; no other mirror stands in", visit.remedy)
        return warning(name, f"{about}: {visit.error}", f"{visit.remedy}. Meanwhile the other mirrors stand in")
    speed = visit.size / max(visit.seconds, 1e-9)
    answered = "has no such file, as expected" if visit.status == 404 else f"{visit.size:,} bytes"
    found = f"{about}: {answered} in {visit.seconds:.2f} s"
    if visit.seconds > SLOW_SECONDS or (visit.size >= _LEAST_BYTES and speed < SLOW_BYTES_PER_SECOND):
        return warning(
            name,
            f"{found} is slow: more than {SLOW_SECONDS:g} s, or less than {SLOW_BYTES_PER_SECOND:,} bytes a second",
            f"Put a faster mirror first in {visit.setting}, raise request_timeout, or fetch ahead (tif1-pipeline warm)",
        )
    return ok(name, found)
