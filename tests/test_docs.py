"""What the documentation shows works: every block is executed, against the simulated CDN, and nothing is left out."""

import contextlib
import dataclasses
import doctest
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
import yaml

import tif1_pipeline
from tif1_pipeline import analysis, exceptions, monitoring, plots
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config, load_config
from tif1_pipeline.datasets import DATASETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "_generated"} & set(path.relative_to(DOCS).parts))

NOT_RUN = {
    "tif1-pipeline dev\n": "runs until it is stopped",
    "docker compose -f docker/compose.yaml up --build\n": "needs Docker and a registry",
    "tif1-pipeline serve-cdn --events 2 --fault error=0.05\n": "runs until it is stopped",
}
"""Blocks of shell that are not executed, each with the reason."""

SLOW = {"guides/command-line.md", "guides/operations.md"}
"""Pages with many commands, each a process that imports everything."""

pytestmark = [
    # What Apprise imports when it is first asked whether a URL is one.
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    # definitions.py ignores it when it is imported, which another test of the process may have had it do.
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    found, text = [], path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(str(path.relative_to(DOCS)), line, match[1].strip(), match[2]))
    assert text.count("\n```") % 2 == 0, f"{path} has a fence that is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = ("python", "sh", "output")


def compare(block: Block, printed: str) -> None:
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(block.text, printed, flags):
        pytest.fail(f"{block.where} shows\n{block.text}\nbut this is printed:\n{printed}", pytrace=False)


# ---- the blocks


@pytest.fixture
def shell(cdn, tmp_path):
    """Run shell in ``tmp_path``, with the command on its path, pointed at the simulated CDN."""
    settings = tmp_path / "cdn.toml"
    urls = {"cdn_urls": list(cdn.cdn_urls), "schedule_urls": list(cdn.schedule_urls)}
    settings.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in urls.items()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIF1_", "DAGSTER_"))} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TIF1_CONFIG": str(settings),
        "TIF1_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(block: Block) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{block.where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow, pytest.mark.timeout(300)]) if page in SLOW else page
        for page in sorted({block.page for block in BLOCKS if block.language in RUN})
    ],
)
def test_the_blocks_of_a_page_run_in_order_and_print_what_is_shown(page, tif1, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As in a process of its own: partitions are made when the definitions load.
    for name in [name for name in sys.modules if name.startswith(("tif1_pipeline.defs", "tif1_pipeline.definitions"))]:
        del sys.modules[name]
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = None
    for block in (block for block in BLOCKS if block.page == page and block.language in RUN):
        if block.language == "output":
            assert printed is not None, f"{block.where} shows the output of nothing"
            compare(block, printed)
            printed = None
        elif block.language == "sh":
            tif1.get_cache().flush()
            printed = None if block.text in NOT_RUN else shell(block)
        else:
            code = compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)
            printed = out.getvalue()


def test_every_block_is_of_a_kind_that_is_tested():
    text = {"text"}  # diagrams and help texts
    known = {*RUN, *text, "toml", "yaml", "json", "{include}", "{toctree}", "{eval-rst}", "{note}", "{warning}"}
    strange = [f"{b.where}: {b.language!r}" for b in BLOCKS if b.language.partition(" ")[0] not in known]
    assert not strange
    assert sum(block.language == "python" for block in BLOCKS) > 30


def test_what_is_not_run_is_shown_somewhere():
    shown = {block.text for block in BLOCKS if block.language == "sh"}
    assert set(NOT_RUN) <= shown


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.where)
def test_toml_is_a_settings_file(block, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(block.text)
    loaded, default = load_config({"TIF1_CONFIG": str(path)}), Config()
    assert loaded.to_dict() != default.to_dict()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("yaml", "json")], ids=lambda block: block.where)
def test_yaml_and_json_parse(block):
    assert yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)


# ---- nothing is left out


@pytest.fixture(scope="module")
def generate():
    sys.path.insert(0, str(DOCS))
    try:
        import generate

        yield generate
    finally:
        sys.path.remove(str(DOCS))


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_setting_is_on_the_page_of_settings_with_default_and_meaning(generate):
    assert "_generated/settings.md" in read("guides/settings.md")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", generate.settings(), re.MULTILINE)
    assert [name for name, _, _ in rows] == [field.name for field in dataclasses.fields(Config)]
    assert all(default.strip("` ") and len(meaning) > 5 for _, default, meaning in rows)
    assert set(generate.GROUPS) <= {name for name, _, _ in rows}


def test_every_verb_is_on_the_page_of_the_command_line(generate):
    from tif1_pipeline.cli import cli

    assert "_generated/commands.md" in read("guides/command-line.md")
    text = generate.commands()
    verbs = cli.list_commands(click.Context(cli))
    assert len(verbs) > 10
    for verb in verbs:
        assert len(re.findall(rf"^\| \[`{verb}`\]\(#command-{verb}\) \| .{{10,}} \|$", text, re.MULTILINE)) == 1
        assert f"### `tif1-pipeline {verb}`\n\n```text\nUsage: tif1-pipeline {verb} " in text


def test_verbs_that_are_named_exist():
    from tif1_pipeline.cli import cli

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"tif1-pipeline ([a-z-]+)", text))
    assert named
    assert not named - set(cli.list_commands(click.Context(cli)))


def test_every_column_is_on_the_page_of_tables(generate):
    assert "_generated/tables.md" in read("reference/tables.md")
    text = generate.tables()
    for dataset in DATASETS.values():
        section = text.partition(f"## {dataset.name}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == dataset.schema.names


def test_every_column_of_a_derived_table_is_on_its_page(generate):
    assert "_generated/derived.md" in read("reference/derived-tables.md")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", generate.derived(), re.MULTILINE | re.DOTALL))
    results = {name.removesuffix("_of") for name in analysis.__all__ if name.endswith("_of")}
    assert set(sections) == results
    for name, section in sections.items():
        columns = re.findall(r"^\| `(\w+)`(?: \\\*)? \| \S+ \| \S* ?\| .{4,} \|$", section, re.MULTILINE)
        assert columns == [column.name for column in getattr(analysis, name.upper()).columns]


@pytest.fixture
def repository(tif1) -> dg.RepositoryDefinition:
    from tif1_pipeline.definitions import defs

    return defs.get_repository_def()


def test_the_tables_of_operations_have_all_that_runs_and_their_defaults(generate, repository):
    page, tables = read("guides/operations.md"), generate.operations()
    assert all(f"_generated/{name}.md" in page for name in tables)
    rows = {row[0]: row for row in re.findall(r"^\| `(\w+)`(.*)$", tables["operations"], re.MULTILINE)}
    for schedule in repository.schedule_defs:
        default = getattr(Config(), f"{schedule.name.removesuffix('_schedule')}_cron")
        assert f"starts `{schedule.job_name}` | `{default}` in UTC |" in rows[schedule.name][1]
    for sensor in repository.sensor_defs:
        assert re.match(r"(<br>starts `\w+`)? \| every \d+[smh] \| on \| .{40,} \| ", rows[sensor.name][1])
    assert set(rows) == {each.name for each in (*repository.schedule_defs, *repository.sensor_defs)}
    assert {name for name, row in rows.items() if "| off |" in row[1]} == {
        schedule.name for schedule in repository.schedule_defs if schedule.default_status.value == "STOPPED"
    }
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert re.findall(r"^\| `(\w+)`", tables["jobs"], re.MULTILINE) == sorted(job.name for job in jobs)
    for op in {node.definition for job in jobs for node in job.nodes}:
        assert f"`{op.name}`" in tables["jobs"]
        for option in op.config_schema.config_type.fields:
            assert re.search(rf"^\| `{option}` \| (all|.*`{op.name}`.*) \|", tables["options"], re.MULTILINE)


def test_the_tables_of_operations_show_defaults_whatever_the_settings_are(generate, monkeypatch):
    monkeypatch.setenv("TIF1_NIGHTLY_WARM_CRON", "1 2 3 4 5")
    assert "| `0 2 * * *` in UTC |" in generate.operations()["operations"]


def test_every_alert_is_explained(tif1):
    page = read("guides/operations.md")
    for condition in monitoring.conditions(tif1.get_cache(), tif1.get_config()):
        assert re.search(rf"^\| {condition.title} \(`{condition.name}`\) \| .+ \| .+ \| .+ \|$", page, re.MULTILINE)


def test_every_check_and_asset_is_on_the_page_of_dagster(repository):
    page = read("guides/dagster.md")
    specs = [spec for check in repository.asset_checks_defs_by_key.values() for spec in check.check_specs]
    shown = dict(re.findall(r"^\| `(\w+)` \| .{10,} \| (yes|no) \|$", page, re.MULTILINE))
    assert shown == {spec.name: "yes" if spec.blocking else "no" for spec in specs}
    assets = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert set(re.findall(r"^\| `(\w+)` \| (?:season|event|session) \|", page, re.MULTILINE)) == assets
    assert set(re.findall(r"^`(\w+)`\n: ", page, re.MULTILINE)) == {
        name.removesuffix("_of") for name in analysis.__all__ if name.endswith("_of")
    }


def test_every_analysis_and_picture_is_in_the_reference():
    page = read("reference/analysis.md")
    functions = {f"analysis.{name}" for name in analysis.__all__ if name.endswith("_of")}
    functions |= {f"plots.{name}" for name in plots.__all__}
    assert functions <= set(re.findall(r"autofunction:: tif1_pipeline\.([\w.]+)$", page, re.MULTILINE))


def test_every_call_of_the_cache_is_in_the_reference_once():
    calls = [name for name, _ in inspect.getmembers(Cache, callable) if not name.startswith("_")]
    documented = re.findall(r"^\.\. automethod:: tif1_pipeline\.Cache\.(\w+)$", read("reference/cache.md"), re.M)
    assert sorted(documented) == sorted(calls)


def test_everything_that_can_be_imported_is_in_the_reference():
    pages = "".join(read(f"reference/{name}.md") for name in ("python-api", "cache", "dagster"))
    documented = set(re.findall(r"auto\w+:: tif1_pipeline\.(\w+)$", pages, re.MULTILINE))
    assert documented >= {name for name in tif1_pipeline.__all__ if not name.startswith("__")} - {"get_cache"}
    assert "autofunction:: tif1_pipeline.get_cache" in pages


def errors() -> list[str]:
    return [
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type) and issubclass(kind, exceptions.Tif1Error)
    ]


@pytest.mark.parametrize("name", errors())
def test_every_error_is_on_the_page_of_troubleshooting(name):
    assert re.search(rf"^\| `{name}` \|", read("guides/troubleshooting.md"), re.MULTILINE)
    assert f".. autoexception:: tif1_pipeline.{name}\n" in read("reference/python-api.md")


def test_settings_files_and_calls_that_are_named_exist():
    settings = {field.name for field in dataclasses.fields(Config)}
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`((?:memory_)?cache_\w+)`", text)) | set(re.findall(r"config\.(\w+) =", text))
    assert not named - settings - {"cache_metadata"}
    calls = set(re.findall(r"cache\.(\w+)\(", text))
    assert not [call for call in calls if not hasattr(Cache, call)]
    assert not [
        path for path in re.findall(r"`((?:tif1_pipeline|docker|tests)/[\w/.]+)`", text) if not (ROOT / path).exists()
    ]


# ---- the built pages


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pages_build_without_warnings_and_without_network(tmp_path):
    pytest.importorskip("sphinx", reason='Sphinx is not installed: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env=os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        html = (tmp_path / "html" / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.search(r'(?:src|<link[^>]* href)="https?://', html), f"{page} loads something from elsewhere"
