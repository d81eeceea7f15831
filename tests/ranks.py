"""A work done by two processes, each started as `torchrun` starts it: with the five variables, and nothing more."""

import os
import queue
import socket
import time

import tiny

COUNT = 2


def run_ranks(work, *arguments, seconds=120):
    """Call `work(rank, *arguments)` in both processes; return their answers by rank, and their exit statuses.

    The answer of one that raised is its error; of one that was killed it is None.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = tiny.processes.Queue()
    pair = [tiny.processes.Process(target=_run, args=(rank, port, results, work, arguments)) for rank in range(COUNT)]
    for process in pair:
        process.start()
    deadline = time.monotonic() + seconds
    answers = {}
    # Read while they run: a process does not end before its answer has been taken.
    while len(answers) < COUNT and (any(process.is_alive() for process in pair) or not results.empty()):
        try:
            rank, answer = results.get(timeout=0.2)
        except queue.Empty:
            assert time.monotonic() < deadline, "the processes hang"
        else:
            answers[rank] = answer
    for process in pair:
        process.join(timeout=max(deadline - time.monotonic(), 1))
        assert process.exitcode is not None, "a process has not come to its end"
    return [answers.get(rank) for rank in range(COUNT)], [process.exitcode for process in pair]


def _run(rank, port, results, work, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        results.put((rank, work(rank, *arguments)))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}"))
        results.close()
        results.join_thread()
        os._exit(2)
