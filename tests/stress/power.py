"""Power cuts: files as they may be when only what was synced is sure to be on the disk.

What a process writes and syncs is recorded once (see :mod:`tests.stress.recorder`). From the record, the files are
built as a power cut at any moment may leave them, and opened by a fresh cache:

- Of what was written to a file since it was last synced, nothing, everything, any part in order with the last write
  torn, any of the writes, or any of the sectors of 512 bytes is there. What was not written reads as it was, or as
  zeros where the file has grown.
- Names that were made, changed or removed in a folder since it was last synced are as before or as after, in order or
  in any mixture; so a file that was synced may be without a name. A rollback journal or log is named with its first
  sync, which includes the folder.
- A file that Python wrote holds what it held when it was last synced; nothing if it never was.

Not modelled: disks that lie about syncs or damage neighbouring sectors; writes of other processes at the same time;
the index of the log (``-shm``), which is never there after a power cut; and what SQLite writes to files that are thrown
away after a crash.

With ``synchronous=NORMAL`` a power cut may undo the last commits, in order. So what holds is: the file opens, nothing
is half there, the state is one that was, and not one from before the last sync of the log.
"""

import pickle
import random
import shutil
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tests.cache import stress_worker as made
from tests.stress import crash
from tests.stress.crash import Kind
from tests.stress.recorder import Event, Recorder, is_possible
from tests.stress.trial import Plan, Row
from tif1_pipeline.config import Config

_SECTOR = 512
_AGAIN = 5
"""After each so many cuts the work is also done again."""


# ---- the disk


@dataclass(eq=False)
class _Inode:
    content: bytes = b""
    pending: list[Event] = field(default_factory=list)
    is_folder: bool = False
    was_synced: bool = False

    def sync(self) -> None:
        self.content, self.pending = _applied(self.content, self.pending), []


def _applied(content: bytes, events: list[Event]) -> bytes:
    data = bytearray(content)
    for event in events:
        if event.kind == "truncate":
            del data[event.offset :]
            data.extend(bytes(event.offset - len(data)))
        else:
            data.extend(bytes(max(0, event.offset - len(data))))
            data[event.offset : event.offset + len(event.data)] = event.data
    return bytes(data)


def _sectors(event: Event) -> Iterator[Event]:
    if event.kind == "truncate":
        yield event
        return
    start = 0
    while start < len(event.data):
        end = min(len(event.data), start + _SECTOR - (event.offset + start) % _SECTOR)
        yield Event("write", event.path, event.offset + start, event.data[start:end])
        start = end


class Disk:
    """Files under a folder: what is on the disk for sure, and what is only on its way there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, _Inode] = {}
        for path in sorted(root.rglob("*")):
            is_folder = path.is_dir()
            self.names[str(path)] = _Inode(b"" if is_folder else path.read_bytes(), is_folder=is_folder)
        self.sure = dict(self.names)
        self.changes: list[tuple[str, dict[str, _Inode | None]]] = []
        """Names that are not on the disk for sure: the folder, and what each name leads to from then on."""

    def take(self, event: Event) -> None:
        """Go on by one event."""
        kind, path = event.kind, event.path
        if kind in ("write", "truncate"):
            self._inode(path).pending.append(event)
        elif kind == "sync":
            inode = self._inode(path)
            inode.sync()
            if event.offset and not inode.was_synced:
                self._sync_folder(str(Path(path).parent))
            inode.was_synced = True
        elif kind == "fsync":
            inode = self._inode(path)
            inode.content, inode.pending = event.data, []
        elif kind in ("delete", "unlink", "rmdir"):
            self._change(path, {path: None})
            if kind == "delete" and event.offset:
                self._sync_folder(str(Path(path).parent))
        elif kind == "mkdir":
            self._change(path, {path: _Inode(is_folder=True)})
        elif kind == "rename":
            self._change(event.data, {path: None, event.data: self._inode(path)})
        elif kind == "folder":
            self._sync_folder(path)

    def _inode(self, path: str) -> _Inode:
        if path not in self.names:
            self._change(path, {path: _Inode()})
        return self.names[path]

    def _change(self, path: str, change: dict[str, _Inode | None]) -> None:
        _rename(self.names, change)
        self.changes.append((str(Path(path).parent), change))

    def _sync_folder(self, folder: str) -> None:
        for where, change in self.changes:
            if where == folder:
                _rename(self.sure, change)
        self.changes = [change for change in self.changes if change[0] != folder]

    def cut(self, chance: random.Random) -> None:
        """Leave the folder as a power cut at this moment may."""
        names = dict(self.sure)
        for _, change in _some(self.changes, chance):
            _rename(names, change)
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        for path, inode in sorted(names.items()):
            if not Path(path).parent.is_dir():  # its folder has no name yet
                continue
            if inode.is_folder:
                Path(path).mkdir(exist_ok=True)
            else:
                Path(path).write_bytes(_applied(inode.content, _some_writes(inode.pending, chance)))


def _rename(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for path, inode in change.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def _some(changes: list, chance: random.Random) -> list:
    mode = chance.choice(("none", "all", "first", "any"))
    if mode == "any":
        return [change for change in changes if chance.random() < 0.5]
    return changes[: {"none": 0, "all": len(changes), "first": chance.randint(0, len(changes))}[mode]]


def _some_writes(events: list[Event], chance: random.Random) -> list[Event]:
    if not events:
        return []
    if chance.random() < 0.4:
        share = chance.choice((0.1, 0.5, 0.9))
        return [sector for event in events for sector in _sectors(event) if chance.random() < share]
    some = _some(events, chance)
    if some and chance.random() < 0.5:  # the last one is torn
        last = list(_sectors(some[-1]))
        some = [*some[:-1], *last[: chance.randint(0, len(last))]]
    return some


# ---- what is recorded


class Commits(Kind):
    """Writes and removals, one after the other, while the log is carried over now and then."""

    what = "power cut in writes, removals and checkpoints"
    full = 120
    wal = True
    numbers = crash.BOTH

    @property
    def config(self) -> Config:
        config = super().config
        config.update({"cache_wal_mode": self.wal, "cache_wal_autocheckpoint": 40})
        return config

    def record(self, recorder: Recorder) -> None:
        chance = random.Random(self.chance.random())
        versions: dict[int, int] = defaultdict(int)
        for number in range(60):
            if number % 20 == 0:
                cache = crash.Cache(self.config)
            which = chance.choice(self.numbers)
            is_removal = chance.random() < 0.2
            versions[which] += not is_removal
            recorder.note("try", "", number, (which, 0 if is_removal else versions[which]))
            if is_removal:
                cache.remove(made.key_of(which))
            else:
                crash.write(cache, which, versions[which])
            recorder.note("done", "", number)
            if chance.random() < 0.1:
                cache.checkpoint()
            if number % 20 == 19:
                cache.close()


class CommitsWithJournal(Commits):
    what = "power cut in writes and removals without a log (cache_wal_mode off)"
    full = 60
    wal = False


class Decryption(crash.Rotation):
    what = "power cut in and after the decryption of everything"

    def work(self) -> None:
        with self.cache() as cache:
            cache.rotate_key(decrypt=True)

    def check_done(self, row: Row) -> None:
        self.keys = ()  # they were thrown away
        try:
            self.check(row)
        finally:
            self.keys = (crash.NEW_KEY, crash.FORMER_KEY)


class VacuumResized(crash.Vacuum):
    what = "power cut in a vacuum that changes the page size"

    def prepare(self) -> None:
        super().prepare()
        self.page_size = self.sizes[1]


_OTHERS = (
    *(
        crash.Cleanup,
        crash.Vacuum,
        VacuumResized,
        crash.Backup,
        crash.Restore,
        crash.Migration,
        crash.Rotation,
        Decryption,
    ),
    *(crash.Return, crash.Spread, crash.Export, crash.Import),
)
_CUTS = 20


def record(kind: Kind, path: Path) -> None:
    """Work with everything recorded, in a process of its own."""
    recorder = Recorder()
    if isinstance(kind, Commits):
        kind.record(recorder)
    else:
        recorder.note("try")
        kind.work()
        recorder.note("done")
    recorder.save(path)


# ---- the trial


def rows(plan: Plan) -> Iterator[Row]:
    """Cut the power in one kind of work after the other."""
    if not is_possible():
        print("  power: not tried, the SQLite of this Python is linked in and cannot be reached", file=sys.stderr)
        return
    for make in (Commits, CommitsWithJournal, *_OTHERS):
        folder = plan.scratch / make.__name__
        folder.mkdir()
        kind = make(folder, plan.chance(f"power {make.__name__}"))
        count = plan.count(kind.full if isinstance(kind, Commits) else _CUTS)
        yield try_kind(kind, count, folder)
        shutil.rmtree(folder)


def try_kind(kind: Kind, count: int, folder: Path) -> Row:
    row = Row("power", kind.what.replace("SIGKILL", "power cut").partition(", each")[0])
    kind.folder.mkdir()
    kind.prepare()
    noted = kind.board.notes.copy()
    disk = Disk(kind.folder)
    server = get_context("forkserver")
    server.set_forkserver_preload([crash.__name__])
    process = server.Process(target=record, args=(kind, folder / "record"), daemon=True)
    process.start()
    process.join(crash.PATIENCE)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"what was to be recorded ended with {process.exitcode}")
    events = [Event(*event) for event in pickle.loads((folder / "record").read_bytes())]
    thrown_away = ("write", "truncate", "sync", "delete")  # SQLite's work in folders that are removed after a crash
    events = [event for event in events if not (event.kind in thrown_away and ".partial/" in event.path)]
    syncs = sum(event.kind in ("sync", "fsync", "folder") for event in events)
    # Half of them anywhere, the others beside a change of what is sure.
    turns = [index + 1 for index, event in enumerate(events) if event.kind not in ("write", "try")]
    points = sorted(
        kind.chance.randint(0, len(events)) if number % 2 else kind.chance.choice(turns) - kind.chance.choice((0, 1))
        for number in range(count)
    )
    position = 0
    promise = _Promise(events)
    for number, point in enumerate(points):
        for event in events[position:point]:
            disk.take(event)
        position = point
        disk.cut(kind.chance)
        row.tried += 1
        kind.board.notes[:] = noted
        try:
            if isinstance(kind, Commits):
                promise.check(row, kind, point)
            elif any(event.kind == "done" for event in events[:point]):
                kind.check_done(row)
            else:
                kind.check(row)
            if number % _AGAIN == 0 and not isinstance(kind, Commits):
                kind.complete(row)
        except Exception:
            row.wrong += 1
            row.say(f"after event {point} of {len(events)}: {traceback.format_exc()}")
        if len(row.failures) > 20:
            break
    row.remark = f"{len(events):,} writes and syncs recorded, {syncs} of them syncs"
    if isinstance(kind, Commits):
        row.remark += f"; at most {promise.undone} commits undone, none that a sync followed"
    return row


class _Promise:
    """Which of the states that there were may be there after a power cut."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.undone = 0

    def check(self, row: Row, kind: Kind, point: int) -> None:
        states: list[dict[int, int]] = [{}]
        tried = done = sure = 0
        for event in self.events[:point]:
            if event.kind == "try":
                which, version = event.data
                states.append({**states[-1], which: version})
                tried += 1
            elif event.kind == "done":
                done = tried
            elif event.kind == "sync" and event.path.endswith(("-wal", "-journal")):
                # The log with all commits so far; or the folder, in which the journal of the last one is gone.
                sure = done
        kind.board.note({})
        kind.board.tried[kind.numbers] = np.iinfo(np.int64).max
        kind.board.state[kind.numbers] = made.UNKNOWN
        with kind.cache() as cache:
            kind.compare(row, cache)
            found = {number: crash.stored(cache, number) for number in kind.numbers}
        matching = [
            index
            for index, state in enumerate(states)
            if all(state.get(number, 0) == found[number] for number in found)
        ]
        if not matching:
            row.wrong += 1
            row.say(f"after event {point}: a state that never was: {found}")
        elif max(matching) < sure:
            row.lost += sure - max(matching)
            row.say(f"after event {point}: {sure} commits were synced, {max(matching)} are there")
        else:
            self.undone = max(self.undone, done - max(matching))
