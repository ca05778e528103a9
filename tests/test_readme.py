"""What the README shows works: each block of Python is executed, against the simulated CDN."""

import re
from pathlib import Path

import pytest

# definitions.py ignores it when it is imported, which another test of the process may have had it do.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block_with(text: str) -> str:
    (found,) = [block for block in BLOCKS if text in block]
    return found


def test_every_block_is_executed_below():
    assert len(BLOCKS) == 4


def test_the_notebook_and_the_settings(tif1, capsys):
    names: dict[str, object] = {}
    exec(block_with("get_session"), names)
    assert re.search(r"^[A-Z]{3} 0 days 00:01:\d\d\.\d+ \d+ km/h$", capsys.readouterr().out, re.MULTILINE)
    exec(block_with("get_config"), names)
    assert tif1.get_config().offline


def test_the_cache(tif1, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tif1.get_session(2025, "Australia", "Race").load(telemetry=False)
    exec(block_with("warm_event"), {"tif1": tif1})
    assert list((tmp_path / "tables").rglob("laps.parquet"))
    assert list(tif1.get_cache().get_cache_dir().rglob("*.tar.zst"))


def test_the_io_manager_in_another_project(tmp_path, monkeypatch):
    import dagster as dg

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = block_with("CacheIOManager")
    exec(code, names)
    body = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(body) <= 12
    defs = names["defs"]
    assert isinstance(defs, dg.Definitions)
    with dg.DagsterInstance.ephemeral() as instance:
        options = {"instance": instance, "resources": dict(defs.resources)}
        for region in ("north", "south"):
            assert dg.materialize([names["sales"]], partition_key=region, **options).success
        assert dg.materialize([names["sales"], names["turnover"]], selection=[names["turnover"]], **options).success
        assert defs.load_asset_value("turnover", instance=instance) == {"north": 6.5, "south": 6.5}
    assert (tmp_path / "shop.db").exists()


@pytest.fixture
def repository(tif1):
    from tif1_pipeline.definitions import defs

    return defs.get_repository_def()


def test_the_tables_name_all_assets_schedules_and_sensors_and_when_they_run(repository):
    assets = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert set(re.findall(r"^\| `(\w+)` \| (?:season|event|session) \|", README, re.MULTILINE)) == assets
    shown = dict(re.findall(r"^\| `(\w+_(?:sensor|schedule))` \| ([^|]+) \|", README, re.MULTILINE))
    seconds = {"every minute": 60, "every 30 s": 30}
    seconds |= {f"every {minutes} min": 60 * minutes for minutes in (2, 5, 10, 15)}
    expected = {sensor.name: sensor.minimum_interval_seconds for sensor in repository.sensor_defs}
    assert {name: seconds[when] for name, when in shown.items() if name.endswith("sensor")} == expected
    times = {"0 2 * * *": "02:00", "30 2 * * *": "02:30", "0 3 * * 0": "Sunday 03:00", "0 4 * * *": "04:00"}
    assert {name: when for name, when in shown.items() if name.endswith("schedule")} == {
        schedule.name: ("" if schedule.default_status.value == "RUNNING" else "off; ") + times[schedule.cron_schedule]
        for schedule in repository.schedule_defs
    }
    assert all(sensor.default_status.value == "RUNNING" for sensor in repository.sensor_defs)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", README))
def test_links_lead_somewhere(path):
    assert (Path(__file__).parent.parent / path).exists()


@pytest.mark.parametrize("path", re.findall(r"`(tif1_pipeline/[\w/.]+)`", README))
def test_files_that_are_named_exist(path):
    assert (Path(__file__).parent.parent / path).exists()


def test_verbs_of_the_command_line_that_are_shown_exist():
    from tif1_pipeline.cli import cli

    shown = set(re.findall(r"^tif1-pipeline ([\w-]+)", README, re.MULTILINE))
    shown |= set(re.findall(r"[\w-]+", " ".join(re.findall(r"# also: (.*)", README))))
    assert len(shown) >= 15
    assert shown <= set(cli.list_commands(None))


def test_verbs_that_are_shown_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for verb in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb
