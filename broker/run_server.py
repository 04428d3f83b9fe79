"""Where slim-run registers: `run.sock`. Peer credentials decide who may claim what.

One conversation: Offer, perhaps PrepareNamespace and Namespace, Register, then Ack or Refuse. A
caller that ends before its Ack leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import secrets
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from slim.broker.endpoints import named_ports
from slim.broker.errors import ControlError, SlimError, SyscallError
from slim.broker.kernel.namespaces import netns_cookie_of
from slim.broker.local import messages, seqpacket, states

if TYPE_CHECKING:
    import socket

    from slim.broker.config import NamespaceConfig, SlimRunConfig

log = logging.getLogger(__name__)

MAX_CONVERSATIONS = 256
CONVERSATION_LIMIT_S = 20.0
ACCEPT_PAUSE_S = 0.5
MAX_LABELS = 64
MAX_TEXT = 256

_decoder: msgspec.msgpack.Decoder[messages.RunRequest] = msgspec.msgpack.Decoder(
    messages.RunRequest
)


class Containers(Protocol):
    """What registering needs of control."""

    async def prepare_namespace(self, overlay: str, address: str | None) -> tuple[str, int]:
        """A new namespace on the built-in overlay: its name and its fd, which the caller owns."""
        ...

    async def discard_namespace(self, name: str) -> None:
        """It was prepared and never used."""
        ...

    async def register(
        self, claim: messages.Register, container: states.ContainerState, fds: list[int]
    ) -> None:
        """Create or join the workload and supervise the container; borrows the fds
        (namespace, listener). SlimError when that is refused."""
        ...


class RunServer:
    """Owns the listening socket and the conversations."""

    def __init__(
        self,
        path: str,
        program: bytes,
        host_netns: int,
        config: SlimRunConfig,
        containers: Containers,
    ) -> None:
        self._program = program
        self._host_netns = host_netns
        self._config = config
        self._containers = containers
        self._tasks: set[asyncio.Task[None]] = set()
        # Anybody may connect; credentials decide what they may say.
        self._listener = seqpacket.listen(path, mode=0o666)
        self._listener.setblocking(False)
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def use(self, config: SlimRunConfig) -> None:
        """For conversations that begin from now on."""
        self._config = config

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No fd left. Who waits stays in the kernel's queue, which would wake us at once.
            log.error("slim-run is not heard: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(ACCEPT_PAUSE_S, self._listen)
            return
        if len(self._tasks) >= MAX_CONVERSATIONS:
            sock.close()
            return
        sock.setblocking(False)
        task = asyncio.create_task(self._converse(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, sock: socket.socket) -> None:
        conversation = Conversation(sock, self._containers, self._host_netns, self._config)
        try:
            async with asyncio.timeout(CONVERSATION_LIMIT_S):
                await conversation.run(self._program)
        except SlimError as error:
            conversation.answer(messages.Refuse(error.message[:1000], error.hint[:1000]))
        except (OSError, EOFError, TimeoutError) as error:
            log.info("slim-run (pid %d) went away: %s", conversation.pid, error)
        finally:
            await conversation.close()


class Conversation:
    """One slim-run; owns its socket and every fd it sent."""

    def __init__(
        self,
        sock: socket.socket,
        containers: Containers,
        host_netns: int,
        config: SlimRunConfig,
    ) -> None:
        self._channel = seqpacket.Channel(sock, _decoder)
        self._containers = containers
        self._host_netns = host_netns
        self._config = config
        self._fds: list[int] = []
        self._prepared: str | None = None
        self.pid, self._uid, self._gid = seqpacket.peer_credentials(sock)

    async def run(self, program: bytes) -> None:
        self.answer(messages.Offer(messages.PROTOCOL, program))
        request = await self._receive()
        if isinstance(request, messages.PrepareNamespace):
            if self._uid != 0:
                raise ControlError(
                    "only root may have namespaces made", hint="name one with --netns"
                )
            name, fd = await self._containers.prepare_namespace(request.overlay, request.address)
            self._prepared = name
            try:
                self.answer(messages.Namespace(name), (fd,))
            finally:
                os.close(fd)
            request = await self._receive()
        if not isinstance(request, messages.Register):
            raise seqpacket.ProtocolViolation(f"{type(request).__name__} instead of Register")
        await self._register(request)

    async def _register(self, claim: messages.Register) -> None:
        if len(self._fds) != 3:
            raise seqpacket.ProtocolViolation(f"Register with {len(self._fds)} fds instead of 3")
        netns, _pidfd, listener = self._fds
        _check_bounds(claim)
        try:
            cookie = netns_cookie_of(netns)
        except (SyscallError, OSError) as error:
            raise ControlError(f"that is no network namespace: {error}") from None
        if cookie == self._host_netns:
            raise ControlError(
                "the host's own network namespace is not a container",
                hint="name a namespace: --netns NAME, or --overlay NAME to have one made",
            )
        if self._uid != 0:
            claim = self._restrict(claim, netns)
        if claim.prepared != self._prepared:
            raise ControlError("the namespace was not prepared for this caller")
        container = states.ContainerState(
            container=secrets.token_hex(6),
            workload=cookie,
            pid=self.pid,
            command=claim.command,
            started=time.time(),
        )
        await self._containers.register(claim, container, [netns, listener])
        self._prepared = None
        self.answer(messages.Ack(container.container))

    def _restrict(self, claim: messages.Register, netns: int) -> messages.Register:
        """What a caller other than root may claim: exactly what the configuration declares."""
        if not self._is_member():
            raise ControlError(
                f"uid {self._uid} is not in the group {self._config.group!r}",
                hint="run slim-run as root, or as a member of that group",
            )
        declared = self._declared(netns)
        if declared is None:
            raise ControlError(
                "no [[slim_run.namespace]] of the configuration declares that namespace",
                hint="only root may start commands in other namespaces",
            )
        asked = (claim.workload or declared.workload, claim.namespace, claim.labels)
        if asked[0] != declared.workload or (
            claim.labels and claim.labels != dict(declared.labels)
        ):
            raise ControlError(
                f"that namespace is declared as workload {declared.workload!r} with labels "
                f"{dict(declared.labels)}",
                hint="leave --workload and --label out",
            )
        return msgspec.structs.replace(
            claim,
            workload=declared.workload,
            namespace=declared.namespace,
            labels=dict(declared.labels),
        )

    def _is_member(self) -> bool:
        try:
            group = grp.getgrnam(self._config.group).gr_gid
            name = pwd.getpwuid(self._uid).pw_name
        except KeyError:
            return False
        return group == self._gid or group in os.getgrouplist(name, self._gid)

    def _declared(self, netns: int) -> NamespaceConfig | None:
        own = os.fstat(netns)
        for entry in self._config.namespaces:
            try:
                there = os.stat(entry.netns)
            except OSError:
                continue
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                return entry
        return None

    # --- the wire -----------------------------------------------------------------------------

    def answer(self, message: messages.RunAnswer, fds: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(message, fds)
        except OSError as error:
            log.info("slim-run (pid %d) takes no answer: %s", self.pid, error)

    async def _receive(self) -> messages.RunRequest:
        loop = asyncio.get_running_loop()
        while True:
            try:
                message, fds = self._channel.receive()
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._channel.sock, _set, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._channel.sock)
                continue
            self._fds.extend(fds)
            return message

    async def close(self) -> None:
        self._channel.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._prepared is not None:
            await self._containers.discard_namespace(self._prepared)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check_bounds(claim: messages.Register) -> None:
    texts = [claim.workload or "", claim.namespace, claim.overlay or "", *claim.labels]
    texts += claim.labels.values()
    if len(claim.labels) > MAX_LABELS or any(len(text) > MAX_TEXT for text in texts):
        raise ControlError(
            "names or labels are too long",
            hint=f"at most {MAX_LABELS} labels, each text at most {MAX_TEXT} characters",
        )
    if not all(text.isprintable() for text in texts):
        raise ControlError(
            "a name or a label has control characters",
            hint="use printable characters: names and labels are shown and sent to peers",
        )
    try:
        named_ports(claim.labels)
    except ValueError as error:
        raise ControlError(str(error), hint="name ports with slim-run --port http=80") from None
