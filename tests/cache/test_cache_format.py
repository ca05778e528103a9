"""Files that an older or newer version left, or another program: entries are missed or kept, never misread or lost."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

import tif1_pipeline
from tif1_pipeline.cache import Cache, Fresh, Source
from tif1_pipeline.cache.codec import FORMAT_VERSION
from tif1_pipeline.cache.connection import APPLICATION_ID, LAYOUT_VERSION, create_file, layout_of
from tif1_pipeline.cache.schema import METADATA
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.keys import EntryKey, SessionKey

SESSION = SessionKey(2025, "Monaco Grand Prix", "Race")
LAPS, WEATHER, ASSET = SESSION.entry("laps"), SESSION.entry("weather"), EntryKey("plan", "asset", pinned=True)
TABLE = pa.table({"Driver": ["VER", "NOR"] * 50, "n": list(range(100))})
LAPS_SCHEMA = DATASETS["laps"].schema_version
MAJOR = int(tif1_pipeline.__version__.split(".")[0])

# Another version of the package in another process: imported anew, with a constant changed before anybody takes it.
OTHER_VERSION = """
for name in [name for name in sys.modules if name.startswith("tif1_pipeline")]:
    del sys.modules[name]
import dataclasses, tif1_pipeline
from tif1_pipeline import datasets
kind = sys.argv[2]
if kind == "format":
    from tif1_pipeline.cache import codec, store
    codec.FORMAT_VERSION = store.FORMAT_VERSION = codec.FORMAT_VERSION + 1
elif kind == "library":
    tif1_pipeline.__version__ = f"{int(tif1_pipeline.__version__.split('.')[0]) + 1}.0.0"
else:
    laps = datasets.DATASETS["laps"]
    datasets.DATASETS["laps"] = dataclasses.replace(laps, schema_version=laps.schema_version + 1)
from tif1_pipeline.cache import Cache, Fresh, Source
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey
schema = datasets.DATASETS["laps"].schema_version
cache = Cache(Config(cache_dir=sys.argv[1], cache_lock_timeout=5))
session = SessionKey(2025, "Monaco Grand Prix", "Race")
laps, weather = session.entry("laps"), session.entry("weather")
"""


def fill(cache: Cache) -> None:
    """Three entries of this version: a table in parts, a table, and a pinned JSON value."""
    source = Source("https://example.org/laps", '"etag"', "Sun, 22 Nov 2026 10:00:00 GMT")
    assert cache.write(LAPS, TABLE, part_by="Driver", schema_version=LAPS_SCHEMA, source=source).stored
    assert cache.write(WEATHER, TABLE, schema_version=DATASETS["weather"].schema_version).stored
    assert cache.write(ASSET, {"a": [1, None]}).stored


def check(cache: Cache) -> None:
    cache.clear_memory()
    assert cache.read(LAPS).value.equals(TABLE)
    assert cache.read(LAPS, parts=["NOR"]).value["n"].to_pylist() == list(range(1, 100, 2))
    assert cache.read(WEATHER).value.equals(TABLE)
    assert cache.read(ASSET, "json").value == {"a": [1, None]}
    assert cache.verify_integrity()["corrupted_list"] == []
    assert cache.get_degraded() == {}


def sql(config: Config, *statements: str) -> list[tuple]:
    """Change the file from outside; returns the rows of the last statement."""
    rows: list[tuple] = []
    with closing(sqlite3.connect(config.cache_path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def content(config: Config) -> dict[str, bytes]:
    """The bytes of all files; only while no connection of this process is open."""
    return {path.name: path.read_bytes() for path in sorted(config.cache_dir.iterdir()) if path.is_file()}


# ---- entries of the next version


@pytest.mark.parametrize(("kind", "unreadable"), [("format", 3), ("library", 3), ("schema", 1)])
def test_the_next_version_misses_refetches_and_counts_what_this_one_wrote(
    cache: Cache, run: Callable[..., str], kind: str, unreadable: int
) -> None:
    fill(cache)
    script = """
    print(cache.check_version_compatibility(), cache.read(laps, schema_version=schema))
    known = []
    def fetch(stored):
        known.append(stored)
        return Fresh({"new": 1})
    hit = cache.read_through(laps, fetch, "json", schema_version=schema)
    print(hit.tier, hit.value, known, cache.read(laps, "json", schema_version=schema).value)
    print(cache.check_version_compatibility(), cache.upgrade_version(), cache.check_version_compatibility())
    print(len(cache.get_entries()), cache.verify_integrity()["corrupted_list"], cache.get_degraded())
    """
    left = str(unreadable > 1)
    assert run(OTHER_VERSION + script.replace("\n    ", "\n"), kind).splitlines() == [
        "False None",
        # Without the ETag of what it cannot read: "not modified" would be no answer.
        "cdn {'new': 1} [None] {'new': 1}",
        f"{left == 'False'} {unreadable - 1} True",
        f"{3 - unreadable + 1} [] {{}}",
    ]


@pytest.mark.parametrize("kind", ["format", "library", "schema"])
def test_this_version_misses_and_keeps_what_the_next_one_wrote(
    cache: Cache, run: Callable[..., str], kind: str
) -> None:
    fill(cache)
    assert cache.read(LAPS, schema_version=LAPS_SCHEMA).tier == "memory"
    run(OTHER_VERSION + "assert cache.write(laps, {'new': 1}, schema_version=schema).stored", kind)
    # Not from memory, although what is there could be read: it is no longer what is stored.
    assert cache.read(LAPS, schema_version=LAPS_SCHEMA) is None
    assert not cache.check_version_compatibility()
    assert cache.upgrade_version() == 0
    assert cache.info(LAPS) is not None
    assert cache.verify_entry(LAPS)
    assert cache.verify_integrity()["corrupted_list"] == []
    known = []

    def fetch(stored: object) -> Fresh:
        known.append(stored)
        return Fresh(TABLE)

    assert cache.read_through(LAPS, fetch, schema_version=LAPS_SCHEMA).value.equals(TABLE)
    assert known == [None]
    assert cache.check_version_compatibility()
    assert cache.get_degraded() == {}


def test_stored_bytes_of_another_format_are_not_even_decoded(
    config: Config, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """What the next format stores would be corrupt in this one: it is neither read nor removed as such."""
    fill(cache)
    cache.clear_memory()
    sql(
        config,
        f"UPDATE entries SET format_version = {FORMAT_VERSION + 1}",
        "UPDATE parts SET data = x'00112233', size = 4",
    )
    for key in (LAPS, WEATHER, ASSET):
        assert cache.read(key, "json" if key is ASSET else "pandas") is None
    assert len(cache.get_entries()) == 3
    assert cache.get_degraded() == {}
    assert not caplog.text


@pytest.mark.parametrize("kind", ["format", "library", "schema"])
def test_two_versions_on_one_file_each_read_what_they_fetched_themselves(cache: Cache, kind: str) -> None:
    script = """
while (turn := sys.stdin.readline()):
    hit = cache.read_through(laps, lambda _: Fresh({"by": "next"}), "json", schema_version=schema)
    print(hit.value["by"], hit.tier, flush=True)
    """
    command = [sys.executable, "-W", "error", "-c", "import sys\n" + OTHER_VERSION + script]
    with subprocess.Popen(
        [*command, str(cache.get_cache_dir()), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        for _ in range(4):
            hit = cache.read_through(LAPS, lambda _: Fresh({"by": "this"}), "json", schema_version=LAPS_SCHEMA)
            assert (hit.value, hit.tier) == ({"by": "this"}, "cdn")
            other.stdin.write("go\n")
            other.stdin.flush()
            assert other.stdout.readline() == "next cdn\n"
        other.stdin.close()
    assert cache.get_degraded() == {}
    assert len(cache.get_entries()) == 1


# ---- files of a newer layout, and of others

EVERY_CALL = """
from tif1_pipeline.exceptions import CacheVersionError
path = Path(sys.argv[3]) if len(sys.argv) > 3 else None
folder = Path(sys.argv[1]).parent / "elsewhere"
for options in ({}, {"cache_readonly": True}, {"cache_fallback_dir": folder}, {"cache_wal_mode": False}):
    cache = Cache(Config(cache_dir=sys.argv[1], cache_lock_timeout=5, **options), path=path)
    calls = {
        "open": cache.open, "read": lambda: cache.read(key), "info": lambda: cache.info(key),
        "read through": lambda: cache.read_through(key, lambda _: Fresh({"a": 1}), "json"),
        "stats": cache.get_stats, "sessions": cache.list_sessions, "search": lambda: cache.search("*"),
        "versions": cache.check_version_compatibility, "verify": cache.verify_integrity,
        "expired": cache.get_expired_entries, "backup": cache.backup, "export": lambda: cache.export(folder / "out"),
    }
    if "cache_readonly" not in options:
        calls |= {
            "write": lambda: cache.write(key, {"a": 1}), "remove": lambda: cache.remove(key), "clear": cache.clear,
            "cleanup": cache.run_auto_cleanup, "upgrade": cache.upgrade_version, "vacuum": cache.vacuum,
            "checkpoint": cache.checkpoint, "optimize": cache.optimize, "indexes": cache.rebuild_indexes,
            "corrupted": cache.clear_corrupted, "rotate": lambda: cache.rotate_key(decrypt=True),
        }
    for name, call in calls.items():
        try:
            print(f"{name} {options}: no error, but {call()!r}")
        except CacheVersionError as error:
            if sys.argv[2] not in str(error):
                print(f"{name} {options}: no advice in: {error}")
        except Exception as error:
            print(f"{name} {options}: {type(error).__name__}: {error}")
    cache.close()
"""


@pytest.mark.parametrize("wal", [True, False], ids=["wal", "no wal"])
def test_a_cache_of_a_newer_layout_is_refused_by_every_call_and_keeps_every_byte(
    config: Config, cache: Cache, run: Callable[..., str], wal: bool
) -> None:
    config.cache_wal_mode = wal
    fill(cache)
    cache.close()
    sql(config, f"PRAGMA user_version={LAYOUT_VERSION + 1}", "ALTER TABLE entries ADD COLUMN from_the_future TEXT")
    before = content(config)
    assert run(EVERY_CALL, "update tif1_pipeline") == ""
    assert content(config) == before
    sql(config, f"PRAGMA user_version={LAYOUT_VERSION}")  # the newer version reads it on, as does who knows its column
    check(cache)


OTHERS = {
    "another application id": (f"PRAGMA application_id={APPLICATION_ID + 1}",),
    "no application id": ("PRAGMA application_id=0",),
    "our layout number alone": ("PRAGMA application_id=0", f"PRAGMA user_version={LAYOUT_VERSION}"),
}


@pytest.mark.parametrize("marks", OTHERS.values(), ids=OTHERS.keys())
def test_a_database_of_another_program_is_refused_by_every_call_and_keeps_every_byte(
    config: Config, run: Callable[..., str], marks: tuple[str, ...]
) -> None:
    config.cache_dir.mkdir(parents=True)
    theirs = ("PRAGMA journal_mode=wal", "CREATE TABLE entries (key, data)", "INSERT INTO entries VALUES ('a', 1)")
    sql(config, *theirs, *marks)
    before = content(config)
    assert run(EVERY_CALL, "Set cache_dir or cache_filename to another place") == ""
    assert content(config) == before


@pytest.mark.parametrize("text", [b"Notes of mine, which no program may touch.\n" * 50, b"x"], ids=["long", "short"])
def test_a_text_file_that_is_named_as_cache_is_refused_by_every_call_and_kept(
    config: Config, tmp_path: Path, run: Callable[..., str], text: bytes
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_bytes(text)
    assert run(EVERY_CALL, "Move it away or name another", str(notes)) == ""
    assert notes.read_bytes() == text
    assert [path.name for path in tmp_path.iterdir() if "notes" in path.name] == ["notes.txt"]


# ---- files of the former layout


@pytest.fixture
def former(config: Config, open_cache: Callable[..., Cache]) -> Config:
    """A file as layout 1 was, with entries and counts."""
    cache = open_cache()
    fill(cache)
    for _ in range(3):
        cache.read(LAPS)
    for number in range(40):
        cache.write(EntryKey(f"more {number}", "asset"), {"n": number})
    cache.close()
    sql(
        config,
        "ALTER TABLE entries DROP COLUMN encryption",
        "UPDATE cache_metadata SET value = '1' WHERE key = 'version'",
        "PRAGMA user_version=1",
    )
    return config


def test_a_new_file_has_the_tables_that_queries_are_made_for(config: Config, cache: Cache) -> None:
    cache.write(ASSET, {"a": 1})
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        METADATA.create_all(connection)
        wanted = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master").all()
    made = sql(config, "SELECT type, name, sql FROM sqlite_master")
    assert len(made) > 10
    assert {(*row[:2], "".join((row[2] or "").split())) for row in made} == {
        (*row[:2], "".join((row[2] or "").split())) for row in wanted
    }


def check_migrated(config: Config, cache: Cache) -> None:
    check(cache)
    assert cache.get_stats()["total_entries"] == 43
    assert [cache.read(f"more {number}", "json").value for number in range(40)] == [{"n": n} for n in range(40)]
    assert cache.get_metadata(2025, "Monaco Grand Prix", "Race", "laps")["access_count"] >= 3
    assert sql(config, "PRAGMA user_version") == [(LAYOUT_VERSION,)]
    assert sql(config, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert sql(config, "SELECT value FROM cache_metadata WHERE key = 'version'") == [(str(LAYOUT_VERSION),)]
    assert sql(config, "PRAGMA integrity_check") == [("ok",)]
    columns = [row[1] for row in sql(config, "PRAGMA table_info(entries)")]
    assert columns.count("encryption") == 1


@pytest.mark.parametrize("first", ["read", "write", "get_stats", "open", "verify_integrity"])
def test_a_file_of_the_former_layout_is_migrated_by_whatever_comes_first(
    former: Config, open_cache: Callable[..., Cache], first: str
) -> None:
    cache = open_cache()
    calls = {"read": lambda: cache.read(LAPS), "write": lambda: cache.write(ASSET, {"a": [1, None]})}
    calls.get(first, lambda: getattr(cache, first)())()
    check_migrated(former, cache)


def test_a_former_file_that_is_read_only_is_refused_and_keeps_every_byte(
    former: Config, run: Callable[..., str]
) -> None:
    before = content(former)
    script = """
    from tif1_pipeline.exceptions import CacheVersionError
    config.cache_readonly = True
    try:
        cache.read(key)
    except CacheVersionError as error:
        print(error)
    """
    assert "open it once without cache_readonly" in run(script)
    assert content(former) == before


def test_processes_that_open_a_former_file_at_once_migrate_it_once(
    former: Config, open_cache: Callable[..., Cache], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    script = """
    import sqlalchemy, tif1_pipeline.cache.layout
    go = Path(sys.argv[2])
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    assert cache.read(key).value.num_rows == 100
    assert cache.write(EntryKey(f"by {os.getpid()}", "asset"), {"a": 1}).stored
    print(len(cache.get_entries()) > 43, cache.get_degraded(), flush=True)
    """
    others = [start(script, str(tmp_path / "go")) for _ in range(4)]
    for other in others:
        assert other.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    for other in others:
        output, errors = other.communicate(timeout=60)
        assert (output, errors) == ("True {}\n", "")
    cache = open_cache()
    assert cache.clear_pattern("by *") == 4
    check_migrated(former, cache)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_kill_in_the_migration_leaves_the_former_file_whole(
    former: Config, open_cache: Callable[..., Cache], start: Callable[..., subprocess.Popen[str]], after: int
) -> None:
    script = """
    from tif1_pipeline.cache import layout
    create, statements = layout.create_tables, []
    def count(statement):
        if len(statements) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        statements.append(statement)
    def counted(connection):
        connection.set_trace_callback(count)
        create(connection)
        os.kill(os.getpid(), signal.SIGKILL)  # all is done but the commit
    layout.create_tables = counted
    cache.open()
    """
    process = start(script, str(after))
    assert process.wait(timeout=60) == -9, process.stderr.read()
    assert sql(former, "PRAGMA user_version") == [(1,)]
    assert "encryption" not in [row[1] for row in sql(former, "PRAGMA table_info(entries)")]
    check_migrated(former, open_cache())


def test_all_files_of_a_former_cache_with_shards_are_migrated(config: Config, open_cache: Callable[..., Cache]) -> None:
    config.cache_shards = 3
    cache = open_cache()
    fill(cache)
    for number in range(20):
        cache.write(EntryKey(f"more {number}", "asset"), {"n": number})
    cache.close()
    paths = sorted(config.cache_dir.glob("*.db"))
    for path in paths:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("ALTER TABLE entries DROP COLUMN encryption")
            connection.execute("PRAGMA user_version=1")
    check(open_cache())
    assert open_cache().get_stats()["total_entries"] == 23
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (LAYOUT_VERSION,)
    assert len(paths) == 3


def test_a_file_that_another_is_just_making_is_not_taken_for_a_strangers(tmp_path):
    # The marks in its header were read one after the other: 0 before the tables were made, 2 after.
    cache = Cache(Config(cache_dir=tmp_path))
    path = cache.get_cache_file()
    create_file(path)
    maker = threading.Thread(target=lambda: cache.write(LAPS, TABLE))

    class Slow(sqlite3.Connection):
        def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
            if statement == "PRAGMA user_version":
                maker.start()
                maker.join(0.5)  # with a read transaction it comes to its end only later
            return super().execute(statement, *arguments)

    with closing(sqlite3.connect(path, isolation_level=None, factory=Slow)) as connection:
        assert layout_of(connection, path) == 0
    maker.join()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert layout_of(connection, path) == LAYOUT_VERSION
    assert cache.info(LAPS).rows == len(TABLE)
    cache.close()
