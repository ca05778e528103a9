"""Alerts: always to the log, and to every service that the setting ``alert_urls`` names by an Apprise URL.

Apprise runs in a process of its own, one an endpoint: there it may take what time it likes and log what it likes. Its
URLs are secrets, which it and the HTTP libraries under it write into their logs; and of an endpoint that neither
answers nor hangs up only a process can be rid of. A URL goes there through a pipe, never on a command line.
"""

import hashlib
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

from tif1_pipeline.config import Config

_log = logging.getLogger(__name__)

Kind = Literal["started", "over", "report"]

SECONDS = 20.0
"""What an endpoint has to take a message, the start of the process included."""
TICK_SECONDS = 30.0
"""What all endpoints have together in a sensor's tick, of which Dagster gives up those that take 60 s."""
_LEAST_SECONDS = 5.0
"""With less than this left, an endpoint is not tried: the start of the process may take most of it."""
_ENDPOINTS_AT_ONCE = 4
_KEPT = 50
_KEPT_SECONDS = 2 * 86400.0
_LONGEST_BODY = 1500
_LONGEST_MESSAGE = 6000
_FIRST_WAIT = 60.0
_LONGEST_WAIT = 3600.0

_TYPES: dict[Kind, str] = {"started": "warning", "over": "success", "report": "info"}
_LEVELS: dict[Kind, int] = {"started": logging.WARNING, "over": logging.INFO, "report": logging.INFO}

_NOTIFY = """
import json, logging, os, re, sys
said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
url, message = json.load(sys.stdin)
answer, sys.stdout = sys.stdout, sys.stderr
import apprise
logging.getLogger("apprise").addHandler(Keep())
service = apprise.Apprise()
if not service.add(url):
    result = "Apprise cannot read the URL"
elif service.notify(**message):
    result = ""
else:
    # Nothing else of what was said: it names hosts, paths and tokens.
    codes = re.findall(r"error=([0-9]{3})(?![0-9])", " ".join(said))
    result = f"it answered with status {codes[-1]}" if codes else "it could not be reached, or refused the message"
answer.write(json.dumps(result))
answer.flush()
os._exit(0)
"""
"""What the process does: message in, reason of the failure out. It ends without waiting for threads of services."""


@dataclass(frozen=True)
class Alert:
    """Something that people should know of.

    Attributes:
        name: Of what it is about, for programs; the same when it starts and when it is over.
        title: One line.
        body: What was found, and what to do.
        kind: ``"started"``, ``"over"``, or ``"report"`` for what is neither.
    """

    name: str
    title: str
    body: str
    kind: Kind = "started"

    @property
    def level(self) -> int:
        """The level of :mod:`logging` at which it is logged."""
        return _LEVELS[self.kind]

    @property
    def text(self) -> str:
        """Title and body."""
        return f"{self.title}\n{self.body}" if self.body else self.title


def send(alerts: Alert | Sequence[Alert], config: Config) -> bool:
    """Log alerts, and send them to each endpoint as one message.

    For those who look once. Who looks again and again keeps an :class:`Outbox`, which sends again what failed.

    Args:
        alerts: One or several.
        config: Settings.

    Returns:
        Whether every endpoint took them; true if there is none. A failure is logged and never raised.
    """
    outbox = Outbox()
    outbox.post(alerts)
    return outbox.deliver(config, seconds=math.inf)


@dataclass
class _Letter:
    alert: Alert
    at: float
    reached: list[str]


@dataclass
class _Endpoint:
    failures: int = 0
    not_before: float = 0.0


class Outbox:
    """Alerts on their way: what an endpoint did not take is sent to that one again, not to those that have it.

    An endpoint gets all that waits for it as one message. After a second failure the next try waits a minute, then
    twice as long each time, up to an hour. What could not be delivered within two days, or has fifty newer alerts
    behind it, is given up; it was logged.

    Args:
        state: What :attr:`state` of a former one was; anything else is taken for an empty one.
        log: Where alerts are logged, and what became of them.
    """

    def __init__(self, state: Any = None, log: logging.Logger = _log) -> None:
        self._log = log
        self._letters: list[_Letter] = []
        self._endpoints: dict[str, _Endpoint] = {}
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            letters = [
                _Letter(Alert(**letter["alert"]), float(letter["at"]), [str(name) for name in letter["reached"]])
                for letter in state["letters"]
                if letter["alert"]["kind"] in _LEVELS
            ]
            endpoints = {
                str(name): _Endpoint(int(each[0]), float(each[1])) for name, each in state["endpoints"].items()
            }
            self._letters, self._endpoints = letters, endpoints

    @property
    def state(self) -> dict[str, Any]:
        """Everything there is to know, as JSON can hold it; without URLs."""
        return {
            "letters": [asdict(letter) for letter in self._letters],
            "endpoints": {name: [each.failures, each.not_before] for name, each in self._endpoints.items()},
        }

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, alerts: Alert | Sequence[Alert]) -> None:
        """Log alerts and keep them for the next delivery."""
        for alert in [alerts] if isinstance(alerts, Alert) else alerts:
            self._log.log(alert.level, "%s", alert.text)
            body = alert.body if len(alert.body) <= _LONGEST_BODY else alert.body[: _LONGEST_BODY - 1] + "…"
            self._letters.append(_Letter(Alert(alert.name, alert.title, body, alert.kind), time.time(), []))

    def deliver(self, config: Config, pause: timedelta = timedelta(), seconds: float = TICK_SECONDS) -> bool:
        """Send what waits, to all endpoints at once.

        Args:
            config: Settings.
            pause: An endpoint gets its next message this long after the last one at the earliest; what comes up
                meanwhile waits and goes as one.
            seconds: What it may take in all; endpoints that are not reached in this time are left for the next call.

        Returns:
            Whether nothing waits any more. A failure is logged and never raised.
        """
        now = time.time()
        endpoints = {_name_of(url): (number, url) for number, url in enumerate(config.alert_urls, 1)}
        known = {name: self._endpoints.get(name, _Endpoint()) for name in endpoints}
        waiting = {
            name: letters
            for name in endpoints
            # A time far ahead was written by a clock that was wrong.
            if not now < known[name].not_before <= now + max(_LONGEST_WAIT, pause.total_seconds())
            and (letters := [letter for letter in self._letters if name not in letter.reached])
        }
        if waiting:
            over_at = time.monotonic() + seconds
            with ThreadPoolExecutor(min(_ENDPOINTS_AT_ONCE, len(waiting)), "tif1-alerts") as pool:
                messages = [_message([letter.alert for letter in letters]) for letters in waiting.values()]
                urls = [endpoints[name][1] for name in waiting]
                reasons = list(pool.map(_notify, urls, messages, [over_at] * len(urls)))
            for (name, letters), reason in zip(waiting.items(), reasons, strict=True):
                if reason is None:
                    continue
                known[name] = self._note(endpoints[name], known[name], letters, reason, pause)
                if not reason:
                    for letter in letters:
                        letter.reached.append(name)
        # Of an endpoint of which nothing needs to be known, nothing is kept.
        self._endpoints = {name: each for name, each in known.items() if each.failures or each.not_before > now}
        self._letters = [letter for letter in self._letters if not endpoints.keys() <= set(letter.reached)]
        self._give_up(now)
        return not self._letters

    def _note(
        self,
        endpoint: tuple[int, str],
        known: _Endpoint,
        letters: Sequence[_Letter],
        reason: str,
        pause: timedelta,
    ) -> _Endpoint:
        """Return what is known of an endpoint after a message."""
        if not reason:
            return _Endpoint(0, time.time() + pause.total_seconds() if pause else 0.0)
        failures = known.failures + 1
        wait = min(_FIRST_WAIT * 2 ** (failures - 2), _LONGEST_WAIT) if failures > 1 else 0.0
        self._log.warning(
            "%d alert(s) could not be delivered to number %d of alert_urls (%s://): %s; they are kept to be sent again",
            len(letters),
            endpoint[0],
            _scheme_of(endpoint[1]),
            reason,
        )
        return _Endpoint(failures, time.time() + wait)

    def _give_up(self, now: float) -> None:
        kept = [letter for letter in self._letters[-_KEPT:] if letter.at > now - _KEPT_SECONDS]
        for letter in self._letters:
            if letter not in kept:
                self._log.warning(
                    "the alert %r is sent no more: it waited for too long, or behind too many", letter.alert.title
                )
        self._letters = kept


def _name_of(url: str) -> str:
    """Return what tells an endpoint from others without telling its URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _scheme_of(url: str) -> str:
    # The host is no more: tokens stand in its place in many services' URLs.
    scheme = url.partition("://")[0]
    return scheme if scheme.isalnum() and len(scheme) < 20 else "?"


def _message(alerts: Sequence[Alert]) -> dict[str, str]:
    """Return one message of several alerts, in the words of Apprise."""
    kinds = [alert.kind for alert in alerts]
    kind: Kind = "started" if "started" in kinds else "over" if "over" in kinds else "report"
    if len(alerts) == 1:
        title, body = alerts[0].title, alerts[0].body or alerts[0].title
    else:
        counted = [f"{number} {word}" for word in ("started", "over", "report") if (number := kinds.count(word))]
        title = f"tif1_pipeline: {len(alerts)} alerts ({', '.join(counted)})"
        body = "\n\n".join(f"[{alert.kind}] {alert.text}" for alert in alerts)
    if len(body) > _LONGEST_MESSAGE:
        body = body[:_LONGEST_MESSAGE] + "…\n\nThe rest is in the log."
    return {"title": title, "body": body, "notify_type": _TYPES[kind], "body_format": "text"}


def _notify(url: str, message: dict[str, str], over_at: float = math.inf) -> str | None:
    """Send a message to one endpoint; returns why it failed, or an empty text; None if it is too late to try."""
    seconds = min(SECONDS, over_at - time.monotonic())
    if seconds < min(SECONDS, _LEAST_SECONDS):
        return None
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and the program above
            # -P: a file in the working directory that is called like a library would be taken for it.
            [sys.executable, "-P", "-c", _NOTIFY],
            input=json.dumps([url, message]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=seconds,
            check=False,
        )
        return str(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s"
    except ValueError:
        return "Apprise failed"
    except OSError as error:
        return f"no process could be started: {error}"
