"""Settings that cannot be loaded, that contradict each other, or that the machine does not bear out."""

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tif1_pipeline import api
from tif1_pipeline.cache.cipher import Keyring
from tif1_pipeline.cache.shards import fallback_path, shard_path
from tif1_pipeline.config import ENV_PREFIX, Config, load_config
from tif1_pipeline.doctor.base import Check, ok, problem, warning
from tif1_pipeline.doctor.opening import open_readonly
from tif1_pipeline.doctor.places import try_write
from tif1_pipeline.exceptions import ConfigError


def load_settings() -> tuple[Config, list[Check]]:
    """Return a copy of the settings of this process, or what is usable of them, and what is wrong with the rest."""
    try:
        config = api.get_config()
    except ConfigError:
        return _load_usable()
    return Config(**{name: getattr(config, name) for name in config.to_dict()}), []


def _load_usable() -> tuple[Config, list[Check]]:
    environ = dict(os.environ)
    directory: Path | None = None
    faults: list[Check] = []
    while True:
        try:
            return load_config(environ, directory), faults
        except ConfigError as error:
            variable = f"{ENV_PREFIX}{str(error.details.get('setting', '')).upper()}"
            if _is_bad_variable(variable, environ):
                remedy = f"Correct or unset the environment variable {variable}; until then nothing works"
                del environ[variable]
            elif f"{ENV_PREFIX}CONFIG" in environ:
                remedy = f"Correct the file {environ.pop(f'{ENV_PREFIX}CONFIG')}, or unset {ENV_PREFIX}CONFIG"
            else:
                remedy = f"Correct [tool.tif1_pipeline] in {Path.cwd() / 'pyproject.toml'}"
                directory = Path(os.devnull)  # there is no file in it
            faults.append(problem("settings", error.message, remedy))


def _is_bad_variable(variable: str, environ: dict[str, str]) -> bool:
    if variable not in environ:
        return False
    try:
        load_config({variable: environ[variable]}, Path(os.devnull))
    except ConfigError:
        return True
    return False


def contradictions(config: Config) -> Iterator[Check]:
    """Settings that are good each and do not go together."""
    faults = list(_contradictions(config))
    yield from faults or [ok("settings", "no contradictions")]


def _contradictions(config: Config) -> Iterator[Check]:
    name = "settings"
    limits = (config.cache_cleanup_target_mb, config.cache_cleanup_threshold_mb, config.cache_max_size_mb)
    if sorted(limits) != list(limits):
        yield warning(
            name,
            f"cache_cleanup_target_mb is {limits[0]:,}, cache_cleanup_threshold_mb {limits[1]:,}, cache_max_size_mb "
            f"{limits[2]:,}: a cleanup should begin above its target and below the maximum",
            "Set them so that each is at least the one before",
        )
    if not config.cache_enabled:
        yield warning(
            name, "cache_enabled is off: everything is fetched anew each time", "Switch cache_enabled on, if not meant"
        )
    if config.cache_readonly and config.cache_auto_cleanup:
        yield warning(
            name, "cache_auto_cleanup and cache_readonly are on: nothing is cleaned", "Switch one of them off"
        )
    if config.cache_readonly and not config.cache_path.is_file():
        yield problem(
            name,
            f"cache_readonly is on, and there is no cache file {config.cache_path}: nothing is found and nothing kept",
            "Switch cache_readonly off, or set cache_dir and cache_filename to a cache that exists",
        )
    if config.offline and config.cache_check_freshness:
        yield warning(name, "cache_check_freshness is on, and offline keeps it from asking", "Switch one of them off")
    if config.cache_wal_mode and config.cache_wal_autocheckpoint == 0:
        yield warning(
            name,
            "cache_wal_autocheckpoint is 0: the log grows until it is written back by hand",
            "Set cache_wal_autocheckpoint to 1000, or have tif1-pipeline optimize --checkpoint run now and then",
        )


# ---- encryption


def encryption(config: Config) -> Iterator[Check]:
    """Whether the keys can be had, and by this user alone."""
    file = config.cache_encryption_key_file
    if file is None and not config.cache_encryption_key:
        yield ok("encryption", "no key is set: what is stored is not encrypted")
        return
    try:
        keyring = Keyring.of(config)
    except ConfigError as error:
        yield problem("encryption", error.message, _key_remedy(error, file))
        return
    assert keyring is not None  # noqa: S101 - there is a key
    mode = 0 if file is None else stat.S_IMODE(file.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield warning(
            "encryption",
            f"the key file {file} has mode {mode:04o}: others on this machine may read the key",
            f"chmod 0600 {file}; replace the key if others may have read it: rotate_key() of the cache",
        )
    else:
        yield ok("encryption", f"the key {keyring.current} encrypts")


def _key_remedy(error: ConfigError, file: Path | None) -> str:
    if "path" not in error.details:
        return "pip install 'tif1_pipeline[encryption]', or unset the key; what is encrypted cannot be read until then"
    return (
        f"Put a key of 32 bytes, as 64 hexadecimal digits, into {file}, readable by this user alone (mode 0600); or "
        "correct cache_encryption_key_file"
    )


def keyring_or_none(config: Config) -> Keyring | None:
    """Return the keys that can be had; those that cannot have a check of their own."""
    try:
        return Keyring.of(config)
    except ConfigError:
        return None


# ---- places that settings name


def fallback(config: Config) -> Iterator[Check]:
    """Whether the folder that stands in for ``cache_dir`` can, and does."""
    folder = config.cache_fallback_dir
    if folder is None:
        return
    if folder.absolute() == config.cache_dir.absolute():
        yield warning(
            "fallback",
            f"cache_fallback_dir is cache_dir itself, {folder}: nothing stands in when it cannot be used",
            "Set cache_fallback_dir to a folder of another disk",
        )
        return
    left: dict[Path, int] = {}
    for index in range(config.cache_shards):
        path = fallback_path(folder, shard_path(config.cache_path, index))
        if path.is_file():
            with closing(open_readonly(path)) as connection:
                left[path] = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    if number := sum(left.values()):
        yield warning(
            "fallback",
            f"{number:,} entries are in the fallback {', '.join(map(str, left))}: {config.cache_dir} could not be used",
            f"Mend {config.cache_dir} as said above; the next process that opens the cache moves them back",
        )
    there = next(each for each in (folder, *folder.parents) if each.exists())
    error = try_write(there)
    if error is not None:
        yield problem(
            "fallback",
            f"cache_fallback_dir {folder} cannot be written to: {error.strerror}",
            "Give this user access to it, or name another folder",
        )
    elif not number:
        yield ok("fallback", f"{folder} can be used and holds no entries")


def audit_log(config: Config) -> Iterator[Check]:
    """Whether the audit log can be written."""
    path = config.cache_audit_log
    if path is None:
        return
    reason = None
    above = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir():
        reason = "it is a folder"
    elif path.exists() and not os.access(path, os.W_OK):
        reason = "this user may not write to the file"
    elif not above.is_dir():
        reason = f"{above} is a file"
    elif (error := try_write(above)) is not None:  # its lock and its former versions are made beside it
        reason = f"in {above}: {error.strerror}"
    if reason is None:
        yield ok("audit log", f"{path}")
    else:
        yield problem(
            "audit log",
            f"the audit log {path} cannot be written: {reason}. What is done is not recorded",
            "Give this user access to the file and its folder, or set cache_audit_log to another file",
        )
