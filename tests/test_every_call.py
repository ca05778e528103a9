"""The calls and settings of the specification: they are there, documented, and do what they promise."""

import ast
import inspect
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from every_call import OF_OPERATIONS, OF_THE_CACHE

import tif1_pipeline
from tif1_pipeline.cache import cache as facade
from tif1_pipeline.cache.cache import Cache
from tif1_pipeline.config import MIB, Config

SCRIPT = Path(__file__).parent / "every_call.py"
SPECIFICATION = Path(__file__).parent.parent.parent / "shared" / "SPEC.md"

# The calls of the cache in the specification, with the names of their arguments where it gives them; used where the
# specification itself is not at hand.
COPY = """
get_memory_stats() clear_memory() evict_memory(key) get_stats() get_stats_by_type() get_stats_by_year()
get_access_stats() get_size_info() get_size_mb() get_size_by_type() get_size_by_year() get_cache_dir() get_cache_file()
list_sessions(sort_by=, limit=) get_largest(limit) get_lru(limit) get_by_type(t) get_by_size(min_size_mb=)
get_old_entries(days) get_entries(max_age_days=, min_age_days=, max_access_count=, min_size_mb=, data_type=, year=)
search(glob) exists(year, event, session_type, data_type=None) get_metadata(year, event, session_type, data_type)
clear() clear_session(y,e,s) clear_event(y,e) clear_year(y) clear_type(t) clear_old(days) clear_largest(count)
clear_lru(count) clear_pattern(glob) clear_low_access(min_access_count) clear_expired() clear_corrupted() remove(key)
smart_cleanup(max_age_days=, min_access_count=, max_size_mb=) run_auto_cleanup() invalidate_session
invalidate_session_data(y,e,s,t) invalidate_event invalidate_year invalidate_pattern invalidate_custom(predicate)
get_expired_entries() check_version_compatibility() upgrade_version() verify_integrity() verify_entry(key)
rebuild_indexes() vacuum() optimize() checkpoint() close() open() backup(dir=None) restore(path) export(dir)
import_(dir) warm_season warm_event warm_types warm_drivers warm_frequent(min_access_count)
"""
SHORT = {"y": "year", "e": "event", "s": "session_type", "t": "data_type", "glob": "pattern"}
OF_THE_PACKAGE = [
    "get_session",
    "get_cache",
    "get_config",
    "get_events",
    "get_sessions",
    "get_next_event",
    "check_cache_health",
    "close",
    "generate_cache_key",
    "CacheMonitor",
    "on_race_complete",
    "on_schedule_update",
    "on_library_update",
]
OF_A_SESSION = [
    "laps",
    "telemetry",
    "weather",
    "messages",
    "drivers",
    "drivers_df",
    "corners",
    "info",
    "get_driver_laps",
    "get_driver_telemetry",
    "get_lap_telemetry",
    "get_telemetry",
    "load",
    "load_async",
]
PUBLIC = [name for name in vars(Cache) if not name.startswith("_")]


def calls_in(text: str) -> dict[str, list[str]]:
    """Return the calls that a text names, with the arguments that it gives them."""
    calls: dict[str, list[str]] = {}
    for match in re.finditer(r"([a-z_]{4,})(?:\(([^()]*)\))?", text):
        arguments = re.findall(r"(\w+)\s*(?:=\w*)?\s*(?:,|$)", match[2] or "")
        calls[match[1]] = calls.get(match[1]) or [SHORT.get(name, name) for name in arguments]
    return calls


def calls_of_the_specification() -> dict[str, list[str]]:
    if not SPECIFICATION.exists():
        return calls_in(COPY)
    text = SPECIFICATION.read_text(encoding="utf-8")
    table = text[text.index("**Cache**, `get_cache()`") : text.index("`CacheMonitor` records")]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| group")]
    assert len(rows) == 11
    code = " ".join(re.findall(r"`([^`]+)`", " ".join(row.split("|", 2)[2] for row in rows)))
    calls = calls_in(re.sub(r"predicate over \w+", "predicate", code))
    return {name: arguments for name, arguments in calls.items() if name not in {"max_workers", "requests"}}


CALLS = calls_of_the_specification()


def test_the_table_of_calls_is_read_whole() -> None:
    assert set(CALLS) == set(calls_in(COPY))
    assert {name: arguments for name, arguments in CALLS.items() if arguments} == {
        name: arguments for name, arguments in calls_in(COPY).items() if arguments
    }


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_of_the_specification_exists_with_its_arguments(name: str) -> None:
    parameters = list(inspect.signature(getattr(Cache, name)).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    assert names[: len(CALLS[name])] == CALLS[name]
    if name.startswith("warm_"):
        assert "max_workers" in names
        assert inspect.signature(getattr(Cache, f"{name}_async"))
    else:
        needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
        optional = {argument for argument in CALLS[name] if name in {"get_entries", "list_sessions", "backup"}}
        assert not optional & set(needed)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_call_says_what_it_does(name: str) -> None:
    text = inspect.getdoc(getattr(Cache, name))
    assert text
    assert text.splitlines()[0].endswith((".", ":")), text.splitlines()[0]
    signature = inspect.signature(getattr(Cache, name))
    assert all(parameter.annotation is not parameter.empty for parameter in list(signature.parameters.values())[1:])
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", [*OF_THE_PACKAGE, *(name for name in tif1_pipeline.__all__ if name[0].islower())])
def test_what_the_package_offers_says_what_it_does(name: str) -> None:
    assert inspect.getdoc(getattr(tif1_pipeline, name))


def test_each_call_of_the_facade_is_one_statement() -> None:
    tree = ast.parse(Path(facade.__file__).read_text(encoding="utf-8"))
    (of_the_cache,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = [node for node in of_the_cache.body if isinstance(node, ast.FunctionDef)]
    assert {method.name for method in methods if method.name[0] != "_"} == set(PUBLIC)
    for method in methods:
        if method.name.startswith("_"):
            continue
        documentation, *statements = method.body
        assert isinstance(documentation, ast.Expr), method.name
        assert isinstance(documentation.value, ast.Constant), method.name
        assert len(statements) == 1, f"{method.name} has logic of its own"
        (statement,) = statements
        assert isinstance(statement, ast.Return | ast.Expr), f"{method.name} has logic of its own"
        assert isinstance(statement.value, ast.Call | ast.Attribute), f"{method.name} has logic of its own"
        control = ast.IfExp | ast.BoolOp | ast.Compare | ast.ListComp | ast.DictComp | ast.GeneratorExp | ast.Lambda
        assert not [node for node in ast.walk(statement) if isinstance(node, control)], method.name


# ---- settings


def settings_of_the_specification() -> dict[str, str]:
    """The names and defaults of the table of settings, short forms written out."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    lines = text[text.index("| setting | default |") :].splitlines()[2:]
    table: dict[str, str] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for names, default in ((cells[0], cells[1]), (cells[3], cells[4])):
            table |= _pairs(names, default)
    return table


def _pairs(names: str, default: str) -> dict[str, str]:
    found: list[str] = []
    for name in re.split(r"\s*/\s*|,\s*", re.sub(r"\([^)]*\)", "", names)):
        short = name.strip()
        family = ("cache_ttl_",) if names.startswith("cache_ttl") else ("cache_", "cache_cleanup_")
        for prefix in ("", "memory_cache_", *family):
            if prefix + short in OF_THE_CACHE and prefix + short not in found:
                found.append(prefix + short)
                break
        else:
            raise AssertionError(f"the specification names a setting {short!r} that does not exist")
    several = re.split(r"\s+/\s+|,\s*", default)
    defaults = several if len(several) == len(found) else [default] * len(found)
    return dict(zip(found, defaults, strict=True))


# What the table says in words, or where a newer issue has said something else.
IN_WORDS = {
    "cache_verify_checksum": lambda value: value is True,  # costs 0.5 to 2 % of a read, and no wrong value is served
    "memory_cache_max_mb": lambda value: 64 <= value <= 2048,
    "cache_page_size": lambda value: value == 16384,  # "measured"
    "cache_dir": lambda value: value == Path("~/.tif1/cache").expanduser(),
    "cache_mmap_size": lambda value: value == 256 * MIB,
    "cache_ttl_schedule": lambda value: value == timedelta(hours=6),  # §3: "TTL some hours for the running season"
    "cdn_urls": lambda value: value[0].startswith("https://cdn.jsdelivr.net/gh/TracingInsights/") and len(value) == 3,
    "schedule_urls": lambda value: value[0].startswith("https://raw.githubusercontent.com/") and len(value) == 2,
    "max_concurrent_requests": lambda value: value == 32,
    "request_timeout": lambda value: value == timedelta(seconds=30),
    "max_retries": lambda value: value == 3,
}
# Settings that came later than the table.
LATER = {"cache_encryption_key", "cache_encryption_key_file"}


@pytest.mark.skipif(not SPECIFICATION.exists(), reason=f"the specification is not here ({SPECIFICATION})")
def test_every_setting_of_the_specification_exists_with_its_default() -> None:
    table = settings_of_the_specification()
    values = Config().to_dict()
    assert set(values) == set(table) | LATER | set(OF_OPERATIONS)
    for name, said in table.items():
        if name in IN_WORDS:
            assert IN_WORDS[name](values[name]), name
            continue
        expected = said.strip('"').split(" (")[0]
        found = values[name]
        if isinstance(found, timedelta):
            assert str(found.total_seconds()).removesuffix(".0") in expected or f"{found.days} days" == expected, name
        else:
            assert str(found) == expected, name


# ---- the script


def run_script(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    wrong = [line for line in ran.stdout.splitlines() if not line.startswith("ok ")]
    assert ran.returncode == 0, "\n".join(wrong) + ran.stderr
    assert not ran.stderr, ran.stderr
    return ran.stdout


def check_output(output: str) -> None:
    *lines, summary = output.splitlines()
    called = {line.split()[1] for line in lines if not line.startswith("ok setting ")}
    settings = {line.split()[2] for line in lines if line.startswith("ok setting ")}
    assert set(PUBLIC) - called == set(), "not called by the script"
    assert set(OF_THE_PACKAGE) - called == set()
    assert {f"Session.{name}" for name in OF_A_SESSION} - called == set()
    assert settings == set(OF_THE_CACHE)
    assert re.fullmatch(rf"\d+ calls and {len(settings)} settings in [\d.]+ s, 0 wrong", summary), summary


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_call_and_setting_on_an_invented_season() -> None:
    check_output(run_script())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_call_and_setting_on_the_real_files(real_folder: Path) -> None:
    check_output(run_script(str(real_folder)))


def test_a_wrong_result_ends_the_script_with_1_and_is_named(tmp_path: Path) -> None:
    """A folder without a CDN in it: no call can give what it should."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import every_call\n"
        "every_call.SETTINGS = {name: lambda w: every_call.check(False, 'as told') for name in every_call.SETTINGS}\n"
        "sys.exit(every_call.main([sys.argv[2]]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(SCRIPT.parent), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 1
    assert "WRONG setting offline: WrongError: as told" in ran.stdout
    assert "WRONG sessions, line" in ran.stdout
