"""Input made to harm: whatever a stranger hands over, an error of the package's own comes out, and nothing else.

Each kind is tried in a process of its own, with little address space, a time limit, and folders of its own around the
one that it may write to: what changes there, and a file that code in the input would write, are looked for afterwards.
Run as a module with arguments, it is such a process.
"""

import base64
import contextlib
import faulthandler
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests.stress.trial import Plan, Row

# ruff: noqa: B023 - what is made in a loop is called in the same turn

ROOT = Path(__file__).parents[2]
MEMORY = 4 << 30
"""Address space of a process."""
RESIDENT = 1 << 30
"""Memory that a process may take in fact."""
SLOWEST = 10.0
"""Seconds that one try may take."""

KINDS = {
    "decoders": ("published files that are none, or lie", 2500),
    "codec": ("stored headers, parts and JSON of sound checksums, changed", 1500),
    "parts": ("cache files of strangers: sound SQLite, parts made to harm", 160),
    "databases": ("cache files of strangers: triggers, views, other tables, other programs", 60),
    "keys": ("keys and names: paths, NUL, quotes, wildcards, 10 KB", 1000),
    "calendar": ("names of events and sessions to resolve", 2000),
    "settings": ("settings from environment, files and assignment", 2500),
    "archives": ("backups of strangers: paths, links, devices, bombs, lies", 240),
    "trees": ("exports of strangers: paths, links, pipes, bombs, lies", 240),
    "exports": ("entries of names made to leave the folder, exported and imported", 60),
}
"""What is tried, and how often."""


# ---- the parent


def rows(plan: Plan) -> Iterator[Row]:
    """Try each kind in a process; one row a kind."""
    for kind, (what, full) in KINDS.items():
        row = Row("hostile", what)
        folder = plan.scratch / kind
        for name in ("work", "home", "around"):
            (folder / name).mkdir(parents=True)
        (folder / "around" / "kept").write_text("as it was")
        before = _snapshot(folder)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")}
        environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "work"), "PYTHONPATH": str(ROOT)}
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "work" / ".hypothesis")
        seed = plan.chance(kind).randrange(1 << 30)
        command = [sys.executable, "-m", "tests.stress.hostile", kind, str(seed), str(plan.count(full))]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder / "around", env=environment)
        try:
            output, errors = process.communicate(timeout=60 + plan.seconds(240))
            reason = f"the process ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            reason = "the process hung"
        if process.returncode == 0:
            result = json.loads(output.splitlines()[-1])
            row.tried, row.wrong, row.leaked = result["tried"], len(result["wrong"]), len(result["leaked"])
            row.remark = result["remark"]
            for text in (*result["wrong"][:20], *result["leaked"][:20]):
                row.say(text)
        else:
            row.tried, row.wrong = 1, 1
            last = folder / "work" / "last"
            row.say(f"{reason}, at {last.read_text()[:300] if last.exists() else 'its start'}: {errors[-1500:]}")
        for name in sorted({name for name, _ in before.items() ^ _snapshot(folder).items()}):
            row.leaked += 1
            row.say(f"outside of its folder: {name}")
        shutil.rmtree(folder, ignore_errors=True)
        yield row


def _snapshot(folder: Path) -> dict[str, str]:
    """Return what there is around the folder that may be written to."""
    found = {}
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            folders.remove("work")
        for name in (*names, *folders):
            path = Path(parent, name)
            found[str(path)] = "folder" if path.is_dir() else path.read_bytes().hex()
    return found


# ---- the child


class Trying:
    """Tries of one kind.

    Args:
        seed: What chance follows from.
        count: How often to try.
    """

    def __init__(self, seed: int, count: int) -> None:
        self.chance = random.Random(seed)
        self.count = count
        self.work = Path.cwd().parent / "work"
        self.canary = self.work.parent / "around" / "canary"
        self.tried = 0
        self.wrong: list[str] = []
        self.leaked: list[str] = []
        self.refused: Counter[str] = Counter()
        self.slowest = 0.0

    def attempt(self, what: object, do: Callable[[], object], allowed: tuple[type[Exception], ...]) -> object | None:
        """Do something that may raise these errors, and no other; returns what came out, None if it was refused."""
        self.tried += 1
        shown = repr(what)
        shown = shown if len(shown) < 200 else f"{shown[:120]}… ({len(shown):,} characters)"
        (self.work / "last").write_text(shown, errors="backslashreplace")
        faulthandler.dump_traceback_later(3 * SLOWEST, exit=True)
        started = time.perf_counter()
        try:
            return do()
        except allowed as error:
            self.refused[type(error).__name__] += 1
            if not 10 <= len(str(error)) <= 20_000 + 4 * len(repr(what)):
                self.wrong.append(f"{shown}: an error of {len(str(error))} characters")
        except Exception as error:
            self.wrong.append(f"{shown}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            faulthandler.cancel_dump_traceback_later()
            seconds = time.perf_counter() - started
            self.slowest = max(self.slowest, seconds)
            if seconds > SLOWEST:
                self.wrong.append(f"{shown}: {seconds:.1f} s")
            if self.canary.exists():
                self.leaked.append(f"{shown}: its code was run")
                self.canary.unlink()
        return None

    def fuzz(self, strategy: Any, share: float, attempt: Callable[[Any], object]) -> None:
        """Try what Hypothesis makes up; it neither shrinks nor remembers."""
        from hypothesis import HealthCheck, Phase, given, seed, settings

        @seed(self.chance.randrange(1 << 30))
        @settings(
            max_examples=max(1, round(self.count * share)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(value: Any) -> None:
            attempt(value)

        run()

    def report(self) -> str:
        """Return what came out, as JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak > RESIDENT:
            self.leaked.append(f"{peak >> 20} MiB of memory were taken")
        refused = ", ".join(f"{number:,} {name}" for name, number in self.refused.most_common(4))
        remark = f"refused: {refused or 'none'}; slowest {self.slowest:.2f} s, most memory {peak >> 20} MiB"
        return json.dumps({"tried": self.tried, "wrong": self.wrong, "leaked": self.leaked, "remark": remark})

    # ---- what is made up

    @property
    def payload(self) -> bytes:
        """A pickle that writes the canary when it is loaded."""
        return pickle.dumps(_Payload(str(self.canary)))

    def mutated(self, data: bytes) -> bytes:
        """Return bytes with something changed: bits, lengths, offsets, pieces."""
        chance, changed = self.chance, bytearray(data)
        if not changed:
            return chance.randbytes(chance.randrange(64))
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            at = chance.randrange(len(changed) or 1)
            kind = chance.choice(["bit", "number", "number", "cut", "noise", "copy", "insert"])
            if kind == "bit" and changed:
                changed[at] ^= 1 << chance.randrange(8)
            elif kind == "number":
                width = chance.choice([1, 2, 4, 8])
                at -= at % width
                extreme = chance.choice([0, 1, -1, 1 << 7, 1 << 15, 1 << 30, (1 << 31) - 1, 1 << 40, (1 << 63) - 1])
                changed[at : at + width] = (extreme % (1 << 8 * width)).to_bytes(width, "little")
            elif kind == "cut":
                del changed[at : chance.choice([len(changed), at + chance.randint(1, 16)])]
            elif kind == "noise":
                changed[at : at + chance.randint(1, 32)] = chance.randbytes(chance.randint(1, 32))
            elif kind == "copy":
                other = chance.randrange(len(changed) or 1)
                changed[at : at + 16] = changed[other : other + 16]
            else:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
        return bytes(changed)


class _Payload:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


NASTY = (
    "", ".", "..", "../../../around/canary", "/around/canary", "\\..\\x", "a/b", "a//b", "~", "~nobody", "~/x", "\0",
    "a\0b", "'", '"', "'; DROP TABLE entries; --", "%", "_", "*", "?", "[", "[a-z]", "[!a]", "]", "{year}", "{0.x}",
    "%s%n", "$(touch canary)", "`touch canary`", "${HOME}", "💥" * 40, "x" * 10_000, "../" * 3_000, "é" * 5_000,
    "\x1b[31m", "\r\n", "\n", "\t", "\x7f", "\ud800", "a\udfffb", "\u202e", "\ufeff", "İ", "ß", "ﬁ", "CON", "nan",
    "None", "-1", "0", "1e999", "9" * 5_000, "٢٠٢٥", "²", "2025", "2025_monaco_race_laps_pandas",
    "2025_" + "race_" * 2_000, "2025_x_race_" + "a" * 9_000, "2025 " + "Race " * 2_000, "round " + "9" * 99, "-0",
    "2025_monaco_race_laps_pandas/../x", "2025_monaco_race_laps_pandas/" + "V" * 9_000, "*" * 9_000, "[" * 9_000,
)  # fmt: skip
"""Names that have broken other programs."""


CLOSE = (
    "1", "1e9", "7d", "-1s", "nan", "inf", "1e400d", "9" * 400 + "d", "* * * * *", "0 0 31 2 *", "*/0 * * * *",
    "0 0 * * 1#9", "https://[", "https://x:99999/", "http://127.0.0.1@evil/", "~nobody/x", "../../x.db",
)  # fmt: skip
"""Values that are nearly ones of settings."""


def texts() -> Any:
    """Return a strategy of names."""
    from hypothesis import strategies as st

    nasty = st.sampled_from(NASTY)
    anything = st.text(st.characters(), max_size=60)
    return st.one_of(nasty, anything, st.tuples(nasty, anything, nasty).map("".join))


# ---- files from the CDN


def decoders(t: Trying) -> None:
    """Published files."""
    from hypothesis import strategies as st

    from tests.decode.test_decode_properties import DECODERS, JSON
    from tif1_pipeline.exceptions import InvalidDataError
    from tif1_pipeline.simulator import Season

    season = Season(2025, seed=t.chance.randrange(99), events=1, size="tiny")
    paths = t.chance.sample(list(season.paths()), 80)
    bodies = [season.schedule(), *(body for path in paths if (body := season.file(path)) and len(body) < 200_000)]
    decode = list(DECODERS)
    fitting = [(one, body) for one in decode for body in bodies if _fits(one, body)]

    def look(body: bytes, one: Any = None) -> None:
        one = one or t.chance.choice(decode)
        table = t.attempt((DECODERS[one].name, body), lambda: one(body), (InvalidDataError,))
        if table is not None:
            _use(t, table, body)

    t.fuzz(JSON.map(lambda value: json.dumps(value).encode()), 0.2, look)
    t.fuzz(st.binary(max_size=300), 0.1, look)
    for number in range(round(t.count * 0.7)):
        one, body = t.chance.choice(fitting)
        if number % 2:
            look(t.mutated(body), one)
        else:
            look(json.dumps(_distorted(t, json.loads(body), 0)).encode(), one)
    deep, long = b"[" * 100_000 + b"]" * 100_000, b'{"time":[' + b"1," * 2_000_000 + b"1]}"
    for body in (deep, b'{"tel":' * 50_000, long, b'{"tel":%s}' % long, b'{"lap":"' + b"x" * 10_000_000 + b'"}'):
        for one in decode:
            t.attempt(body[:20], lambda one=one, body=body: one(body), (InvalidDataError,))


def _fits(decode: Callable[[bytes], Any], body: bytes) -> bool:
    with suppress(Exception):
        return decode(body) is not None
    return False


def _distorted(t: Trying, value: Any, depth: int) -> Any:
    chance = t.chance
    if chance.random() < (0.02 if depth else 0):
        odd = [None, "", "None", "NaN", 1e308, -1e308, 1 << 70, [], {}, [[]], "\ud800", *NASTY]
        return chance.choice(odd)
    if isinstance(value, dict):
        return {
            (chance.choice(NASTY) if chance.random() < 0.01 else name): _distorted(t, item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list):
        items = [_distorted(t, item, depth + 1) if chance.random() < 0.1 else item for item in value]
        return items[: chance.randrange(len(items) + 1)] if chance.random() < 0.05 else items
    return value


def _use(t: Trying, value: Any, what: object) -> None:
    """Touch every cell: what came through must be sound, whatever it says."""
    import pyarrow as pa

    if value is None or isinstance(value, dict | list | str | int | float):
        return
    if isinstance(value, pa.Table):
        t.attempt(("validating", what), lambda: value.validate(full=True), ())
        t.tried -= 1
    with suppress(Exception):  # a crash is looked for
        frame = value.to_pandas() if isinstance(value, pa.Table) else value
        str(frame.head(50))
        for position in range(len(frame.columns)):
            str(frame.iloc[:, position].head(50).to_list())


# ---- stored bytes


def _table() -> Any:
    """Return a table of every kind of column that decodes in another way."""
    import pyarrow as pa

    rows = 400
    return pa.table(
        {
            "code": pa.array([("a", "b", "c")[row % 3] for row in range(rows)]).dictionary_encode(),
            "number": pa.array([row / 3 for row in range(rows)], pa.float32()),
            "whole": list(range(rows)),
            "gaps": [None if row % 4 else row for row in range(rows)],
            "flag": [row % 2 == 0 for row in range(rows)],
            "text": [None if row % 5 == 0 else f"text {row}" for row in range(rows)],
            "time": pa.array(range(rows), pa.duration("ns")),
            "list": [[row, row + 1] for row in range(rows)],
            "nested": [{"a": row, "b": [str(row)]} for row in range(rows)],
        }
    )


def _header_with_pickle(t: Trying) -> bytes:
    """Return a stored header whose column is of a type that former versions of Arrow unpickled."""
    import pyarrow as pa

    names = ("arrow.py_extension_type", "pandas.period", "pandas.interval")
    marks = {
        b"ARROW:extension:name": t.chance.choice(names).encode(),
        b"ARROW:extension:metadata": t.chance.choice([t.payload, b"{", b'{"freq": "__import__"}', b""]),
    }
    metadata = {b"pandas": t.chance.choice([t.payload, b"{", b"[]", b"{}", b'{"index_columns": [{"kind": "x"}]}'])}
    schema = pa.schema([pa.field("whole", pa.int64(), metadata=marks)], metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema):
        pass
    return sink.getvalue().to_pybytes()


def _bombs(t: Trying) -> list[bytes]:
    """Return small stored JSON and Parquet that grow without end."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    big = zstandard.ZstdCompressor(level=1)
    sink = pa.BufferOutputStream()
    constant = pa.table({"whole": pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int8()), ["x" * 1_000])})
    pq.write_table(constant, sink, compression="zstd")
    declared = bytearray(big.compress(b"[1]" * 1_000))
    declared[5:7] = b"\xff\xff"
    frame = struct.pack("<I", 0xFD2FB528) + b"\xe0" + struct.pack("<Q", 1 << 62)  # says that it grows to that
    return [big.compress(bytes(1 << 30)), bytes(declared), frame + b"\0" * 20, sink.getvalue().to_pybytes(), t.payload]


def codec(t: Trying) -> None:
    """Stored headers and parts, with the checksums that whoever changed them would give them."""
    from tif1_pipeline.cache import codec as stored
    from tif1_pipeline.cache.codec import Blob, crc
    from tif1_pipeline.exceptions import CorruptEntryError

    table = _table()
    whole = stored.encode_table(table, 3)
    split = stored.encode_table(table.append_column("part", table["code"].cast("string")), 3, "part")
    text = stored.encode_json(json.dumps({"a": ["text"] * 500, "b": {"c": 1.5}}).encode(), 3)

    def blob(name: str, data: bytes) -> Blob:
        return Blob(name, data, crc(data))

    def read(header: bytes, parts: list[bytes]) -> None:
        def decode() -> Any:
            return stored.decode_table(blob("header", header), [blob(str(n), part) for n, part in enumerate(parts)])

        _use(t, t.attempt((header[:80], len(header), [len(part) for part in parts]), decode, (CorruptEntryError,)), "")

    for number in range(t.count):
        encoded = t.chance.choice([whole, split])
        assert encoded.header is not None
        header, parts = encoded.header.data, [part.data for part in encoded.blobs]
        if number % 5 == 0:
            data = t.mutated(text.blobs[0].data)
            t.attempt(data, lambda data=data: stored.decode_json(blob("", data), text.size_bytes), (CorruptEntryError,))
        elif number % 5 == 1:
            place = t.chance.randrange(len(parts))
            # Half of them in the footer, which says where everything is.
            cut = max(0, len(parts[place]) - 1_500) if t.chance.random() < 0.5 else 0
            read(header, [*parts[:place], parts[place][:cut] + t.mutated(parts[place][cut:]), *parts[place + 1 :]])
        elif number % 50 == 3:  # the offsets of the words of a dictionary
            words = struct.pack("<4i", 0, 1, 2, 3)
            assert words in header
            far = t.chance.choice([1 << 20, 1 << 30, -(1 << 30)])
            read(header.replace(words, struct.pack("<4i", 0, far, far + 1, far + 2)), t.chance.choice([parts, []]))
        elif number % 50 == 4:
            read(t.mutated(header), [])
        elif number % 50 == 2:
            read(_header_with_pickle(t), parts)
        else:
            read(t.mutated(header), parts)
    for data in _bombs(t):
        t.attempt(
            ("bomb", len(data)), lambda data=data: stored.decode_json(blob("", data), 1_000), (CorruptEntryError,)
        )
        read(whole.header.data if whole.header else b"", [data])
        read(data, [part.data for part in whole.blobs])


def _cache(t: Trying, name: str, **settings: Any) -> Any:
    from tif1_pipeline.cache import Cache
    from tif1_pipeline.config import Config

    return Cache(Config(cache_dir=t.work / name, cache_lock_timeout=2, memory_cache_max_mb=64, **settings))


def _key(name: str = "laps") -> Any:
    from tif1_pipeline.keys import SessionKey

    return SessionKey(2025, "Monaco Grand Prix", "Race").entry(name)


VALUE = {"sound": [1, 2, 3]}


def parts(t: Trying) -> None:
    """Read what somebody has put into a cache file with its checksums and seals."""
    from tif1_pipeline.cache import codec as stored
    from tif1_pipeline.cache.codec import crc
    from tif1_pipeline.exceptions import Tif1Error

    bombs = _bombs(t)
    for number in range(t.count):
        cache = _cache(t, f"parts{number % 4}", memory_cache_enabled=False)
        cache.write(_key(), _table())
        cache.write(_key("json"), VALUE)
        with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
            look = "SELECT parts.id, data FROM parts JOIN entries ON entries.id = entry_id WHERE data_type = ?"
            (header, told), (part, held) = connection.execute(look, ("laps",)).fetchall()
            ((text, said),) = connection.execute(look, ("json",)).fetchall()
            kind = t.chance.choice(["header", "part", "text", "rows", "pickle", "bomb", "other table"])
            changes = {
                "header": [(header, t.mutated(told))],
                "part": [(part, t.mutated(held))],
                "text": [(text, t.mutated(said))],
                "pickle": [(header, _header_with_pickle(t)), (text, t.payload)],
                "bomb": [(t.chance.choice([header, part, text]), t.chance.choice(bombs))],
                "other table": [(part, stored.encode_table(_table().slice(0, 7).select(["code"]), 3).blobs[0].data)],
            }.get(kind, [])
            for id_, data in changes:
                row = (data, crc(data), len(data), id_)
                connection.execute("UPDATE parts SET data = ?, checksum = ?, size = ? WHERE id = ?", row)
            if kind == "rows":
                size = t.chance.choice([0, -1, 1, 1 << 33, (1 << 62)])
                connection.execute("UPDATE entries SET rows = ?, size_bytes = ?", (size, t.chance.choice([1, size])))
            connection.execute("UPDATE entries SET generation = substr(generation, 1, 32)")
        for as_ in ("pandas", "arrow"):
            hit = t.attempt((kind, number, as_), lambda as_=as_: cache.read(_key(), as_), (Tif1Error,))
            _use(t, hit and hit.value, kind)
        t.attempt((kind, number, "json"), lambda: cache.read(_key("json"), "json"), (Tif1Error,))
        if number % 8 == 0:
            t.attempt((kind, number, "verify"), cache.verify_integrity, (Tif1Error,))
        cache.close()


def databases(t: Trying) -> None:
    """Open files that are something else than a cache, or do something of their own."""
    from tif1_pipeline.cache import Fresh
    from tif1_pipeline.cache.connection import APPLICATION_ID, LAYOUT_VERSION
    from tif1_pipeline.exceptions import Tif1Error

    canary = str(t.canary).replace("'", "''")
    objects = [
        "CREATE TRIGGER evil AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE key <> NEW.key; END",
        "CREATE TRIGGER evil AFTER UPDATE ON entries BEGIN INSERT INTO leases VALUES ('x', 'x', 1e300); END",
        f"CREATE TRIGGER evil BEFORE DELETE ON parts BEGIN SELECT writefile('{canary}', 'x'); END",
        f"CREATE VIEW evil AS SELECT load_extension('{canary}')",
        "CREATE TABLE loop (a); CREATE TRIGGER evil AFTER INSERT ON entries BEGIN INSERT INTO loop "
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3000000) SELECT x FROM n; END",
        "DROP TABLE parts; CREATE VIEW parts AS SELECT 1 AS id, 1 AS entry_id, 0 AS ordinal, '' AS name, 0 AS size, "
        "'' AS checksum, zeroblob(1000000000) AS data",
        "DROP TABLE entries; CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT)",
        "DROP TABLE entries; CREATE VIEW entries AS SELECT * FROM parts",
        "DROP TABLE leases", "DROP TABLE cache_metadata",
        f"PRAGMA application_id={APPLICATION_ID + 1}", f"PRAGMA user_version={LAYOUT_VERSION + 9}",
        "CREATE INDEX evil ON entries (abs(key))", "CREATE TABLE sqlar (name TEXT, data BLOB)",
    ]  # fmt: skip
    for number in range(t.count):
        cache = _cache(t, f"databases{number}", memory_cache_enabled=False)
        cache.write(_key("json"), VALUE)
        cache.close()
        statement = objects[number % len(objects)]
        with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
            connection.executescript(statement)
        calls = {
            "read": lambda: cache.read(_key("json"), "json"),
            "read through": lambda: cache.read_through(_key("json"), lambda _: Fresh(VALUE), "json"),
            "write": lambda: cache.write(_key("laps"), _table()),
            "list": lambda: cache.get_entries(),
            "statistics": lambda: cache.get_stats(),
            "verify": lambda: cache.verify_integrity(),
            "backup": lambda: cache.backup(),
            "clear": lambda: cache.clear(),
        }
        for name, call in calls.items():
            t.attempt((statement, name), call, (Tif1Error,))
        with suppress(Tif1Error):
            cache.close()
        shutil.rmtree(t.work / f"databases{number}", ignore_errors=True)


# ---- names


def keys(t: Trying) -> None:
    """Give names of all kinds to every call that takes one; what is stored under other names must stay."""
    from hypothesis import strategies as st

    from tif1_pipeline.exceptions import Tif1Error
    from tif1_pipeline.keys import EntryKey, SessionKey, generate_cache_key, path_segment, session_name

    cache = _cache(t, "keys")
    kept = _key("kept")
    cache.write(kept, VALUE)
    calls: list[Callable[[str], Any]] = [
        SessionKey.parse,
        session_name,
        path_segment,
        lambda name: generate_cache_key(2025, name, "Race", name),
        cache.read,
        cache.info,
        cache.search,
        cache.remove,
        cache.verify_entry,
        cache.evict_memory,
        cache.get_by_type,
        cache.clear_type,
        cache.clear_pattern,
        cache.invalidate_pattern,
        lambda name: cache.exists(2025, name, "Race", name),
        lambda name: cache.get_metadata(2025, name, "Race", name),
        lambda name: cache.clear_session(2025, name, "Race"),
        lambda name: cache.clear_event(2025, name),
        lambda name: cache.list_sessions(sort_by=name),
        lambda name: cache.get_entries(data_type=name),
        lambda name: cache.read(kept, "json", columns=[name]),
        lambda name: cache.read(kept, name),
    ]

    def look(pair: tuple[str, int]) -> None:
        name, number = pair
        call = calls[number % len(calls)]
        t.attempt((number % len(calls), name), lambda: call(name), (Tif1Error,))
        if name not in ("*", "kept") and "*" not in name and "?" not in name and cache.read(kept, "json") is None:
            t.wrong.append(f"call {number % len(calls)} with {name!r:.200} removed another entry")
        cache.write(kept, VALUE) if cache.info(kept) is None else None

    t.fuzz(st.tuples(texts(), st.integers(0, 9999)), 0.7, look)

    def store(names: tuple[str, str]) -> None:
        key = EntryKey(names[0], names[1])
        written = t.attempt(("write", *names), lambda: cache.write(key, {"name": len(names[0])}), (Tif1Error,))
        if written is None or key.text == kept.text:
            return
        cache.clear_memory()
        hit = t.attempt(("read", *names), lambda: cache.read(key, "json"), (Tif1Error,))
        if hit is None or hit.value != {"name": len(names[0])}:
            t.wrong.append(f"{names[0]!r:.200} was stored and not read")
        t.attempt(("remove", *names), lambda: cache.remove(key), (Tif1Error,))

    t.fuzz(st.tuples(texts(), texts()), 0.3, store)
    cache.close()


def calendar(t: Trying) -> None:
    """Resolve names."""
    from hypothesis import strategies as st

    from tif1_pipeline.calendar import SeasonCalendar
    from tif1_pipeline.decode import decode_schedule
    from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError
    from tif1_pipeline.simulator import Season

    season = Season(2025, seed=1, size="tiny")
    found = SeasonCalendar.from_table(2025, decode_schedule(season.schedule()))
    names = [event.name for event in found.events] + [str(event.location) for event in found.events]
    typed = st.builds(
        lambda name, _: t.mutated(name.encode()).decode("utf-8", "replace"), st.sampled_from(names), st.integers()
    )

    def look(name: Any) -> None:
        event = t.attempt(name, lambda: found.find(name), (DataNotFoundError, InvalidDataError))
        if event is not None:
            t.attempt((event, name), lambda: event.session(str(name)), (DataNotFoundError, InvalidDataError))

    t.fuzz(st.one_of(texts(), typed, st.integers(), st.floats(), st.none()), 1, look)


# ---- settings


def settings(t: Trying) -> None:
    """Set settings to anything, by assignment, environment and file."""
    from hypothesis import strategies as st

    from tif1_pipeline.config import Config, load_config
    from tif1_pipeline.exceptions import ConfigError

    names = sorted(Config().to_dict())
    anything = st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            texts(),
            st.binary(max_size=20),
            st.dates(),
            st.timedeltas(),
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=5,
    )
    config = Config()

    def assign(pair: tuple[str, Any]) -> None:
        t.attempt(pair, lambda: setattr(config, *pair), (ConfigError,))
        t.attempt(("shown after", *pair), lambda: repr(config), ())

    t.fuzz(st.tuples(st.sampled_from(names), anything), 0.4, assign)
    close = st.sampled_from(CLOSE)
    words = st.one_of(texts(), close).filter(lambda text: "\0" not in text)

    def environ(pair: tuple[str, str]) -> None:
        given = {f"TIF1_{pair[0].upper()}": pair[1]}
        t.attempt(given, lambda: load_config(given, t.work), (ConfigError,))

    t.fuzz(st.tuples(st.one_of(st.sampled_from(names), texts()), words), 0.3, environ)
    file = t.work / "settings.toml"

    def read(body: bytes) -> None:
        file.write_bytes(body)
        t.attempt(body, lambda: load_config({"TIF1_CONFIG": str(file)}, t.work), (ConfigError,))
        (t.work / "pyproject.toml").write_bytes(body)
        t.attempt(body, lambda: load_config({}, t.work), (ConfigError,))

    values = st.sampled_from(
        ["1", '"x"', "[]", "{}", "nan", "2025-01-01", "true", "[1, 'a']", "1e999", '"../.."', "''"]
    )
    lines = st.tuples(st.sampled_from(names), values).map(" = ".join)
    heads = st.sampled_from(
        [
            "",
            "[tool.tif1_pipeline]",
            "tool = 3",
            "[tool]\ntif1_pipeline = 3",
            "[[tool.tif1_pipeline]]",
            "[tool.tif1_pipeline.x]",
        ]
    )
    toml = st.tuples(heads, st.lists(lines, max_size=4)).map(lambda both: "\n".join([both[0], *both[1]]).encode())
    t.fuzz(st.one_of(toml, st.binary(max_size=60)), 0.15, read)
    for path in NASTY:
        t.attempt(path, lambda path=path: load_config({"TIF1_CONFIG": path}, t.work), (ConfigError,))


# ---- archives and trees


def archives(t: Trying) -> None:
    """Restore backups that somebody else has made."""
    from tif1_pipeline.exceptions import Tif1Error

    other, cache = _cache(t, "other"), _cache(t, "archives", memory_cache_enabled=False)
    other.write(_key("json"), {"other": 1})
    other.write(_key(), _table())
    sound = other.backup(t.work / "backups")
    other.close()
    cache.write(_key("json"), VALUE)
    path = t.work / "given"
    for number in range(t.count):
        content = _archive(t, sound.read_bytes(), number)
        with suppress(FileNotFoundError):
            path.unlink()
        path.write_bytes(content)
        refused = len(t.refused), t.refused.total()
        t.attempt((number, len(content)), lambda: cache.restore(path), (Tif1Error,))
        hit = t.attempt((number, "read"), lambda: cache.read(_key("json"), "json"), (Tif1Error,))
        value = hit.value if hit else None
        if t.refused.total() > refused[1] and value != VALUE:
            t.wrong.append(f"{number}: a backup that was refused has changed the cache to {value!r:.200}")
        if value != VALUE:
            _use(t, (table := cache.read(_key())) and table.value, number)
            t.attempt((number, "write"), lambda: cache.write(_key("json"), VALUE), (Tif1Error,))
        if left := [name.name for name in (t.work / "archives").iterdir() if "partial" in name.name]:
            t.leaked.append(f"{number}: left behind: {left}")
    for odd in (t.work, t.work / "missing", Path("/dev/zero"), Path("/dev/full"), t.work / "pipe"):
        if odd.name == "pipe":
            os.mkfifo(odd)
        t.attempt(odd, lambda odd=odd: cache.restore(odd), (Tif1Error,))
    cache.close()


def _archive(t: Trying, sound: bytes, number: int) -> bytes:
    """Return a backup with something wrong in it."""
    import zstandard

    chance = t.chance
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(sound)).read()

    def packed(data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)

    kind = number % 8
    if kind == 0:
        return t.mutated(sound)
    if kind == 1:
        return packed(t.mutated(plain[:4096]) + plain[4096:])
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        files = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    manifest, (name, database) = json.loads(files[0][1]), files[1]
    if kind == 2:  # a database of its own making, of the right hash
        database = _database(t, database)
    if kind == 3:
        database = t.mutated(database)
    manifest["members"] = [
        {
            "name": name,
            "size": len(database),
            "blake2b": hashlib.blake2b(database, digest_size=32).hexdigest(),
            "entries": 2,
        }
    ]
    if kind == 4:
        member = manifest["members"][0]
        lies = [("size", 1 << 49), ("size", -1), ("size", "x"), ("name", "../x"), ("name", "/x"), ("blake2b", "0" * 64),
                ("entries", -1), ("entries", [1]), ("more", 1), ("name", "\0"), ("name", 7)]  # fmt: skip
        for _ in range(chance.randint(1, 2)):
            what, value = chance.choice(lies)
            member[what] = value
    if kind == 5:
        lies = [("format", 9), ("layout", 99), ("layout", "1"), ("members", []), ("members", {}), ("format", -1),
                ("members", [7]), ("members", manifest["members"] * 200), ("created_at", 7),
                ("library_version", None)]  # fmt: skip
        what, value = chance.choice(lies)
        manifest[what] = value
    text = json.dumps(manifest).encode()
    if kind == 6 and chance.random() < 0.3:
        text = chance.choice([b"[" * 100_000, b"{}", b"7", t.payload, text[:-1], b" " * (2 << 20) + text])
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=chance.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    ) as archive:
        for at, (member, data) in enumerate([("manifest.json", text), (name, database)]):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            if kind == 6 and at == chance.randrange(2):
                info.type = chance.choice(
                    [
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.CHRTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.DIRTYPE,
                        tarfile.REGTYPE,
                    ]
                )
                info.linkname = chance.choice(["/etc/passwd", "../../around/kept"])
                info.name = chance.choice(["../../around/canary", str(t.canary), member, "x" * 300])
                info.size = len(data) if info.type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    content = sink.getvalue()
    if kind == 7:
        zeros = zstandard.ZstdCompressor(level=1)
        bomb = chance.choice(
            [
                lambda: zeros.compress(bytes(1 << 29)),
                lambda: packed(content[:2048]) + b"".join([zeros.compress(bytes(1 << 26))] * 8),
                lambda: zstandard.ZstdCompressor(
                    compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=1)
                ).compress(content),
                lambda: b"PK\3\4" + content[:500],
                lambda: packed(content + bytes(1 << 28)),
            ]
        )
        return bomb()
    return packed(content)


def _database(t: Trying, database: bytes) -> bytes:
    """Return a database with something in it that no cache has."""
    statements = [
        "CREATE TRIGGER evil AFTER DELETE ON leases BEGIN DELETE FROM entries; END",
        "CREATE VIEW evil AS SELECT * FROM entries",
        "CREATE TABLE evil (a)",
        "ALTER TABLE entries ADD COLUMN evil TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000))) VIRTUAL",
        "CREATE INDEX evil ON entries (abs(key))",
        "DROP INDEX parts_entry",
        "DROP TABLE parts; CREATE VIEW parts AS SELECT 1 AS id",
        "PRAGMA application_id=7",
        "PRAGMA user_version=99",
        "PRAGMA user_version=1",
        "UPDATE entries SET rows = 1 << 40, size_bytes = 1 << 62",
        "UPDATE parts SET checksum = 'x', data = zeroblob(10)",
        "UPDATE entries SET created_at = 'x', parts = '[' , library_version = 7",
        "INSERT INTO leases VALUES ('2025_monaco_race_json_pandas', 'x', 1e300)",
        "CREATE VIRTUAL TABLE evil USING fts5(a)",
        "UPDATE parts SET entry_id = 99",
    ]
    path = t.work / "making.db"
    path.write_bytes(database)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, suppress(sqlite3.Error):
        connection.executescript(t.chance.choice(statements))
    content = path.read_bytes()
    path.unlink()
    return content


def trees(t: Trying) -> None:
    """Import folders that somebody else has exported."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tif1_pipeline.exceptions import Tif1Error

    chance = t.chance
    other, cache = _cache(t, "other"), _cache(t, "trees", memory_cache_enabled=False)
    other.write(_key("json"), {"other": 1})
    other.write(_key(), _table())
    other.export(t.work / "sound")
    other.close()
    cache.write(_key("kept"), VALUE)
    files = [
        (path.relative_to(t.work / "sound"), path.read_bytes())
        for path in (t.work / "sound").rglob("*")
        if path.is_file()
    ]
    bombs = _bombs(t)
    for number in range(t.count):
        folder = t.work / f"tree{number}"
        for relative, content in files:
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = chance.choice(["mutated", "mutated", "notes", "link", "pipe", "bomb", "pickle", "place", "sound"])
            if kind == "mutated":
                cut = max(0, len(content) - 4_000) if chance.random() < 0.5 else 0
                content = content[:cut] + t.mutated(content[cut:])
            elif kind == "notes":
                content = _with_notes(t, path.suffix, content)
            elif kind == "bomb":
                content = chance.choice(bombs)
            elif kind == "pickle":
                table = pa.table({"a": [1]}).replace_schema_metadata(
                    {
                        "tif1_pipeline": t.payload,
                        "pandas": t.payload,
                        "ARROW:schema": base64.b64encode(_header_with_pickle(t)),
                    }
                )
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink)
                content = sink.getvalue().to_pybytes()
            elif kind == "place":
                name = chance.choice(
                    ["%2e%2e%2f%2e%2e%2faround%2fcanary", "%00", "%ff", "\udcff", "a" * 200, "~x", "%25", "VER"]
                )
                path = path.with_name(name + path.suffix)
            if kind == "link":
                path.symlink_to(chance.choice(["/dev/zero", "../../../around/kept", "/proc/self/environ", folder]))
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.write_bytes(content)
        if number % 6 == 0:
            (folder / "2025").mkdir(exist_ok=True)
            (folder / "2025" / "up").symlink_to(t.work.parent)
        t.attempt((number, "import"), lambda folder=folder: cache.import_(folder), (Tif1Error,))
        if cache.read(_key("kept"), "json") is None:
            t.wrong.append(f"{number}: an import has removed another entry")
        for entry in cache.get_entries():
            hit = t.attempt(
                (number, entry["key"]),
                lambda key=entry["key"]: (
                    cache.read(key) if entry["data_type"] != "json" and key != _key("kept").text else None
                ),
                (Tif1Error,),
            )
            _use(t, hit and hit.value, number)
        if number % 10 == 9:
            cache.clear()
            cache.write(_key("kept"), VALUE)
        shutil.rmtree(folder)
    cache.close()


def _with_notes(t: Trying, suffix: str, content: bytes) -> bytes:
    """Return an exported file that says something else of itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = t.chance
    odd = [None, 7, -1, 1 << 70, "", [], {}, "json", "arrow", "9999-12-31T00:00:00+00:00", *NASTY]

    def lie(notes: dict[str, Any]) -> dict[str, Any]:
        for _ in range(chance.randint(1, 2)):
            notes[chance.choice(sorted(notes))] = chance.choice(odd)
        return notes

    if suffix == ".json":
        value = json.loads(content)
        name = next(iter(value))
        return json.dumps({**value, name: lie(value[name])}).encode()
    table = pq.read_table(pa.BufferReader(content))
    metadata = dict(pq.read_metadata(pa.BufferReader(content)).metadata)
    for name, text in list(metadata.items()):
        if name == b"tif1_pipeline" and chance.random() < 0.6:
            metadata[name] = json.dumps(lie(json.loads(text))).encode()
        elif name == b"tif1_pipeline_schema" and chance.random() < 0.6:
            metadata[name] = base64.b64encode(t.mutated(base64.b64decode(text)))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def exports(t: Trying) -> None:
    """Export entries whose names lead elsewhere, and import them again."""
    from tif1_pipeline.exceptions import Tif1Error
    from tif1_pipeline.keys import EntryKey

    for number in range(t.count):
        cache, other = _cache(t, f"from{number}"), _cache(t, f"to{number}")
        stored = {}
        for name in t.chance.sample(NASTY[1:], 12):
            event, more = t.chance.choice(NASTY), t.chance.choice(NASTY)
            key = EntryKey(name, more[:500], 2025, event[:500], more[:500])
            if t.attempt(("write", name), lambda key=key: cache.write(key, VALUE), (Tif1Error,)) is not None:
                stored[name] = key
        folder = t.work / f"exports{number}"
        t.attempt((number, "export"), lambda folder=folder: cache.export(folder), (Tif1Error,))
        t.attempt((number, "import"), lambda folder=folder, other=other: other.import_(folder), (Tif1Error,))
        if (found := {entry["key"] for entry in other.get_entries()}) != {
            entry["key"] for entry in cache.get_entries()
        }:
            lost = {entry["key"] for entry in cache.get_entries()} - found
            t.wrong.append(f"{number}: other keys came back: {[k[:30] + str(len(k)) for k in lost]}")
        for each in (cache, other):
            each.close()
        for name in (f"from{number}", f"to{number}", f"exports{number}"):
            shutil.rmtree(t.work / name, ignore_errors=True)


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 30, 2 << 30))
    logging.disable()
    trying = Trying(int(sys.argv[2]), int(sys.argv[3]))
    with contextlib.redirect_stdout(sys.stderr):
        globals()[sys.argv[1]](trying)
    print(trying.report())
