"""Where a Dagster instance lives, and the folder that `demo` makes and `dev` opens."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import click

from tif1_pipeline.cache.connection import make_folder
from tif1_pipeline.cache.monitor import write_text

DEMO_HOME = Path(".demo")
"""The demo's folder: ``cache/``, ``dagster/`` (the instance) and what it was made of."""

_MARK = "demo.json"


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo was made of, so that the UI can be opened on the same data.

    Attributes:
        data: Folder of real files; None for generated ones.
        year: Season.
        seed: Of the generated season.
    """

    data: str | None
    year: int
    seed: int

    @classmethod
    def read(cls, home: Path) -> "Demo | None":
        """Return the demo that was made in this folder, or None."""
        mark = home / _MARK
        return cls(**json.loads(mark.read_text(encoding="utf-8"))) if mark.is_file() else None

    def start(self, home: Path) -> None:
        """Begin anew in this folder.

        Raises:
            click.ClickException: The folder holds something else; nothing is deleted.
        """
        if home.exists() and any(home.iterdir()) and not (home / _MARK).is_file():
            raise click.ClickException(f"{home} holds files that no demo made; name an empty folder with --home")
        if home.is_symlink():
            raise click.ClickException(f"{home} is a link; name a folder with --home")
        if home.exists():
            shutil.rmtree(home)
        make_folder(home)
        write_text(home / _MARK, json.dumps(asdict(self)))


def provide_instance(dagster_home: Path) -> Path:
    """Make the folder of a Dagster instance, with our settings unless it has its own; return its absolute path."""
    make_folder(dagster_home)
    target = dagster_home / "dagster.yaml"
    if not target.exists():
        write_text(target, (files("tif1_pipeline") / "dagster.yaml").read_text(encoding="utf-8"))
    return dagster_home.absolute()


def use_cdn(home: Path, cdn_urls: tuple[str, ...], schedule_urls: tuple[str, ...]) -> None:
    """Point this process and those it starts at a CDN and at the cache in this folder.

    By a settings file, which beats the environment that the user may have set for other work.
    """
    settings = {"cache_dir": str(home.absolute() / "cache"), "cdn_urls": cdn_urls, "schedule_urls": schedule_urls}
    path = home.absolute() / "settings.toml"
    # The values are texts and lists of texts, which TOML writes as JSON does.
    write_text(path, "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()))
    os.environ["TIF1_CONFIG"] = str(path)
