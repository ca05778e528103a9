"""Many files, threads, processes and event loops: the bound on requests, cancelling, closing."""

import asyncio
import gc
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from misbehaving_server import BODY, FILE, LARGE, TIMING, files, slow, status

from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.cdn.slots import RequestSlots
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError, NetworkError


def length(file, body):
    return len(body)


def loop_threads():
    return [thread for thread in threading.enumerate() if thread.name == "tif1-cdn"]


# ---- many files


def test_results_come_in_the_order_of_the_files(client, server):
    wanted = files(60)
    path = "/{}/2025/Monaco%20Grand%20Prix/Race/VER/{}_tel.json"
    server.replies |= {path.format(mirror, 7): status(404) for mirror in "ab"}
    server.replies[path.format("a", 0)] = slow(0.2)

    def decode(file, body):
        if file is wanted[9]:
            raise KeyError("Speed")
        return file

    done = []
    stats = CdnStats()
    outcomes = client.fetch_many(wanted, decode, on_done=done.append, stats=stats)
    assert isinstance(outcomes[7], DataNotFoundError)
    assert isinstance(outcomes[9], InvalidDataError)
    assert all(outcomes[number].value is wanted[number] for number in range(60) if number not in (7, 9))
    assert sorted(map(str, done)) == sorted(map(str, wanted))
    assert done[0] is not wanted[0]  # told when it happens
    assert stats.requests == 62
    assert client.fetch_many([], decode) == []


def test_files_that_follow_are_fetched_next(client, server):
    wanted = files(300)
    lacking = "/{}/2025/Monaco%20Grand%20Prix/Race/VER/{}_tel.json"
    server.replies |= {lacking.format(mirror, 1): status(404) for mirror in "ab"}
    extra = files(303)[300:]
    more, done = {wanted[0]: extra[:2], wanted[1]: [FILE], wanted[5]: extra[2:]}, []

    def follow(file):
        return more.get(file, [])

    outcomes = client.fetch_many(wanted, lambda file, body: file, on_done=done.append, follow=follow)
    assert isinstance(outcomes[1], DataNotFoundError)  # what did not come is not followed
    followed = [outcome.value for outcome in outcomes[300:]]
    assert sorted(map(str, followed)) == sorted(map(str, extra))
    assert [file for file in followed if file in extra[:2]] == extra[:2]
    assert len(done) == 303
    assert max(map(done.index, followed)) < 250

    def refuse(file):
        raise InvalidDataError("enough")

    with pytest.raises(InvalidDataError, match="enough"):
        client.fetch_many(wanted, length, follow=refuse)
    assert len(client.fetch_many(files(20), length)) == 20


def test_files_may_come_from_a_generator_of_the_callers_thread(client):
    threads = []

    def generate():
        for file in files(3):
            threads.append(threading.current_thread())
            yield file

    assert len(client.fetch_many(generate(), length)) == 3
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("culprit", ["decode", "on_done"])
def test_a_bug_in_a_callback_ends_the_call(client, server, culprit):
    first = iter([True])

    def bug(*_):
        if next(first, False):
            raise RuntimeError("bug")

    callbacks = {"decode": length, "on_done": lambda file: None} | {culprit: bug}
    with pytest.raises(RuntimeError, match="bug"):
        client.fetch_many(files(500), **callbacks)
    asked = server.asked("a")
    assert asked < 100
    time.sleep(0.1)
    assert server.asked("a") <= asked + 32
    assert client.fetch(FILE, bytes).value == BODY


def test_errors_of_many_files_do_not_hold_their_bodies(client):
    class Parsed:
        pass

    parsed = weakref.WeakSet()

    def decode(file, body):
        held = Parsed()
        parsed.add(held)
        raise ValueError("no column Speed")

    outcomes = client.fetch_many(files(20), decode)
    gc.collect()
    assert {type(outcome) for outcome in outcomes} == {InvalidDataError}
    assert len(parsed) == 0


def test_many_files_are_not_as_many_tasks(client, config):
    counts = []
    client.fetch_many(files(600), lambda file, body: counts.append(len(asyncio.all_tasks())))
    assert max(counts) <= config.max_concurrent_requests + 2


def test_connections_are_kept(client, config, server):
    config.max_concurrent_requests = 4
    server.replies["/a/2025/Monaco%20Grand%20Prix/Race/VER/3_tel.json"] = status(404)
    client.fetch_many(files(200), length)
    connections = {connection for mirror, _, _, connection in server.requests}
    assert len(connections) <= 5


def test_connections_of_missing_files_are_kept(client, server):
    def reply(exchange):
        exchange.send(b"", 404, content_length=4)
        time.sleep(0.02)
        exchange.raw(b"gone")

    server.replies |= {"a": reply, "b": reply}
    for file in files(5):
        with pytest.raises(DataNotFoundError):
            client.fetch(file, bytes)
    assert len({connection for _, _, _, connection in server.requests}) == 1


# ---- the bound


def test_threads_share_the_bound_on_requests(client, config, server):
    config.max_concurrent_requests = 4
    server.replies["a"] = slow(0.01)
    threads = [threading.Thread(target=client.fetch_many, args=(files(30), length)) for _ in range(4)]
    threads += [threading.Thread(target=client.fetch, args=(FILE, bytes)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked("a") == 128
    assert server.most_under_way == 4


def test_a_raised_bound_is_effective_for_those_who_wait(client, config, server):
    config.max_concurrent_requests = 1
    server.replies["a"] = slow(0.05)
    threads = [threading.Thread(target=client.fetch, args=(FILE, bytes)) for _ in range(24)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    config.max_concurrent_requests = 8
    for thread in threads:
        thread.join()
    assert 4 <= server.most_under_way <= 8


def test_requests_under_way_end_with_a_cancelled_call(client, config, server):
    # If a cancelled call kept its places, the second one would wait for ever.
    config.max_concurrent_requests = 2
    for _ in range(3):
        with pytest.raises(MemoryError):
            client.fetch_many(files(20), lambda file, body: (_ for _ in ()).throw(MemoryError))
    assert len(client.fetch_many(files(20), length)) == 20


def test_a_place_that_comes_to_a_cancelled_request_is_passed_on():
    async def main():
        slots = RequestSlots(lambda: 1)
        await slots.__aenter__()
        cancelled, next_in_line = asyncio.create_task(slots.__aenter__()), asyncio.create_task(slots.__aenter__())
        await asyncio.sleep(0)
        await slots.__aexit__()
        cancelled.cancel()  # in the same turn of the loop
        await asyncio.wait_for(next_in_line, 1)

    asyncio.run(main())


# ---- where calls come from


def test_calls_from_many_threads(client, server):
    results = []
    threads = [threading.Thread(target=lambda: results.append(client.fetch(FILE, bytes).value)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [BODY] * 50
    assert len(loop_threads()) == 1


def test_calls_inside_a_running_event_loop(client):
    async def notebook_cell():
        return client.fetch(FILE, bytes).value, len(client.fetch_many(files(5), length))

    assert asyncio.run(notebook_cell()) == (BODY, 5)


def test_a_decoder_that_uses_the_client_gets_an_error_instead_of_a_deadlock(client):
    with pytest.raises(RuntimeError, match="cannot use the client"):
        client.fetch(FILE, lambda body: client.fetch(FILE, bytes))


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid, result = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(result)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_anew_and_the_parent_goes_on(client, server):
    client.fetch(FILE, bytes)
    before = {connection for _, _, _, connection in server.requests}

    def work():
        ours = client.fetch(FILE, bytes).value == BODY and len(client.fetch_many(files(20), length)) == 20
        gc.collect()
        return ours and client.totals.requests == 22

    assert in_child(work) == 0
    asked = server.asked("a")
    assert client.fetch(FILE, bytes).value == BODY
    # On its old connection: neither side of the fork harmed the other's.
    assert {connection for _, _, _, connection in server.requests[asked:]} == before
    assert client.totals.requests == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_requests_are_under_way(client, config, server):
    server.replies["a"] = slow(0.02)
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.extend(client.fetch_many(files(200), length)))
    thread.start()
    time.sleep(0.05)
    codes = [in_child(lambda: client.fetch(FILE, bytes).value == BODY) for _ in range(5)]
    thread.join()
    assert codes == [0] * 5
    assert [outcome.value for outcome in outcomes] == [len(BODY)] * 200


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_starts_a_call(client):
    with client._lock:
        code = in_child(lambda: client.fetch(FILE, bytes).value == BODY)
    assert code == 0


FORK_AND_EXIT = """
import os, sys
from tif1_pipeline.cdn.base import CdnFile
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.config import Config
client = CdnClient(Config(cdn_urls=[sys.argv[1]]))
file = CdnFile(2025, ("a", "b"))
client.fetch(file, bytes)
if os.fork() == 0:
    if sys.argv[2] == "use":
        client.fetch(file, bytes)
    sys.exit(0)  # runs the interpreter's finalizers
assert os.wait()[1] == 0
client.fetch(file, bytes)
"""


@pytest.mark.parametrize("use", ["use", "not"])
def test_processes_end_quickly_and_silently_without_close(server, use):
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK_AND_EXIT, server.mirror("a"), use],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - started < 10
    connections = [connection for _, _, _, connection in server.requests]
    assert connections[0] == connections[-1]
    assert len(connections) == (3 if use == "use" else 2)


def test_importing_the_client_imports_no_http_library():
    code = (
        "import sys, tif1_pipeline.cdn.client; print({'httpx', 'httptools', 'asyncio', 'stamina'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


# ---- ends


def test_an_interrupt_ends_the_call_and_its_requests(client, server):
    server.replies["a"] = lambda x: x.stall()
    assert threading.current_thread() is threading.main_thread()
    interrupted = []

    def interrupt():
        while not server.asked("a"):
            time.sleep(0.01)
        interrupted.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A shell starts background jobs, test runs among them, with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.fetch_many(files(100), length)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert time.monotonic() - interrupted[0] < 2
    assert server.gone.wait(2)  # the connections were closed
    server.replies.clear()
    assert client.fetch(FILE, bytes).value == BODY
    time.sleep(0.1)
    assert server.asked("a") <= 33  # nobody went on asking


def test_close_ends_the_thread_and_calls_under_way(client, server):
    server.replies["a"] = lambda x: x.stall()
    errors = []

    def call():
        try:
            client.fetch(FILE, bytes)
        except NetworkError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.asked("a"):
        time.sleep(0.01)
    client.close()
    thread.join(2)
    assert not thread.is_alive()
    assert "client was closed" in str(errors[0])
    assert not loop_threads()
    client.close()
    server.replies.clear()
    assert client.fetch(FILE, bytes).value == BODY


def test_close_ends_the_thread_that_inflates(client, server):
    server.replies["a"] = lambda x: x.send(gzip.compress(LARGE), content_encoding="gzip")
    for _ in range(3):
        assert client.fetch(FILE, bytes).value == LARGE
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("tif1-inflate")]
        assert len(threads) == 1
        client.close()
        threads[0].join(5)
        assert not threads[0].is_alive()


def test_a_client_that_nobody_holds_ends_its_thread(config):
    client = CdnClient(config, TIMING)
    client.fetch(FILE, bytes)
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    assert not loop_threads()


def test_an_unused_client_has_no_thread(config):
    client = CdnClient(config)
    assert not loop_threads()
    client.close()
