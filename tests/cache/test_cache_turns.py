"""Who waits for the write lock gets it: threads in their order, processes the sooner the longer they have waited."""

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tif1_pipeline.cache.turns import Turn, begin


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
