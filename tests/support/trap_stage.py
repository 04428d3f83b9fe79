"""The real trap process between a real keeper, a control of the test's own and a real program.

Two namespaces: the host's, in which traps, peers and strangers are (all addresses on lo), and the
workload's, in which the program is. Sockets of the test are born there too, by a child.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from slim.broker.admission.nonces import Nonces
from slim.broker.admission.preamble import Kind, Record, Sealer
from slim.broker.endpoints import Endpoint, packed16, parse_address
from slim.broker.kernel.namespaces import netns_cookie
from slim.broker.kernel.seccomp_filter import build_filter
from slim.broker.local import messages, seqpacket, states
from slim.plugins.encryption import aesgcm_cipher
from support.keeping import RunningKeeper
from support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST_ADDRESS = parse_address("192.0.2.1")
PEER_ADDRESS = parse_address("192.0.2.2")
STRANGER_ADDRESS = parse_address("192.0.2.3")
OVERLAY_ADDRESS = parse_address("10.1.0.1")
SOURCE = Endpoint.parse("10.1.0.2:40000")
PEER = "b"
KEY = bytes(range(32))
KEY_ID = 0x51
PEER_NONCES = Nonces.create()

_decoder: msgspec.msgpack.Decoder[messages.ToControl] = msgspec.msgpack.Decoder(messages.ToControl)

# Makes sockets where it runs, and sends them.
_SOCKETS = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
while channel.recv(1):
    with socket.socket() as made:
        socket.send_fds(channel, [b"x"], [made.fileno()])
"""

# Installs the filter that it is sent, hands the listener back, becomes the program.
_LAUNCHER = """
import os, socket, sys
from slim.broker.kernel.seccomp_install import install_filter, set_no_new_privs
channel = socket.socket(fileno=int(sys.argv[1]))
set_no_new_privs()
listener = install_filter(channel.recv(65536))
socket.send_fds(channel, [b"x"], [listener])
os.close(listener)
channel.recv(1)
os.execv(sys.executable, [sys.executable, "-I", "-c", sys.argv[2]])
"""

# One command a line, one result a line; accepts in a thread for every listener.
_PROGRAM = """
import errno, json, socket, sys, threading
lock = threading.Lock()
def say(**what):
    with lock:
        print(json.dumps(what), flush=True)
def serve(listener):
    while True:
        taken, peer = listener.accept()
        threading.Thread(target=talk, args=(taken, peer), daemon=True).start()
def talk(taken, peer):
    with taken:
        data = taken.recv(100)
        taken.sendall(b"ok")
        say(accepted=list(peer), data=data.hex(), local=list(taken.getsockname()))
for line in sys.stdin:
    asked = json.loads(line)
    try:
        if "listen" in asked:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", asked["listen"]))
            listener.listen(asked["backlog"])
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            say(listening=asked["listen"])
        else:
            with socket.socket() as made:
                made.settimeout(None)
                made.connect(tuple(asked["connect"]))
                made.sendall(b"hello")
                say(connected=list(made.getpeername()), local=list(made.getsockname()))
    except OSError as error:
        say(error=errno.errorcode[error.errno])
"""


class Namespace:
    """A network namespace that lives as long as its holder; a context manager."""

    def __init__(self, *commands: str) -> None:
        # The first line says that the namespace is entered and set up.
        script = " && ".join(("ip link set lo up", *commands, "echo", "exec sleep 600"))
        argv = ["unshare", "--net", "sh", "-c", script]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            self.close()
            raise AssertionError("the namespace was not set up")
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.prefix = ("nsenter", f"--net={self.path}", "--")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(10)
        with theirs:
            self._maker = subprocess.Popen(
                [*self.prefix, sys.executable, "-I", "-c", _SOCKETS, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )

    def socket(self) -> socket.socket:
        """A new TCP socket of that namespace."""
        self._channel.send(b"x")
        _, (fd,), _, _ = socket.recv_fds(self._channel, 1, 1)
        made = socket.socket(fileno=fd)
        made.settimeout(10)
        return made

    def cookie(self) -> int:
        with self.socket() as sock:
            return netns_cookie(sock)

    def close(self) -> None:
        if hasattr(self, "_maker"):
            self._channel.close()
            self._maker.wait()
        self._holder.kill()
        self._holder.communicate()


class FakeControl:
    """The end of traps.sock that control has: a thread that notes news and answers questions."""

    def __init__(self, path: str) -> None:
        self.answers: dict[Endpoint, messages.ToTraps] = {}
        """By destination; a question without one stays open."""
        self.news: list[messages.ToControl] = []
        self._listener = seqpacket.listen(path, mode=0o600)
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._channel: seqpacket.Channel[messages.ToControl] | None = None
        self._thread = threading.Thread(target=self._serve, name="fake control")
        self._thread.start()

    def close(self) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        if self._channel is not None:
            self._channel.close()
        self._listener.close()
        os.close(self._stop)
        os.close(self._stopping)

    def send(self, message: messages.ToTraps, *fds: int) -> None:
        channel = eventually(lambda: self._channel, "traps connects")
        assert channel is not None
        channel.send(message, fds)

    def request(self, message: messages.ToTraps, token: int, *fds: int) -> None:
        """Send, and wait for the Done with that token."""
        self.send(message, *fds)
        done = eventually(lambda: self._done(token), f"traps answers {type(message).__name__}")
        assert done is not None
        assert done.error == ""

    def listener_up(self, port: int) -> messages.ListenerUp:
        up = eventually(lambda: self._listener_up(port), f"a host listener for port {port}")
        assert up is not None
        return up

    def _listener_up(self, port: int) -> messages.ListenerUp | None:
        for message in self.news:
            if isinstance(message, messages.ListenerUp) and message.port == port:
                return message
        return None

    def _done(self, token: int) -> messages.Done | None:
        for message in self.news:
            if isinstance(message, messages.Done) and message.token == token:
                return message
        return None

    def _serve(self) -> None:
        while True:
            source = self._listener if self._channel is None else self._channel
            ready, _, _ = select.select([source, self._stop], [], [])
            if self._stop in ready:
                return
            if self._channel is None:
                self._channel = seqpacket.Channel(self._listener.accept()[0], _decoder)
                continue
            try:
                message, _ = self._channel.receive()
            except (EOFError, ConnectionResetError):
                self._channel.close()
                self._channel = None
                continue
            self.news.append(message)
            if isinstance(message, messages.LookUp):
                self._answer(message)

    def _answer(self, asked: messages.LookUp) -> None:
        for to, answer in self.answers.items():
            if (packed16(to.address), to.port) == (asked.destination, asked.port):
                assert self._channel is not None
                self._channel.send(msgspec.structs.replace(answer, token=asked.token))


class Program:
    """The program under the filter; commands in, results out."""

    def __init__(self, namespace: Namespace) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [*namespace.prefix, sys.executable, "-c", _LAUNCHER, str(theirs.fileno()), _PROGRAM]
        with theirs:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
            )
        self._channel = ours
        ours.settimeout(10)
        ours.send(build_filter("portable"))
        _, (self.listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="output of the program")

    def start(self) -> None:
        """Once somebody supervises it."""
        self._channel.send(b"x")
        self._reader.start()

    def close(self) -> None:
        self.process.kill()
        if self._reader.ident is not None:
            self._reader.join()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self._channel.close()
        os.close(self.listener)

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def says(self, timeout_s: float = 10) -> dict[str, Any]:
        """The next line."""
        return self._said.get(timeout=timeout_s)

    def said_nothing(self) -> bool:
        return self._said.empty()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))


class TrapStage:
    """Everything, running; see `trap_stage`."""

    def __init__(
        self, host: Namespace, workload: Namespace, control: FakeControl, program: Program
    ) -> None:
        self.host = host
        self.workload = workload
        self.control = control
        self.program = program
        self.cookie = workload.cookie()
        self._tokens = 100

    def token(self) -> int:
        self._tokens += 1
        return self._tokens

    def listen(self, port: int, backlog: int = 128) -> Endpoint:
        """Let the program listen; gives the host endpoint behind."""
        self.program.tell(listen=port, backlog=backlog)
        assert self.program.says() == {"listening": port}
        up = self.control.listener_up(port)
        assert up.host_address == packed16(HOST_ADDRESS)
        return Endpoint(HOST_ADDRESS, up.host_port)

    def announce(self, port: int, flow: int) -> None:
        """Admit the peer's source to that port under a flow, and its key."""
        token = self.token()
        addresses = [packed16(PEER_ADDRESS)]
        self.control.request(
            messages.OpeningKey(token, PEER, KEY_ID, KEY, 300_000, addresses), token
        )
        token = self.token()
        self.control.request(
            messages.AddInboundFlow(
                token=token,
                flow=flow,
                peer=PEER,
                workload=self.cookie,
                destination=packed16(OVERLAY_ADDRESS),
                port=port,
                source=packed16(SOURCE.address),
                source_workload="default/client",
                rule="default",
                lifetime_ms=300_000,
            ),
            token,
        )

    def record(self, at: Endpoint, flow: int) -> bytes:
        """A genuine record of the peer's."""
        sealer = Sealer(KEY_ID, KEY, aesgcm_cipher.seal, PEER_NONCES)
        return sealer.seal(Record(flow, Kind.DATA, SOURCE), at)

    def connect(self, to: Endpoint, source: object = PEER_ADDRESS) -> socket.socket:
        sock = self.host.socket()
        try:
            sock.bind((str(source), 0))
            sock.connect((str(to.address), to.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def serve_peer(self, at: Endpoint, flow: int, data: bytes = b"hello") -> float:
        """A good peer is served; how long it took, in seconds."""
        started = time.monotonic()
        with self.connect(at) as peer:
            peer.sendall(self.record(at, flow) + data)
            assert peer.recv(100) == b"ok"
            took = time.monotonic() - started
        said = self.program.says()
        assert said["accepted"] == [str(SOURCE.address), SOURCE.port]
        assert bytes.fromhex(said["data"]) == data
        return took


@contextlib.contextmanager
def trap_stage(run_dir: Path) -> Iterator[TrapStage]:
    """The stage, and nothing left of it afterwards."""
    with contextlib.ExitStack() as stack:

        def owned(thing: Any) -> Any:
            stack.callback(thing.close)
            return thing

        networks = " && ".join(
            f"ip address add {address}/32 dev lo"
            for address in (HOST_ADDRESS, PEER_ADDRESS, STRANGER_ADDRESS)
        )
        host = owned(Namespace(networks))
        workload = owned(Namespace(f"ip address add {OVERLAY_ADDRESS}/16 dev lo"))
        keeper = stack.enter_context(RunningKeeper(run_dir, host.prefix))
        control = owned(FakeControl(str(run_dir / "traps.sock")))
        settings = states.TrapSettings(
            host_addresses=[packed16(HOST_ADDRESS)],
            host_ports=(20_000, 20_099),
            resolve_budget_ms=2_000,
            connect_budget_ms=1_000,
            flow_lifetime_s=300,
            deny_errno=111,
            encryption="slim.plugins.encryption.aesgcm_cipher",
        )
        with keeper.client() as client:
            client.store("settings", msgspec.msgpack.encode(settings))
            argv = (sys.executable, "-m", "slim.broker.traps", "--run-dir", str(run_dir))
            client.start_traps(*argv)
        program = owned(Program(workload))
        stage = TrapStage(host, workload, control, program)
        _attach(stage)
        program.start()
        yield stage


def _attach(stage: TrapStage) -> None:
    state = states.WorkloadState(
        cookie=stage.cookie,
        name="server",
        namespace="default",
        labels={},
        overlay="blue",
        networks=[(packed16(parse_address("10.1.0.0")), 16)],
        addresses=[packed16(OVERLAY_ADDRESS)],
        index=1,
        isolated_ingress=False,
        isolated_egress=False,
        fail_mode="open",
        prepared=None,
    )
    namespace = os.open(stage.workload.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        token = stage.token()
        stage.control.request(messages.AttachWorkload(token, state), token, namespace)
    finally:
        os.close(namespace)
    container = states.ContainerState("c1", stage.cookie, stage.program.process.pid, [], 0.0)
    token = stage.token()
    stage.control.request(messages.AttachContainer(token, container), token, stage.program.listener)
