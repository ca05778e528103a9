"""Pictures in the metadata of materializations."""

import base64
import io
import re
from collections.abc import Iterator

import dagster as dg
import pandas as pd
import pytest
from PIL import Image

from tif1_pipeline import plots
from tif1_pipeline.api import get_config
from tif1_pipeline.config import Config
from tif1_pipeline.defs.pictures import LARGEST, pictures

LAPS = pd.DataFrame({"LapNumber": [1.0, 2.0], "LapTimeSeconds": [80.0, 81.0], "Compound": ["SOFT", "HARD"]})
IMAGE = re.compile(r"!\[([^\]]+)\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)")


@pytest.fixture(autouse=True)
def config() -> Iterator[Config]:
    config = get_config()
    before = config.plots
    config.plots = True
    yield config
    config.plots = before


def text_of(value: dg.MetadataValue) -> str:
    assert isinstance(value, dg.MarkdownMetadataValue)
    return value.md_str


def lap_times() -> bytes:
    return plots.lap_times(LAPS)


def test_a_picture_is_an_image_with_an_alternative_text():
    shown = pictures({"lap_times": lap_times})
    assert list(shown) == ["lap_times"]
    match = IMAGE.fullmatch(text_of(shown["lap_times"]))
    assert match is not None
    assert match[1] == "Lap times"
    png = base64.b64decode(match[2], validate=True)
    assert png == lap_times()
    assert Image.open(io.BytesIO(png)).width == 640


def test_names_that_would_break_the_markdown():
    for name in ("a [b](c)", "back\\slash", "São Paulo ]"):
        shown = pictures({name: lap_times})
        assert IMAGE.fullmatch(text_of(shown[name])), name


def test_a_picture_that_fails_is_a_warning_and_a_text(caplog):
    def fail() -> bytes:
        raise ValueError("no such column")

    shown = pictures({"broken": fail, "lap_times": lap_times})
    assert text_of(shown["broken"]) == "could not be drawn (ValueError); the log says why"
    assert IMAGE.fullmatch(text_of(shown["lap_times"]))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "broken" in record.message
    assert "no such column" in record.message
    assert record.exc_info


def test_a_table_without_its_columns_fails_no_materialization(caplog):
    shown = pictures({"lap_times": lambda: plots.lap_times(LAPS.drop(columns="LapNumber"))})
    assert text_of(shown["lap_times"]).startswith("could not be drawn (KeyError)")
    assert "LapNumber" in caplog.text


def test_a_picture_too_large_is_left_out(caplog):
    shown = pictures({"huge": lambda: b"x" * LARGEST, "lap_times": lap_times})
    assert text_of(shown["huge"]) == "left out: 133 KiB are too large for the event log"
    assert IMAGE.fullmatch(text_of(shown["lap_times"]))
    assert "huge" in caplog.text


def test_all_pictures_together_are_bounded():
    shown = pictures({f"part {number}": lambda: b"x" * (LARGEST // 5) for number in range(6)})
    texts = [text_of(value) for value in shown.values()]
    assert [text.startswith("![") for text in texts] == [True, True, True, False, False, False]
    assert sum(map(len, texts)) < LARGEST


def test_nothing_is_drawn_where_it_is_switched_off(config):
    config.plots = False
    drawn = []
    assert pictures({"lap_times": lambda: drawn.append(1) or lap_times()}) == {}
    assert not drawn


def test_it_stands_in_the_event_of_a_materialization():
    @dg.asset
    def shown(context: dg.AssetExecutionContext) -> None:
        context.add_output_metadata(pictures({"lap_times": lap_times}))

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([shown], instance=instance)
        event = instance.get_latest_materialization_event(dg.AssetKey("shown"))
    assert event is not None
    assert event.asset_materialization is not None
    assert IMAGE.fullmatch(text_of(event.asset_materialization.metadata["lap_times"]))
