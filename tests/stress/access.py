"""Who may read what is stored: permissions under any umask, users of one group and others, secrets, encryption."""

import contextlib
import io
import logging
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from tests.cdn.misbehaving_server import Exchange, MisbehavingServer, status
from tests.stress import disk, nursery
from tests.stress.nursery import Case, User, in_child
from tests.stress.trial import Plan, Row
from tif1_pipeline.cache import Cache, Fresh, Source
from tif1_pipeline.cache.cipher import Keyring
from tif1_pipeline.cache.monitor import CacheMonitor
from tif1_pipeline.cli.home import Demo, provide_instance, use_cdn
from tif1_pipeline.config import Config, load_config
from tif1_pipeline.exceptions import CacheError, Tif1Error
from tif1_pipeline.keys import EntryKey, SessionKey

OWNER = User(20001, 30001)
MEMBER = User(20002, 30002, (30001,))
STRANGER = User(20003, 30003)
KEY = SessionKey(2025, "Monaco Grand Prix", "Race").entry("laps")
TABLE = pa.table({"n": list(range(1000))})
UMASKS = (0o000, 0o022, 0o027, 0o077, 0o777)
FILE_MODE, FOLDER_MODE = 0o640, 0o750


def rows(plan: Plan) -> Iterator[Row]:
    """Try one thing after the other."""
    yield from nursery.rows(__name__, plan)


def _owned(folder: Path, user: User) -> Path:
    home = folder / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(home, user.uid, user.gid)
    return home


def _as(user: User) -> User | None:
    return user if os.geteuid() == 0 else None


# ---- permissions


class Lookout:
    """Looks at the modes of everything in a folder, all the time: also of what is there for a moment only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()
        self.wide: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Lookout":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        self.look(self.folder)

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.look(self.folder)

    def look(self, folder: Path) -> None:
        with suppress(OSError), os.scandir(folder) as found:
            for entry in found:
                with suppress(OSError):
                    mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                    is_folder = entry.is_dir(follow_symlinks=False)
                    name = re.sub(r"[0-9a-f]{32}|\d{8}T[\d.]+Z|(?<=\.tif1_cache-)\w+|\.\w{8}$", "…", entry.name)
                    self.seen.add(f"{name}{'/' * is_folder}")
                    if mode & ~(FOLDER_MODE if is_folder else FILE_MODE) & 0o777:
                        self.wide.setdefault(name, f"{entry.path} has mode {mode:04o}")
                    if is_folder:
                        self.look(Path(entry.path))


def modes(folder: Path, plan: Plan, row: Row) -> None:
    home = _owned(folder, OWNER)
    kinds: set[str] = set()
    for umask in UMASKS:
        for wal in (True, False) if plan.share >= 1 else (True,):
            place = home / f"{umask:03o}-{wal}"
            seen, wide = in_child(partial(_make_everything, place, umask, wal), user=_as(OWNER))
            kinds |= seen
            row.tried += len(seen)
            for text in wide.values():
                row.leaked += 1
                row.say(f"umask {umask:03o}: {text}")
    row.remark = f"{len(kinds)} kinds of files and folders, looked at all the time while they are made"


def _make_everything(place: Path, umask: int, wal: bool) -> tuple[set[str], dict[str, str]]:
    logging.disable()
    place.mkdir(mode=0o755)
    os.umask(umask)
    os.chdir(place)
    config = Config(
        cache_dir=place / "deep" / "cache",
        cache_wal_mode=wal,
        cache_audit_log=place / "logs" / "audit.log",
        cache_fallback_dir=place / "fallback",
        cache_shards=2,
        cache_enable_metrics=True,
        cache_metrics_interval=0.05,
    )
    with Lookout(place) as lookout:
        cache = Cache(config)
        for _ in range(3):
            for number in range(4):
                cache.write(EntryKey(f"asset/{number}", "asset"), TABLE)
            cache.write(EntryKey("json", "asset"), {"a": 1})
            cache.write(KEY, TABLE)
            cache.clear_memory()
            cache.read(KEY)
            kept = cache.backup(keep=2)
            cache.backup(place / "elsewhere" / "backups")
            cache.export(place / "exported" / "here")
        cache.restore(kept)
        cache.vacuum()
        with CacheMonitor(cache) as monitor:
            cache.read(KEY)
        monitor.export(place / "monitor.json")
        deadline = time.monotonic() + 5
        while not list(config.cache_dir.glob("*.json")) and time.monotonic() < deadline:
            cache.read(KEY)
            time.sleep(0.05)
        cache.close()
        config.cache_path.write_bytes(b"no database at all")  # is set aside; keeps the mode that it had
        cache.read(KEY)
        cache.write(KEY, TABLE)
        cache.close()
        config.cache_dir.rename(place / "away")
        os.close(os.open(config.cache_dir, os.O_CREAT | os.O_WRONLY, 0o600))  # no folder
        cache.write(KEY, TABLE)
        cache.close()
        provide_instance(place / ".dagster_home")
        demo = place / ".demo"
        Demo(None, 2025, 1).start(demo)
        use_cdn(demo, ("http://127.0.0.1:1/{year}",), ("http://127.0.0.1:1/{year}.json",))
    return lookout.seen, lookout.wide


# ---- users


def users(folder: Path, plan: Plan, row: Row) -> None:
    """A folder as the package makes it: the owner writes, the group reads, others do neither."""
    home = _owned(folder, OWNER)
    config = Config(cache_dir=home / "cache", cache_lock_timeout=2, cache_fallback_dir=None)
    for number in range(plan.count(5)):
        in_child(partial(_own, config, number), user=OWNER)
        for closed in (True, False):
            # Also while the owner has the file open, and its log holds something.
            over = None if closed else _start_owner(config, number)
            try:
                for readonly in (True, False):
                    _judge_member(row, in_child(partial(_visit, config, readonly), user=MEMBER), number, readonly)
                _judge_stranger(row, in_child(partial(_visit, config, False), user=STRANGER), home)
                _judge_stranger(row, in_child(partial(_visit, config, True), user=STRANGER), home)
            finally:
                if over is not None:
                    over()
        row.tried += 1
        if not in_child(partial(_still_owns, config), user=OWNER):
            row.wrong += 1
            row.say("the owner cannot write any more after the others' visits")
    row.remark = "folder 0750 and files 0640, as they are made: the group reads, others get nothing and fetch"


def users_of_a_shared_folder(folder: Path, plan: Plan, row: Row) -> None:
    """A folder that an administrator made for a group to write in, with the bit that hands its group down."""
    home = _owned(folder, OWNER)
    shared = home / "shared"
    shared.mkdir()
    os.chown(shared, OWNER.uid, OWNER.gid)
    shared.chmod(0o2770)
    config = Config(cache_dir=shared, cache_lock_timeout=2)
    refused = 0
    for number in range(plan.count(5)):
        in_child(partial(_own, config, number), user=OWNER)
        for readonly in (False, True):
            seen = in_child(partial(_visit, config, readonly), user=MEMBER)
            _judge_member(row, seen, number, readonly)
            refused += not seen["stored"]
            row.tried += 1
            if not in_child(partial(_still_owns, config), user=OWNER):
                row.wrong += 1
                row.say(f"after a visit (read-only: {readonly}) the owner cannot write: {_listing(shared)}")
        _judge_stranger(row, in_child(partial(_visit, config, False), user=STRANGER), shared)
        for path in shared.rglob("*"):
            if path.stat().st_gid != OWNER.gid:
                row.wrong += 1
                row.say(f"{path} is of group {path.stat().st_gid}, not of the folder's")
    # The other way round: the member makes the file, the owner of the folder visits.
    shutil.rmtree(shared)
    shared.mkdir()
    os.chown(shared, OWNER.uid, OWNER.gid)
    shared.chmod(0o2770)
    in_child(partial(_own, config, 7), user=MEMBER)
    first = in_child(partial(_visit, config, False), user=User(OWNER.uid, OWNER.gid, (OWNER.gid,)))
    _judge_member(row, first, 7, False)
    row.tried += 1
    if not in_child(partial(_still_owns, config), user=MEMBER):
        row.wrong += 1
        row.say(f"the member made the file and cannot write it any more: {_listing(shared)}")
    row.remark = f"folder 2770; {refused} writes to another's file refused with a reason"


def _listing(folder: Path) -> list[str]:
    return [f"{path.name} {path.stat().st_mode & 0o777:03o} of {path.stat().st_uid}" for path in folder.iterdir()]


def _own(config: Config, number: int) -> None:
    with closing(Cache(config)) as cache:
        for _ in range(2):
            written = cache.write(KEY, disk.table(number + 1))
            if not written.stored:
                raise RuntimeError(written.reason)
        cache.backup()


def _start_owner(config: Config, number: int) -> Callable[[], None]:
    """Have the owner keep the file open in a process of its own; returns what ends that."""
    receive, send = os.pipe()
    ready, is_ready = os.pipe()
    child = os.fork()
    if not child:
        os.close(send)
        os.setgid(OWNER.gid)
        os.setgroups([])
        os.setuid(OWNER.uid)
        cache = Cache(config)
        cache.write(KEY, disk.table(number + 1))
        cache.read(KEY)
        os.write(is_ready, b"x")
        os.read(receive, 1)
        os._exit(0)  # as if it were killed: its log stays
    os.close(receive)
    os.close(is_ready)
    os.read(ready, 1)

    def end() -> None:
        os.close(send)
        os.waitpid(child, 0)
        os.close(ready)

    return end


def _visit(config: Config, readonly: bool) -> dict[str, object]:
    heard = disk.Heard()
    logger = logging.getLogger("tif1_pipeline")
    logger.addHandler(heard)
    logger.propagate = False
    config.cache_readonly = readonly
    seen: dict[str, object] = {"raised": "", "version": None, "fetched": None, "listed": None, "stored": False}
    with closing(Cache(config)) as cache:
        try:
            hit = cache.read(KEY)
            seen["version"] = hit and hit.value["version"][0].as_py()
            seen["fetched"] = cache.read_through(EntryKey("x", "x"), lambda _: Fresh(TABLE)).value.equals(TABLE)
            written = cache.write(EntryKey("y", "x"), TABLE)
            seen["stored"], seen["reason"] = written.stored, written.reason
        except Tif1Error as error:
            seen["raised"] = repr(error)
        seen["degraded"] = dict(cache.get_degraded())
        for name in ("list_sessions", "get_stats", "verify_integrity"):
            try:
                getattr(cache, name)()
            except CacheError as error:
                seen["listed"] = str(error)
    with suppress(OSError):
        seen["files"] = os.listdir(config.cache_dir)  # noqa: PTH208
    seen["said"] = heard.said
    return seen


def _judge_member(row: Row, seen: dict[str, object], number: int, readonly: bool) -> None:
    row.tried += 3
    # Who may not write into the folder, and does not say so by the setting, gets what is fetched.
    is_told = bool(seen["degraded"] and seen["said"])
    if seen["version"] != number + 1 and not (seen["version"] is None and not readonly and is_told):
        row.wrong += 1
        row.say(f"a member of the group reads version {seen['version']}, not {number + 1} ({readonly=}): {seen}")
    if seen["raised"] or not seen["fetched"]:
        row.wrong += 1
        row.say(f"a member of the group: {seen}")
    if not seen["stored"] and not seen["reason"]:
        row.wrong += 1
        row.say("a write was refused without a reason")


def _judge_stranger(row: Row, seen: dict[str, object], folder: Path) -> None:
    row.tried += 3
    if seen["version"] is not None or seen.get("files") or seen["stored"]:
        row.leaked += 1
        row.say(f"a user of another group got at {folder}: {seen}")
    if seen["raised"] or not seen["fetched"]:
        row.wrong += 1
        row.say(f"a user of another group does not even get what is fetched: {seen}")
    if not seen["degraded"] or not seen["said"] or "ermission" not in str(seen["listed"]) + str(seen["said"]):
        row.wrong += 1
        row.say(f"a user of another group is not told why: {seen}")


def _still_owns(config: Config) -> bool:
    config.cache_readonly = False
    logging.disable()
    with closing(Cache(config)) as cache:
        return cache.write(EntryKey("z", "x"), TABLE).stored and cache.read(KEY) is not None


# ---- secrets


class Everything(logging.Handler):
    """Every record of every logger, as text with its traceback."""

    def __init__(self) -> None:
        super().__init__(1)
        self.said: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(pathname)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def secrets_shown(folder: Path, plan: Plan, row: Row) -> None:
    """Keys, passwords and tokens that are set, wrong or sent: in no log, error, text or file."""
    heard = Everything()
    root = logging.getLogger()
    root.setLevel(1)
    root.handlers = [heard]
    key, other, password, token, redirected = (secrets.token_hex(32) for _ in range(5))
    hidden = {"key": key, "former key": other, "password": password, "token": token, "redirect": redirected}
    shown: list[str] = []
    server = MisbehavingServer()
    server.start()
    origin = server.origin
    config = Config(cache_dir=folder / "cache", cache_encryption_key=[key], cache_audit_log=folder / "audit.log")
    config.cache_debug = True

    def attempt(call: Callable[[], object]) -> None:
        row.tried += 1
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            try:
                shown.append(repr(call()))
            except RuntimeError as error:
                row.wrong += 1
                row.say(str(error)[:500])
            except Exception as error:
                shown.append("".join(traceback.format_exception(error)) + repr(getattr(error, "details", "")))
        shown.append(stream.getvalue())

    cache = Cache(config)
    attempt(lambda: cache.write(KEY, TABLE, source=Source("https://a.example/laps")))
    cache.clear_memory()
    config.cache_encryption_key = [other]
    for call in (
        partial(cache.read, KEY), partial(cache.write, KEY, TABLE), cache.rotate_key, cache.verify_integrity,
        partial(cache.export, folder / "export"), cache.get_stats, cache.backup, partial(cache.info, KEY),
        partial(repr, config), config.to_dict, partial(repr, cache), partial(repr, Keyring.of(config)),
    ):  # fmt: skip
        attempt(call)
    urls = {
        "cdn_urls": [f"https://me:{password}@a.example/{{year}}", f"https://a.example/{{year}}?token={token}"],
        "alert_urls": [f"json://me:{password}@127.0.0.1:1/{token}", f"nosuch://{token}/{password}"],
        "cache_encryption_key": [key[:-1], f"{key}x"],
        "webserver_url": [f"ftp://me:{password}@a.example", f"http://me:x@{password}@127.0.0.1:1"],
        "cache_audit_log": [],
    }
    urls["schedule_urls"] = urls["cdn_urls"]
    for name, values in urls.items():
        for value in values:
            attempt(partial(Config, **{name: [value] if name != "webserver_url" else value}))
            attempt(partial(load_config, {f"TIF1_{name.upper()}": value}, folder))
    config.webserver_url = f"http://me:{password}@127.0.0.1:1"
    attempt(partial(repr, config))
    attempt(lambda: _reload(config.webserver_url))
    config.alert_urls = (f"json://me:{password}@127.0.0.1:{server.http.server_port}/{token}",)
    attempt(lambda: _alert(config))
    # A mirror that redirects to a signed URL, as object stores have them.
    server.replies["a"] = lambda exchange: exchange.send(
        b"", 302, location=f"{origin}/b/file.json?X-Signature={redirected}"
    )
    for answer in (ok_html, status(403), status(500), status(404)):
        server.replies["b"] = answer
        attempt(lambda: _fetch(server.mirror("a"), folder))
    server.replies["a"] = lambda exchange: exchange.send(b"", 302, location=f"ftp://me:{password}@x/?t={token}")
    attempt(lambda: _fetch(server.mirror("a"), folder))
    os.environ["HTTPS_PROXY"] = f"http://me:{password}@127.0.0.1:1"
    attempt(lambda: _fetch("https://a.invalid/{year}", folder))
    del os.environ["HTTPS_PROXY"]
    lines = [["config"], ["doctor", "--no-cdn"], ["config", "--json"], ["stats"], ["ls"], ["verify"]]
    for arguments in lines[: plan.count(10)]:
        attempt(partial(_command, arguments, folder, key, password, token))
    server.stop()
    cache.close()
    texts = {"a log": "\n".join(heard.said), "an error, a text or the command line": "\n".join(shown)}
    texts |= {str(path.relative_to(folder)): _text(path) for path in folder.rglob("*") if path.is_file()}
    for where, text in texts.items():
        for what, secret in hidden.items():
            row.tried += 1
            if secret in text or (what == "key" and secret[:-1] in text):
                row.leaked += 1
                at = text.index(secret[:-1])
                row.say(f"the {what} is shown in {where}: …{text[max(0, at - 160) : at]}[HERE]")
    row.remark = f"{len(heard.said)} log records from level 1 on, {len(shown)} texts, {len(texts) - 2} files searched"


def ok_html(exchange: Exchange) -> None:
    exchange.send(b"<html>signed</html>", 200, content_type="text/html")


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def _reload(url: str) -> object:
    import dagster as dg

    from tif1_pipeline.defs.reload import reload_location

    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(reload_location(context, url) or "reloaded")

    sensor = dg.SensorDefinition("look", evaluation_fn=look, job_name="x")
    with dg.DagsterInstance.ephemeral() as instance:
        return sensor.evaluate_tick(dg.build_sensor_context(instance=instance))


def _alert(config: Config) -> object:
    from tif1_pipeline.alerts import Alert, send

    return send(Alert("disk", "The disk is full", "Nothing is free."), config)


def _fetch(mirror: str, folder: Path) -> object:
    import tif1_pipeline as tif1

    config = tif1.get_config()
    config.update(
        {
            "cdn_urls": [mirror], "schedule_urls": [mirror], "cache_dir": folder / "fetched", "max_retries": 0,
            "request_timeout": 2, "cache_debug": True,
        }
    )  # fmt: skip
    try:
        return tif1.get_events(2025)
    finally:
        tif1.close()


def _command(arguments: list[str], folder: Path, key: str, password: str, token: str) -> object:
    environment = os.environ | {
        "TIF1_CACHE_DIR": str(folder / "cache"),
        "TIF1_CACHE_ENCRYPTION_KEY": key,
        "TIF1_ALERT_URLS": f"json://me:{password}@127.0.0.1:1/{token}",
        "TIF1_WEBSERVER_URL": f"http://me:{password}@127.0.0.1:1",
        "TIF1_OFFLINE": "1",
        "TIF1_CACHE_DEBUG": "1",
    }
    command = [sys.executable, "-m", "tif1_pipeline.cli", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    if not done.stdout or (arguments[0] == "config" and "***" not in done.stdout):
        raise RuntimeError(f"{command} did not print what was to be searched: {done}")
    return done.stdout, done.stderr


def secrets_in_dagster(folder: Path, plan: Plan, row: Row) -> None:
    """A real instance whose materialization fails: nothing secret in its database, its logs and its files."""
    import dagster as dg

    key, password, token, redirected = (secrets.token_hex(32) for _ in range(4))
    heard = Everything()
    logging.getLogger().addHandler(heard)
    server = MisbehavingServer()
    server.start()
    server.replies["a"] = lambda exchange: exchange.send(
        b"", 302, location=f"{server.origin}/b/file.json?X-Signature={redirected}"
    )
    server.replies["b"] = status(500)
    os.environ |= {
        "TIF1_CDN_URLS": server.mirror("a"),
        "TIF1_SCHEDULE_URLS": server.mirror("a"),
        "TIF1_CACHE_DIR": str(folder / "cache"),
        "TIF1_CACHE_ENCRYPTION_KEY": key,
        "TIF1_ALERT_URLS": f"json://me:{password}@127.0.0.1:1/{token}",
        "TIF1_WEBSERVER_URL": f"http://me:{password}@127.0.0.1:1",
        "TIF1_MAX_RETRIES": "0",
    }
    import tif1_pipeline as tif1

    tif1.get_config().update({name[5:].lower(): os.environ[name] for name in os.environ if name.startswith("TIF1_")})
    from tif1_pipeline.defs import automation

    # The same tries, without the time between them.
    automation.NETWORK_RETRIES = dg.RetryPolicy(max_retries=automation.NETWORK_RETRIES.max_retries)
    warnings.simplefilter("ignore", dg.BetaWarning)
    from tif1_pipeline.defs.assets.source import source_assets
    from tif1_pipeline.defs.io_manager import CacheIOManager
    from tif1_pipeline.defs.resources import TimingDataResource

    @dg.asset
    def stored() -> dict[str, int]:
        return {"a": 1}

    home = folder / "dagster"
    home.mkdir()
    resources = {"io_manager": CacheIOManager(), "timing_data": TimingDataResource()}
    schedule = [asset for asset in source_assets if getattr(asset, "key", None) == dg.AssetKey("schedule")]
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        options = {"resources": resources, "instance": instance, "raise_on_error": False}
        options["run_config"] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        done = dg.materialize([stored], **options)
        failed = dg.materialize(schedule, partition_key="2025", **options)
        events = [event for run in (done, failed) for event in instance.all_logs(run.run_id)]
    server.stop()
    row.tried += 2
    if not done.success or failed.success:
        row.wrong += 1
        row.say("the materializations did not end as they should, so that nothing was shown")
    texts = {"a log": "\n".join(heard.said), "the event log": "\n".join(map(repr, events))}
    texts |= {str(path.relative_to(folder)): _text(path) for path in folder.rglob("*") if path.is_file()}
    for where, text in texts.items():
        for what, secret in {"key": key, "password": password, "token": token, "redirect": redirected}.items():
            row.tried += 1
            if secret in text:
                row.leaked += 1
                at = text.index(secret)
                row.say(f"the {what} is shown in {where}: …{text[max(0, at - 160) : at]}[HERE]")
    row.remark = f"{len(events)} events, {len(texts) - 2} files of the instance searched"


# ---- encryption

CANARIES = ("Cassowary", "Quokka", "wombat_column", "Thylacine", "Numbat")
"""Values, a part's value, a column's name, a JSON value and its name."""


def encrypted(folder: Path, plan: Plan, row: Row) -> None:
    """No stored value as plain text in the file, its log, free pages, backups, or a folder that stood in."""
    import zstandard

    logging.disable()
    key = secrets.token_hex(32)
    config = Config(cache_dir=folder / "cache", cache_encryption_key=[key], cache_compression_level=1)
    entries = [EntryKey(f"asset/{number}", "asset") for number in range(4)]
    table = pa.table({"wombat_column": ["Cassowary"] * 50 + [f"Cassowary {secrets.token_hex(8)}" for _ in range(200)]})

    def search(what: str, *, plain: bool = False) -> None:
        found = {}
        for path in folder.rglob("*"):
            if path.is_file() and "export" not in path.parts:
                data = path.read_bytes()
                if path.name.endswith(".zst"):
                    data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
                found |= {canary: path.name for canary in CANARIES if canary.encode() in data}
        row.tried += len(CANARIES)
        if found and not plain:
            row.leaked += len(found)
            row.say(f"{what}: plain text of {found}")
        if plain and not found:
            row.wrong += 1
            row.say(f"{what}: the search finds nothing even in what is not encrypted: it proves nothing")

    for _ in range(plan.count(5)):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        with closing(Cache(config)) as cache:
            config.cache_encryption_key = None
            for entry in entries:
                cache.write(entry, table)
                cache.write(EntryKey(f"{entry.text}/json", "asset"), {"Numbat": ["Thylacine"] * 3})
            search("not encrypted yet", plain=True)
            config.cache_encryption_key = [key]
            cache.rotate_key()
            search("encrypted afterwards, in use")
            for entry in entries:
                cache.write(entry, table)
                cache.clear_memory()
                if cache.read(entry).value != table:
                    row.wrong += 1
                    row.say("an encrypted table did not come back")
            cache.write(EntryKey("json", "asset"), {"Numbat": "Thylacine"})
            search("encrypted as it is written, in use")
            cache.backup()
            search("backup")
        search("closed")
        config.cache_fallback_dir = folder / "fallback"
        (folder / "cache").rename(folder / "away")
        (folder / "cache").write_text("no folder")
        with closing(Cache(config)) as cache:
            cache.write(entries[0], table)
            search("in the folder that stands in")
        (folder / "cache").unlink()
        (folder / "away").rename(folder / "cache")
        config.cache_fallback_dir = None
    row.remark = "by design plain: keys, names of parts, URLs, sizes, times, checksums; and what is exported"


def rotated(folder: Path, plan: Plan, row: Row) -> None:
    """Afterwards no entry needs the former key, and none can be read without the new one."""
    logging.disable()
    keys = [secrets.token_hex(32) for _ in range(plan.count(5) + 1)]
    config = Config(cache_dir=folder / "cache", cache_encryption_key=keys[:1], cache_shards=2)
    entries = [EntryKey(f"asset/{number}", "asset") for number in range(12)]
    with closing(Cache(config)) as cache:
        for entry in entries:
            cache.write(entry, TABLE)
        for former, key in pairwise(keys):
            config.cache_encryption_key = [key, former]
            stop = threading.Event()

            def write(stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    cache.write(entries[0], TABLE)

            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            cache.rotate_key()
            stop.set()
            writer.join(30)
            for kept, readable in (([former], False), ([key], True)):
                config.cache_encryption_key = kept
                cache.clear_memory()
                for entry in entries:
                    row.tried += 1
                    hit = cache.read(entry)
                    if readable and hit is None:
                        row.lost += 1
                        row.say(f"{entry} cannot be read after the rotation")
                    if not readable and hit is not None:
                        row.leaked += 1
                        row.say(f"{entry} is still under the former key")
            used = {info.encryption for entry in entries if (info := cache.info(entry))}
            if used != {Keyring([bytes.fromhex(key)]).current}:
                row.wrong += 1
                row.say(f"entries are under the keys {used}")
    row.remark = f"{len(keys) - 1} rotations while another thread writes"


def cases(plan: Plan) -> list[Case]:
    """Return what is tried."""
    nursery.import_all()
    in_this = Cache(Config(cache_dir=plan.scratch / "warm-up"))
    in_this.write(KEY, disk.table(0))
    in_this.backup()
    in_this.export(plan.scratch / "warm-up" / "export")
    in_this.close()
    found: list[Case] = [("modes of files and folders under umasks 000 to 777", modes)]
    if os.geteuid() == 0:  # else this process cannot turn into others
        found += [
            ("owner, member of the group and stranger at one cache", users),
            ("owner, member and stranger in a folder that the group may write", users_of_a_shared_folder),
        ]
    return [
        *found,
        ("secrets in logs, errors, texts, files and on the command line", secrets_shown),
        ("secrets in a Dagster instance whose run fails", secrets_in_dagster),
        ("plain text in what is encrypted", encrypted),
        ("keys that were rotated away", rotated),
    ]
