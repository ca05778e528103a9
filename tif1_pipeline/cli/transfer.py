"""`backup`, `restore`, `export`, `import`, `rotate-key`: everything that is stored, elsewhere or otherwise."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tif1_pipeline.cli.options import cache_option, confirm, yes_option
from tif1_pipeline.cli.output import count

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache

_KEY_BYTES = 32


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", type=click.IntRange(1), default=7, show_default=True, help="Backups in that folder to keep.")
@cache_option
def backup(cache: "Cache", directory: Path | None, keep: int) -> None:
    """Store a compressed and verified copy of the cache, which may be in use.

    DIR is `backups` beside the cache file by default. The path of the backup is printed. Of more than --keep backups
    in DIR the oldest are removed once this one is complete.

    \b
    Examples:
      tif1-pipeline backup
      tif1-pipeline backup /mnt/backups --keep 30
    """  # noqa: D301
    click.echo(cache.backup(directory, keep=keep))


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@yes_option
@cache_option
def restore(cache: "Cache", path: Path, yes: bool) -> None:
    """Replace what is stored by a backup: whole, or not at all.

    The backup is verified first. What is stored now is lost: it asks before, and without a terminal it needs --yes.

    \b
    Example:
      tif1-pipeline restore ~/.tif1/cache/backups/NAME --yes
    """  # noqa: D301
    stored = cache.get_size_info()["total_entries"]
    if stored:
        confirm(f"Replace the {count(stored)} of {cache.get_cache_file()} by {path}?", yes)
    cache.restore(path)
    click.echo(f"{count(cache.get_size_info()['total_entries'])} restored to {cache.get_cache_file()}")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@cache_option
def export(cache: "Cache", directory: Path) -> None:
    """Write every entry as a Parquet or JSON file into DIR.

    Tables of sessions go to YEAR/EVENT/SESSION/TYPE.parquet, which pandas, polars and DuckDB read.

    \b
    Example:
      tif1-pipeline export f1-data
    """  # noqa: D301
    click.echo(f"{count(cache.export(directory), 'file', 'files')} written to {directory}")


@click.command("import")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@cache_option
def import_(cache: "Cache", directory: Path) -> None:
    """Store the files that export wrote, or files laid out like them.

    Entries of the same keys are replaced. A file that cannot be read is named, and the others are stored.

    \b
    Example:
      tif1-pipeline import f1-data --cache /data/f1/new.db

    Exit codes: 0 all are stored, 1 some are not, 2 usage.
    """  # noqa: D301
    click.echo(f"{count(cache.import_(directory))} stored in {cache.get_cache_file()}")


@click.command("rotate-key")
@click.option("--decrypt", is_flag=True, help="Store everything plainly again.")
@click.option("--generate", is_flag=True, help="Print a new random key, and do nothing else.")
@cache_option
def rotate_key(cache: "Cache", decrypt: bool, generate: bool) -> None:
    """Encrypt every entry with the first of the keys in force, or decrypt all.

    The keys are those of cache_encryption_key and cache_encryption_key_file; the first encrypts, all decrypt. To
    change a key, put the new one first and keep the former ones until this is done. When it was interrupted, running
    it again does the rest.

    \b
    Examples:
      tif1-pipeline rotate-key --generate >> keys.txt
      TIF1_CACHE_ENCRYPTION_KEY=NEW,OLD tif1-pipeline rotate-key
      TIF1_CACHE_ENCRYPTION_KEY=OLD tif1-pipeline rotate-key --decrypt
    """  # noqa: D301
    if decrypt and generate:
        raise click.UsageError("--generate does nothing else: leave --decrypt out")
    if generate:
        click.echo(secrets.token_hex(_KEY_BYTES))
        return
    done = "decrypted" if decrypt else "encrypted"
    click.echo(f"{count(cache.rotate_key(decrypt=decrypt))} {done}")
