"""Cases that each run in a process of their own, forked from one that has imported everything already.

What a case does to its process (another user, no descriptors left, mounts) ends with it. ``python -m
tests.stress.nursery <module> <scratch> <share> <seed>`` is that process: it runs the module's ``cases`` and prints a
line of JSON for each.
"""

import faulthandler
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.stress.trial import Plan, Row

Case = tuple[str, Callable[[Path, Plan, Row], None]]
"""What is done, and what does it in a folder of its own, noting in the row what came of it."""
CASE_SECONDS = 90


class User(NamedTuple):
    """A user that need not exist.

    Attributes:
        uid: Of the user.
        gid: Of the user's own group.
        groups: Further ones.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def rows(module: str, plan: Plan, wrap: Sequence[str] = ()) -> Iterator[Row]:
    """Run the cases of a module; ``wrap`` is put before the command."""
    command = [*wrap, sys.executable, "-m", "tests.stress.nursery", module]
    command += [str(plan.scratch), str(plan.share), str(plan.seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield Row(**json.loads(line))
        if process.wait(10):
            raise RuntimeError(f"{module} ended with exit code {process.returncode}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def can_mount() -> list[str]:
    """Return what to put before a command that mounts for itself alone; empty if this machine does not let us."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        with tempfile.TemporaryDirectory() as folder, suppress(OSError, subprocess.SubprocessError):
            test = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
            subprocess.run(test, check=True, capture_output=True, timeout=10)
            return command
    return []


def in_child(work: Callable[[], Any], *, user: User | None = None, seconds: float = 60.0) -> Any:
    """Run something in a forked child, as another user if that is wanted; returns what it returned.

    Raises:
        RuntimeError: It raised, with its traceback; it died; or it took too long and was killed.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            os.close(receive)
            faulthandler.register(signal.SIGUSR1)  # not its timer, whose thread is not there after a second fork
            if user is not None:
                os.setgroups(user.groups)
                os.setgid(user.gid)
                os.setuid(user.uid)
            try:
                answer = (True, work())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(send, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    try:
        os.set_blocking(receive, False)
        data, deadline = b"", time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                more = os.read(receive, 1 << 16)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            if not more:
                break
            data += more
        else:
            os.kill(child, signal.SIGUSR1)  # it shows where it is
            time.sleep(0.2)
    finally:
        os.close(receive)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with what it has started
        os.waitpid(child, 0)
    if not data:
        raise RuntimeError(f"a child died, or was at work for more than {seconds:g} s")
    is_done, answer = pickle.loads(data)
    if not is_done:
        raise RuntimeError(answer)
    return answer


def main() -> None:
    """Run the cases."""
    module, scratch, share, seed = sys.argv[1:]
    plan = Plan(Path(scratch), float(share), int(seed))
    for folder in (plan.scratch, plan.scratch.parent):  # for users that a case turns into
        folder.chmod(0o711)
    area = module.rpartition(".")[2]
    for number, (what, work) in enumerate(importlib.import_module(module).cases(plan)):
        folder = plan.scratch / f"{number}"
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)

        def run(what: str = what, work: Callable[..., None] = work, folder: Path = folder) -> dict[str, Any]:
            row = Row(area, what)
            work(folder, plan, row)
            return asdict(row)

        begun = time.monotonic()
        try:
            row = Row(**in_child(run, seconds=CASE_SECONDS))
        except RuntimeError as error:
            row = Row(area, what, tried=1, wrong=1)
            row.say(str(error).strip())
        row.remark += f"{'; ' if row.remark else ''}{time.monotonic() - begun:.1f} s"
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
