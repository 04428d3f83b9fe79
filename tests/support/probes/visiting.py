"""Many visits to a greeting server (probes/peers.py), and what went wrong with them."""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import threading
from collections import Counter
from typing import Any

from support.probes.calls import name_of, stream
from support.probes.peers import (
    greeted,
    visit,
)
from support.probes.reporting import report


def visit_in_turn(address: str, port: int, number: int) -> list[str]:
    """Visits one after the other; gives what the server said our address was."""
    names = []
    for _ in range(number):
        with socket.create_connection((address, port), timeout=10) as sock:
            seen = greeted(sock)
            assert seen["peer"] == seen["client_name"]
            names.append(seen["peer"])
    return names


def visit_often(address: str, port: int, number: int) -> dict[str, Any]:
    """Visits one after the other: which processes served them, and which saw a wrong address."""
    served: Counter[int] = Counter()
    wrong = []
    for _ in range(number):
        seen = visit(address, port, 100)
        served[seen["pid"]] += 1
        if not seen["peer"] == seen["accepted"] == seen["client_name"]:
            wrong.append(seen)
    return {"served": list(served.items()), "wrong": wrong}


def ask_until_told(address: str, port: int, path: str) -> None:
    """HTTP requests, each on a connection of its own, from several threads until a line of input.

    Reports each first word of an answer when it is new, and in the end what failed.
    """
    is_over = threading.Event()
    lock = threading.Lock()
    words: Counter[str] = Counter()
    errors: list[str] = []

    def ask() -> None:
        while not is_over.is_set():
            connection = http.client.HTTPConnection(address, port, timeout=10)
            try:
                connection.request("GET", path, headers={"Connection": "close"})
                word = connection.getresponse().read().decode().split()[0]
            except (OSError, http.client.HTTPException) as error:
                errors.append(repr(error))
                continue
            finally:
                connection.close()
            with lock:
                words[word] += 1
                if words[word] == 1:
                    report(word)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.read(0, 1)
    is_over.set()
    for thread in threads:
        thread.join()
    report({"answers": words.total(), "errors": errors[:20]})


def announced_visit(address: str, port: int) -> dict[str, Any]:
    """A visit by a blocking connect, announced before it."""
    report("connecting")
    with stream(address) as sock:
        sock.connect((address, port))
        return greeted(sock)


def visit_by_old_epoll(address: str, port: int) -> None:
    """A non-blocking visit by an epoll set that was made before the line of input; then stay."""
    with select.epoll() as events:
        report("made")
        input()
        with stream(address) as sock:
            sock.setblocking(False)
            events.register(sock, select.EPOLLOUT | select.EPOLLET)
            assert sock.connect_ex((address, port)) == errno.EINPROGRESS
            assert events.poll(10) == [(sock.fileno(), select.EPOLLOUT)]
            sock.setblocking(True)
            report(greeted(sock))
            input()


def patient_visits(address: str, port: int, threads: int) -> dict[str, Any]:
    """Visits by blocking calls from many threads, until a line of input; failures are counted."""
    wrong: list[Any] = []
    errors: Counter[str] = Counter()
    done: Counter[int] = Counter()
    stop = threading.Event()

    def run(number: int) -> None:
        while not stop.is_set():
            try:
                with stream(address) as sock:
                    sock.connect((address, port))
                    seen = greeted(sock)
            except OSError as error:
                errors[name_of(error.errno)] += 1
            except AssertionError:
                errors["closed"] += 1
            else:
                done[number] += 1
                if not seen["peer"] == seen["accepted"] == seen["client_name"]:
                    wrong.append(seen)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    report("started")
    input()
    stop.set()
    for worker in workers:
        worker.join()
    return {"done": list(done.values()), "wrong": wrong, "errors": dict(errors)}


def thread_visits(address: str, port: int, threads: int, each: int) -> dict[str, Any]:
    """Connects from many threads of one process; the greetings must be each one's own."""
    wrong: list[Any] = []
    done: Counter[int] = Counter()

    def run(number: int) -> None:
        for _ in range(each):
            seen = visit(address, port, 100)
            if not seen["peer"] == seen["accepted"] == seen["client_name"]:
                wrong.append(seen)
            done[number] += 1

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"done": done.total(), "wrong": wrong, "fds": len(os.listdir("/proc/self/fd"))}
