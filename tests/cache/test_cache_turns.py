"""Who waits for the write lock gets it: threads in their order, processes the sooner the longer they have waited."""

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tif1_pipeline.cache.turns import Turn, begin
from tif1_pipeline.cache.turnstile import Turnstile


def test_threads_get_their_turn_in_the_order_in_which_they_ask() -> None:
    turn, order = Turn(), []
    assert turn.acquire(1)

    def take(number: int) -> None:
        assert turn.acquire(20)
        order.append(number)
        turn.release()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(20)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(turn._waiting) <= number:
            time.sleep(0.001)
    turn.release()
    for thread in threads:
        thread.join(20)
    assert order == list(range(20))
    assert turn.acquire(0)


def test_whoever_gives_up_is_not_called() -> None:
    turn = Turn()
    assert turn.acquire(1)
    assert not turn.acquire(0.01)
    assert not turn._waiting
    turn.release()
    assert turn.acquire(0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE x (n)")
    connection.close()
    return tmp_path / "x.db"


def connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None, check_same_thread=False)


def test_a_lock_that_is_hardly_ever_free_is_got(file: Path) -> None:
    over = threading.Event()

    def hold() -> None:
        connection = connect(file)
        while not over.is_set():
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(0.2)
            connection.execute("COMMIT")
            time.sleep(0.004)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    time.sleep(0.05)
    connection = connect(file)
    started = time.monotonic()
    try:
        begin(connection, "BEGIN IMMEDIATE", 30)
        assert time.monotonic() - started < 3  # SQLite's own wait takes ten on average
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (30_000,)
        connection.execute("COMMIT")
    finally:
        over.set()
        holder.join()
        connection.close()


def test_a_lock_that_does_not_come_free_is_an_error(file: Path) -> None:
    holder, connection = connect(file), connect(file)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        begin(connection, "BEGIN IMMEDIATE", 0.2)
    assert 0.2 <= time.monotonic() - started < 2
    holder.close()
    connection.close()


TAKE_TURNS = """
import sqlite3, sys, time
from pathlib import Path
from tif1_pipeline.cache.turns import begin
from tif1_pipeline.cache.turnstile import Turnstile
file = Path(sys.argv[1])
connection, turnstile, turns = sqlite3.connect(file, isolation_level=None), Turnstile(file.parent), 0
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + 3
while time.monotonic() < until:
    begin(connection, "BEGIN IMMEDIATE", 10, turnstile)
    turns += 1
    time.sleep(0.004)
    connection.execute("COMMIT")
print(turns)
"""


def test_processes_take_turns(file: Path) -> None:
    before = set(file.parent.iterdir())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_TURNS, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    turns = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sum(turns) * 0.004 <= time.monotonic() - started  # one at a time
    assert min(turns) > max(turns) / 3, turns
    assert set(file.parent.iterdir()) == before


def test_who_holds_the_turnstile_too_long_is_passed_by(tmp_path: Path) -> None:
    held, turnstile = Turnstile(tmp_path), Turnstile(tmp_path)
    before = threading.active_count()
    with held.passing(1) as is_next:
        assert is_next
        started = time.monotonic()
        with turnstile.passing(0.2) as is_next:
            assert not is_next
        assert 0.2 <= time.monotonic() - started < 2
        started = time.monotonic()
        with turnstile.passing(5) as is_next:  # and not waited for each time
            assert not is_next
        assert time.monotonic() - started < 1
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    with Turnstile(tmp_path).passing(0) as is_next:  # whoever waited for the former has let go of it
        assert is_next


def test_a_killed_process_lets_the_next_one_in(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from tif1_pipeline.cache.turnstile import Turnstile
with Turnstile(Path(sys.argv[1])).passing(10):
    print("in", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            threading.Timer(0.3, process.kill).start()
            started = time.monotonic()
            with Turnstile(tmp_path).passing(20) as is_next:
                assert is_next
            assert 0.1 < time.monotonic() - started < 10
        finally:
            process.kill()


def test_threads_of_one_turnstile_do_not_wait_for_each_other(tmp_path: Path) -> None:
    held, turnstile = Turnstile(tmp_path), Turnstile(tmp_path)
    got: list[bool] = []

    def wait() -> None:
        with turnstile.passing(20) as is_next:
            got.append(is_next)

    with held.passing(1):
        waiting = threading.Thread(target=wait)
        waiting.start()
        while turnstile._called is None:
            time.sleep(0.001)
        with turnstile.passing(20) as is_next:
            assert not is_next
    waiting.join(20)
    assert got == [True]


def test_a_folder_that_cannot_be_locked_is_no_obstacle(tmp_path: Path, file: Path) -> None:
    turnstile = Turnstile(tmp_path / "gone")
    with turnstile.passing(5) as is_next:
        assert not is_next
    connection = connect(file)
    begin(connection, "BEGIN IMMEDIATE", 1, turnstile)
    assert connection.in_transaction
    connection.close()


def test_who_has_waited_too_long_does_not_queue_again(tmp_path: Path, file: Path) -> None:
    held, connection = Turnstile(tmp_path), connect(file)
    with held.passing(1) as is_next:
        assert is_next
        started = time.monotonic()
        begin(connection, "BEGIN IMMEDIATE", 30, Turnstile(tmp_path), since=started - 4)
        assert time.monotonic() - started < 1  # else two seconds
        assert connection.in_transaction
    connection.close()
