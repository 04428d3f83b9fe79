"""Control's ends of the links to keeper and traps, on asyncio.

Requests carry tokens and are awaited; ControlError when the other process is away or does not
answer in time. Sockets never block: a process that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import TYPE_CHECKING, Any

import msgspec

from slim.broker.errors import ControlError
from slim.broker.local import messages, seqpacket

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 5.0
TRAPS_LIMIT_S = 8.0
"""More than the keeper's longest pause before it starts traps again; less than slim-run waits."""

_from_keeper: msgspec.msgpack.Decoder[messages.KeeperAnswer] = msgspec.msgpack.Decoder(
    messages.KeeperAnswer
)
_to_control: msgspec.msgpack.Decoder[messages.ToControl] = msgspec.msgpack.Decoder(
    messages.ToControl
)


class _Requests:
    """Tokens and the futures behind them."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def run(self, send: Callable[[int], bool]) -> Any:
        token = next(self._tokens)
        future = self._waiting[token] = asyncio.get_running_loop().create_future()
        try:
            if not send(token):
                raise ControlError(f"{self._peer} is not running")
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await future
        except TimeoutError:
            raise ControlError(f"{self._peer} did not answer in {ANSWER_LIMIT_S:.0f} s") from None
        finally:
            self._waiting.pop(token, None)

    def done(self, token: int, result: Any = None, error: str = "") -> None:
        future = self._waiting.get(token)
        if future is not None and not future.done():
            if error:
                future.set_exception(ControlError(f"{self._peer}: {error}"))
            else:
                future.set_result(result)

    def fail_all(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ControlError(f"{self._peer} is gone"))


class KeeperClient:
    """The connection to the keeper; owns its socket."""

    def __init__(self, path: str, on_end: Callable[[], None]) -> None:
        sock = seqpacket.connect(path)
        sock.setblocking(False)
        self._channel = seqpacket.Channel(sock, _from_keeper)
        self.peer_pid = seqpacket.peer_credentials(sock)[0]
        self._on_end = on_end
        self._requests = _Requests("the keeper")
        self._held: list[tuple[str, bytes, list[int]]] = []
        self._fetching = asyncio.Lock()
        asyncio.get_running_loop().add_reader(sock, self._receive)

    def close(self) -> None:
        if self._channel.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel.sock)
            self._channel.close()

    async def fetch(
        self, prefix: str
    ) -> tuple[list[tuple[str, bytes, list[int]]], messages.HeldEnd]:
        """What is kept under names that start so, and who runs; the caller owns the fds."""
        # What is held carries no token: one fetch at a time.
        async with self._fetching:
            self._held = []
            end = await self._request(lambda token: messages.Fetch(token, prefix))
            held, self._held = self._held, []
        return held, end

    async def store(self, name: str, meta: bytes, fds: tuple[int, ...] = ()) -> None:
        """Keep these under the name; borrows the fds."""
        await self._request(lambda token: messages.Store(token, name, meta), fds)

    async def drop(self, *names: str) -> None:
        await self._request(lambda token: messages.Drop(token, list(names)))

    async def start_traps(self, argv: list[str], gap_limit_s: float) -> None:
        await self._request(lambda token: messages.StartTraps(token, argv, gap_limit_s))

    async def stop_traps(self) -> None:
        await self._request(messages.StopTraps)

    async def release(self) -> None:
        await self._request(messages.Release)

    async def _request(
        self, make: Callable[[int], messages.KeeperRequest], fds: tuple[int, ...] = ()
    ) -> Any:
        def send(token: int) -> bool:
            try:
                self._channel.send(make(token), fds)
            except OSError:
                return False
            return True

        return await self._requests.run(send)

    def _receive(self) -> None:
        try:
            message, fds = self._channel.receive()
        except BlockingIOError:
            return
        except (OSError, EOFError):
            self.close()
            self._requests.fail_all()
            self._on_end()
            return
        match message:
            case messages.Held():
                self._held.append((message.name, message.meta, fds))
            case messages.HeldEnd():
                self._requests.done(message.token, message)
            case messages.Done():
                self._requests.done(message.token, error=message.error)


class TrapsServer:
    """Where traps connects; one traps at a time. Owns both sockets."""

    def __init__(self, path: str, on_message: Callable[[messages.ToControl], None]) -> None:
        """`on_message` takes all but answers; a hello comes before anything else of a traps."""
        self._on_message = on_message
        self._requests = _Requests("the trap process")
        self._channel: seqpacket.Channel[messages.ToControl] | None = None
        self._listener = seqpacket.listen(path, mode=0o600)
        self._listener.setblocking(False)
        self._path = path
        self.connected = asyncio.Event()
        self.pid = 0
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        self._disconnect()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def send(self, message: messages.ToTraps, fds: tuple[int, ...] = ()) -> bool:
        """Send without waiting for anything; False when traps is not there. Borrows the fds."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message, fds)
        except OSError as error:
            log.error("traps does not take %s: %s", type(message).__name__, error)
            self._disconnect()
            return False
        return True

    async def wait_until_connected(self) -> None:
        """Wait for a traps that is being started again; ControlError when none comes in time."""
        try:
            async with asyncio.timeout(TRAPS_LIMIT_S):
                await self.connected.wait()
        except TimeoutError:
            raise ControlError("the trap process is not running") from None

    async def request(
        self, make: Callable[[int], messages.ToTraps], fds: tuple[int, ...] = ()
    ) -> None:
        """Send and wait until it is done; ControlError when it is not. Borrows the fds."""
        await self._requests.run(lambda token: self.send(make(token), fds))

    def _accept(self) -> None:
        sock = seqpacket.accept_trusted(self._listener)
        if sock is None:
            return
        self._disconnect()
        sock.setblocking(False)
        self._channel = seqpacket.Channel(sock, _to_control)
        asyncio.get_running_loop().add_reader(sock, self._receive)

    def _receive(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            message, fds = channel.receive()
        except BlockingIOError:
            return
        except (OSError, EOFError) as error:
            log.warning("traps is away: %s", error)
            self._disconnect()
            return
        for fd in fds:
            os.close(fd)
        match message:
            case messages.TrapsHello():
                if message.protocol != messages.PROTOCOL:
                    log.error("traps speaks another protocol: stop slimd with --release, start it")
                    self._disconnect()
                    return
                self.pid = message.pid
                self._on_message(message)
                self.connected.set()
            case messages.Done():
                self._requests.done(message.token, error=message.error)
            case _:
                self._on_message(message)

    def _disconnect(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.sock)
            self._channel.close()
            self._channel = None
            self.pid = 0
            self.connected.clear()
            self._requests.fail_all()
