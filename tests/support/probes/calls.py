"""Socket calls whose exact behaviour programs rely on; each probe says what it saw.

`address` and `port` are those of a greeting server (probes/peers.py) unless said otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any

from support.probes.peers import (
    endpoint,
    family_of,
    greet_one,
    greeted,
    listen,
    listen_on,
    visit,
)
from support.probes.reporting import report

_libc = ctypes.CDLL(None, use_errno=True)


def name_of(code: int | None) -> str:
    return errno.errorcode.get(code or 0, "") if code else ""


def stream(address: str) -> socket.socket:
    return socket.socket(family_of(address), socket.SOCK_STREAM)


# --- connect ----------------------------------------------------------------------------------


def connect_nonblocking(address: str, port: int) -> dict[str, Any]:
    with stream(address) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        events = poll.poll(10_000)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        again = sock.connect_ex((address, port))
        still_nonblocking = not sock.getblocking()
        sock.setblocking(True)
        return {
            "first": name_of(first),
            "events": events[0][1] if events else 0,
            "so_error": error,
            # The first connect after the handshake says 0 or EISCONN by its route: see connect(2).
            "third": name_of(sock.connect_ex((address, port))),
            "second_is_fine": again in (0, errno.EISCONN),
            "still_nonblocking": still_nonblocking,
            "greeting": greeted(sock),
        }


def connect_and_poll_first(address: str, port: int) -> dict[str, Any]:
    """A socket that is in an epoll set, a poll and a select before it is connected."""
    with stream(address) as sock, select.epoll() as epoll:
        sock.setblocking(False)
        epoll.register(sock, select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)
        epoll.poll(0)
        sock.connect_ex((address, port))
        seen = 0
        deadline = time.monotonic() + 10
        while not (seen & select.EPOLLIN and seen & select.EPOLLOUT):
            assert time.monotonic() < deadline, f"events until now: {seen:#x}"
            for _, events in epoll.poll(1):
                seen |= events
        # The number is registered still: natively a second registration is EEXIST.
        try:
            epoll.register(sock, select.EPOLLIN)
            registered = ""
        except FileExistsError:
            registered = "EEXIST"
        sock.setblocking(True)
        return {"registered": registered, "greeting": greeted(sock)}


def connect_again_while_connected(address: str, port: int) -> list[str]:
    with stream(address) as sock:
        codes = [sock.connect_ex((address, port)) for _ in range(3)]
    return [name_of(code) for code in codes]


def connect_refused(address: str, port: int) -> dict[str, Any]:
    """`port` is one that nobody listens on."""
    with stream(address) as sock:
        blocking = sock.connect_ex((address, port))
        usable_after = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with stream(address) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll(10_000)
        late = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {
        "blocking": name_of(blocking),
        "so_error_after": usable_after,
        "nonblocking": name_of(first),
        "so_error": name_of(late),
    }


def refused_then_connected(address: str, port: int, refused_port: int) -> dict[str, Any]:
    """The same socket after a refusal, as programs try one address after the other."""
    with stream(address) as sock:
        assert sock.connect_ex((address, refused_port)) == errno.ECONNREFUSED
        sock.connect((address, port))
        return greeted(sock)


def connect_with_timeout(address: str, port: int, timeout_s: float) -> dict[str, Any]:
    """SO_SNDTIMEO towards an address that answers nothing."""
    with stream(address) as sock:
        seconds, rest = divmod(timeout_s, 1)
        value = struct.pack("ll", int(seconds), int(rest * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        started = time.monotonic()
        code = sock.connect_ex((address, port))
        return {"errno": name_of(code), "took_s": time.monotonic() - started}


def connect_interrupted(address: str, port: int, restart: bool) -> dict[str, Any]:
    """A blocking connect to an address that answers nothing, and SIGALRM meanwhile."""
    seen: list[float] = []
    started = time.monotonic()
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    signal.siginterrupt(signal.SIGUSR1, not restart)
    with stream(address) as sock:
        threading.Thread(target=_interrupt_twice, args=(os.getpid(), sock, restart)).start()
        # Not sock.connect: Python would take the call up again after EINTR.
        code = raw_connect(sock.fileno(), address, port)
        took = time.monotonic() - started
    return {"errno": name_of(code), "signals": len(seen), "took_s": took}


def _interrupt_twice(pid: int, sock: socket.socket, restart: bool) -> None:
    time.sleep(0.3)
    os.kill(pid, signal.SIGUSR1)
    if restart:
        time.sleep(0.3)
        # Ends a connect that goes on natively: shutdown(2) wakes it.
        sock.shutdown(socket.SHUT_RDWR)


def raw_connect(fd: int, address: str, port: int) -> int:
    """connect(2) itself; gives the errno."""
    raw = sockaddr(address, port)
    if _libc.connect(fd, raw, len(raw)) == 0:
        return 0
    return ctypes.get_errno()


def sockaddr(address: str, port: int) -> bytes:
    if family_of(address) == socket.AF_INET:
        return struct.pack("=H", socket.AF_INET) + struct.pack(
            "!H4s8x", port, socket.inet_pton(socket.AF_INET, address)
        )
    return struct.pack("=H", socket.AF_INET6) + struct.pack(
        "!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, address), 0
    )


def disconnect(address: str, port: int) -> dict[str, Any]:
    """AF_UNSPEC: the socket can be connected anew."""
    with stream(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((address, port))
        greeted(sock)
        unspec = struct.pack("=H", socket.AF_UNSPEC) + bytes(14)
        code = _libc.connect(sock.fileno(), unspec, len(unspec))
        try:
            sock.getpeername()
            peer = "connected"
        except OSError as error:
            peer = name_of(error.errno)
        sock.connect((address, port))
        return {
            "disconnect": code,
            "peer": peer,
            "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "greeting": greeted(sock),
        }


def connect_bound(address: str, port: int, own: str, own_port: int) -> dict[str, Any]:
    """From an address and port that the program chose."""
    with stream(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((own, own_port))
        sock.connect((address, port))
        return greeted(sock)


def connect_bad_arguments(address: str, port: int) -> dict[str, str]:
    """Errno by mistake; the socket must be as before after each, and work at the end."""
    raw = sockaddr(address, port)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    found = {}
    with stream(address) as sock:
        fd = sock.fileno()
        for what, pointer, length in (
            ("bad pointer", ctypes.c_void_p(8), len(raw)),
            ("no pointer", ctypes.c_void_p(0), len(raw)),
            ("length 0", buffer, 0),
            ("length 1", buffer, 1),
            ("short", buffer, len(raw) // 2),
            ("length negative", buffer, -1),
            ("length huge", buffer, 1 << 20),
        ):
            _libc.connect(fd, pointer, ctypes.c_int(length))
            found[what] = name_of(ctypes.get_errno())
        wrong = struct.pack("=H", 77) + raw[2:]
        _libc.connect(fd, wrong, len(wrong))
        found["family"] = name_of(ctypes.get_errno())
        sock.connect((address, port))
        greeted(sock)
    _libc.connect(999, buffer, len(raw))
    found["no fd"] = name_of(ctypes.get_errno())
    with open("/dev/null") as file:
        _libc.connect(file.fileno(), buffer, len(raw))
        found["no socket"] = name_of(ctypes.get_errno())
    return found


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


# --- names ------------------------------------------------------------------------------------


def names(address: str, port: int) -> dict[str, Any]:
    """getsockname and getpeername before and after connect, and after the peer's end."""
    with stream(address) as sock:
        before = endpoint(sock.getsockname())
        try:
            sock.getpeername()
            peer_before = "connected"
        except OSError as error:
            peer_before = name_of(error.errno)
        sock.connect((address, port))
        greeting = greeted(sock)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        return {
            "before": before,
            "peer_before": peer_before,
            "greeting": greeting,
            "after_end": endpoint(sock.getsockname()),
        }


def names_with_bad_arguments(address: str, port: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with stream(address) as sock:
        sock.connect((address, port))
        greeted(sock)
        fd = sock.fileno()
        buffer = ctypes.create_string_buffer(128)
        for name, call in (("getsockname", _libc.getsockname), ("getpeername", _libc.getpeername)):
            length = ctypes.c_int(128)
            for what, pointer, size in (
                ("bad pointer", ctypes.c_void_p(8), ctypes.byref(length)),
                ("bad length pointer", buffer, ctypes.c_void_p(8)),
                ("negative length", buffer, ctypes.byref(ctypes.c_int(-1))),
            ):
                call(fd, pointer, size)
                found[f"{name}: {what}"] = name_of(ctypes.get_errno())
            # Too small: what fits is written, the true length given back.
            buffer.raw = b"\xff" * 128
            length = ctypes.c_int(4)
            assert call(fd, buffer, ctypes.byref(length)) == 0
            found[f"{name}: length of 4"] = [length.value, buffer.raw[4:8] == b"\xff" * 4]
            length = ctypes.c_int(0)
            assert call(fd, ctypes.c_void_p(0), ctypes.byref(length)) == 0
            found[f"{name}: length of 0"] = length.value
    return found


# --- what the fd keeps ------------------------------------------------------------------------


def options(address: str, port: int) -> dict[str, list[Any]]:
    """Options set before the connect: [with this value before, after]."""
    sol, tcp = socket.SOL_SOCKET, socket.IPPROTO_TCP
    asked = {
        "nodelay": (tcp, socket.TCP_NODELAY, 1),
        "keepalive": (sol, socket.SO_KEEPALIVE, 1),
        "keepidle": (tcp, socket.TCP_KEEPIDLE, 77),
        "keepintvl": (tcp, socket.TCP_KEEPINTVL, 7),
        "keepcnt": (tcp, socket.TCP_KEEPCNT, 3),
        "sndbuf": (sol, socket.SO_SNDBUF, 50_000),
        "rcvbuf": (sol, socket.SO_RCVBUF, 60_000),
        "linger": (sol, socket.SO_LINGER, struct.pack("ii", 1, 5)),
        "user timeout": (tcp, socket.TCP_USER_TIMEOUT, 12_345),
        "rcvtimeo": (sol, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0)),
        "sndtimeo": (sol, socket.SO_SNDTIMEO, struct.pack("ll", 21, 0)),
        "tos": (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        "congestion": (tcp, socket.TCP_CONGESTION, b"reno"),
        "notsent lowat": (tcp, socket.TCP_NOTSENT_LOWAT, 16_384),
    }
    found: dict[str, list[Any]] = {}

    def read(level: int, name: int, value: int | bytes) -> Any:
        if isinstance(value, int):
            return sock.getsockopt(level, name)
        return sock.getsockopt(level, name, 16).rstrip(b"\0").hex()

    with stream(address) as sock:
        for what, (level, name, value) in asked.items():
            sock.setsockopt(level, name, value)
            found[what] = [read(level, name, value)]
        sock.connect((address, port))
        for what, (level, name, value) in asked.items():
            found[what].append(read(level, name, value))
        greeted(sock)
    return found


def file_state(address: str, port: int) -> list[list[bool]]:
    """[close-on-exec, non-blocking] before and after connect, for all four; the owner is kept."""
    found = []
    for cloexec in (False, True):
        for nonblocking in (False, True):
            with stream(address) as sock:
                os.set_inheritable(sock.fileno(), not cloexec)
                sock.setblocking(not nonblocking)
                number = sock.fileno()
                fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
                assert sock.connect_ex((address, port)) in (0, errno.EINPROGRESS)
                assert sock.fileno() == number
                assert fcntl.fcntl(number, fcntl.F_GETOWN) == os.getpid()
                flags = fcntl.fcntl(number, fcntl.F_GETFD)
                status = fcntl.fcntl(number, fcntl.F_GETFL)
                found.append(
                    [bool(flags & fcntl.FD_CLOEXEC) == cloexec]
                    + [bool(status & os.O_NONBLOCK) == nonblocking]
                )
    return found


def duplicate_before_connect(address: str, port: int) -> dict[str, Any]:
    """dup(2) before connect: both numbers are the one connection."""
    with stream(address) as sock, socket.socket(fileno=os.dup(sock.fileno())) as copy:
        sock.connect((address, port))
        greeting = greeted(copy)
        return {
            "copy_name": endpoint(copy.getsockname()),
            "copy_peer": endpoint(copy.getpeername()),
            "greeting": greeting,
            "same_file": os.fstat(copy.fileno()).st_ino == os.fstat(sock.fileno()).st_ino,
        }


def fork_before_connect(address: str, port: int) -> dict[str, Any]:
    """fork(2) between socket and connect: the child connects, the parent uses the connection."""
    with stream(address) as sock:
        pid = os.fork()
        if pid == 0:
            os._exit(sock.connect_ex((address, port)))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        greeting = greeted(sock)
        sock.sendall(b"from the parent")
        assert sock.recv(100) == b"from the parent"
        return greeting


def inherit_connection(address: str, port: int) -> dict[str, Any]:
    """A connection used by a child, after its parent closed it."""
    with stream(address) as sock:
        sock.connect((address, port))
        greeting = greeted(sock)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            # Until the parent has closed its copy.
            os.read(reader, 1)
            sock.sendall(b"from the child")
            is_right = sock.recv(100) == b"from the child"
            is_right &= endpoint(sock.getpeername()) == greeting["client_peer"]
            is_right &= endpoint(sock.getsockname()) == greeting["client_name"]
            os._exit(0 if is_right else 1)
        os.close(reader)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return greeting


# --- accept, listen ---------------------------------------------------------------------------


def accept_calls(address: str, port: int) -> None:
    """A listener; reports when it listens. The test makes one connection for each step."""
    with listen(address, port) as listener:
        listener.setblocking(False)
        report({"empty": name_of(_error_of(listener.accept))})
        _wait_for(listener)
        with listener.accept()[0] as sock:
            # A connection inherits O_NONBLOCK on no Linux.
            status = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
            report({"nonblocking_of_accept": bool(status & os.O_NONBLOCK)})
            _say(sock)
        for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC):
            _wait_for(listener)
            fd = _libc.accept4(listener.fileno(), None, None, flags)
            assert fd >= 0, name_of(ctypes.get_errno())
            with socket.socket(fileno=fd) as sock:
                report(
                    {
                        "nonblocking": bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK),
                        "cloexec": bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
                        "peer": endpoint(sock.getpeername()),
                        "family": int(sock.family),
                    }
                )
                _say(sock)
        assert _libc.accept4(listener.fileno(), None, None, 1) == -1
        report({"wrong_flags": name_of(ctypes.get_errno())})
        report({"empty": name_of(_error_of(listener.accept))})


def _say(sock: socket.socket) -> None:
    """A greeting, for visit to read, and its echo."""
    line = f'{{"peer": "{endpoint(sock.getpeername())}"}}\n'
    sock.setblocking(True)
    sock.sendall(line.encode())
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def _wait_for(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(20_000), "no connection came"


def _error_of(call: Any) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def accept_with_timeout(address: str, port: int) -> dict[str, Any]:
    """SO_RCVTIMEO on a listener that nobody connects to."""
    with listen(address, port) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 300_000))
        started = time.monotonic()
        code = -1
        if _libc.accept(listener.fileno(), None, None) < 0:
            code = ctypes.get_errno()
        return {"errno": name_of(code), "took_s": time.monotonic() - started}


def accept_interrupted(address: str, port: int, restart: bool) -> None:
    """SIGUSR1 during accept; with `restart` the test connects afterwards."""
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    signal.siginterrupt(signal.SIGUSR1, not restart)
    with listen(address, port) as listener:
        report("listening")
        # The C call, so that nothing of Python's takes EINTR up again.
        fd = _libc.accept(listener.fileno(), None, None)
        code = 0 if fd >= 0 else ctypes.get_errno()
        report({"errno": name_of(code), "signals": len(seen)})
        if fd >= 0:
            with socket.socket(fileno=fd) as sock:
                _say(sock)


def accept_bad_pointer(address: str, port: int) -> None:
    """A bad pointer for the address loses the connection (accept(2)); the next is fine."""
    with listen(address, port) as listener:
        report("listening")
        _wait_for(listener)
        length = ctypes.c_int(128)
        pointers = (ctypes.c_void_p(8), ctypes.byref(length))
        fd = _libc.accept(listener.fileno(), *pointers)
        report({"fd": min(fd, 0), "errno": name_of(ctypes.get_errno())})
        sock, _ = listener.accept()
        with sock:
            _say(sock)


def accept_elsewhere(address: str, port: int) -> dict[str, str]:
    """accept on sockets that do not listen, or on none."""
    found = {}
    with stream(address) as sock:
        found["fresh"] = name_of(_error_of(sock.accept))
        sock.connect((address, port))
        found["connected"] = name_of(_error_of(sock.accept))
        found["listen while connected"] = name_of(_error_of(sock.listen))
        found["bind while connected"] = name_of(_error_of(lambda: sock.bind(("", 0))))
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as datagrams:
        found["datagram"] = name_of(_error_of(datagrams.accept))
    return found


def listener_names(address: str, port: int) -> dict[str, Any]:
    with listen(address, port) as listener:
        found = {
            "name": endpoint(listener.getsockname()),
            "peer": name_of(_error_of(listener.getpeername)),
            "accepts": listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        }
        listener.listen(5)
        found["name after a second listen"] = endpoint(listener.getsockname())
        found["connect"] = name_of(listener.connect_ex((address, port)))
        found["name after connect"] = endpoint(listener.getsockname())
    return found


def listen_without_bind() -> str:
    """The kernel chooses the port; the name must be the overlay's, and reachable."""
    with socket.socket() as listener:
        listener.listen(1)
        address, port = listener.getsockname()
        assert address == "0.0.0.0"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            server, _ = listener.accept()
            with server:
                assert server.getpeername() == client.getsockname()
        return f"{address}:{port}"


def rebind(address: str, port: int, times: int) -> int:
    """close, bind and listen again at once, without SO_REUSEADDR; nothing was accepted."""
    for number in range(times):
        sock = stream(address)
        try:
            sock.bind((address, port))
        except OSError as error:
            raise AssertionError(f"bind number {number}: {error}") from None
        sock.listen(8)
        sock.close()
    return times


def bind_in_use(address: str, port: int) -> str:
    """A port that somebody else in the container listens on."""
    with listen(address, port), stream(address) as second:
        return name_of(_error_of(lambda: second.bind((address, port))))


def reuseport_group(address: str, port: int, members: int) -> None:
    """Processes with a listener each in one SO_REUSEPORT group; connections say which it was."""
    for _ in range(members):
        if os.fork() == 0:
            sock = stream(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listen_on(sock, address, port)
            report(os.getpid())
            _serve_greeting(sock)
            os._exit(0)
    while True:
        time.sleep(60)


def prefork(address: str, port: int, workers: int) -> None:
    """One listener, inherited by workers that all accept on it, each with a greeting."""
    listener = listen(address, port)
    for _ in range(workers):
        if os.fork() == 0:
            _serve_greeting(listener)
            os._exit(0)
    report(endpoint(listener.getsockname()))
    while True:
        time.sleep(60)


def _serve_greeting(listener: socket.socket) -> None:
    while True:
        sock, accepted = listener.accept()
        greet_one(sock, accepted)


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


def announced_visit(address: str, port: int) -> dict[str, Any]:
    """A visit by a blocking connect, announced before it."""
    report("connecting")
    with stream(address) as sock:
        sock.connect((address, port))
        return greeted(sock)


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
