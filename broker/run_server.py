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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from slim.broker.claims import check_claim, workload_cookie
from slim.broker.conversations import Conversations, until_readable
from slim.broker.decisions import Identity
from slim.broker.errors import ControlError, SlimError
from slim.broker.local import messages, seqpacket, states

if TYPE_CHECKING:
    import socket

    from slim.broker.config import NamespaceConfig, SlimRunConfig

log = logging.getLogger(__name__)

CONVERSATION_LIMIT_S = 20.0

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

    def may_limit(self, workload: Identity | None) -> bool:
        """Whether policy could limit a connection of that workload; None: of any."""
        ...

    async def register(
        self, claim: messages.Register, container: states.ContainerState, fds: list[int]
    ) -> None:
        """Create or join the workload and supervise the container; borrows the fds
        (namespace, listener). SlimError when that is refused."""
        ...


@dataclass(frozen=True, slots=True)
class Programs:
    """The filters, as seccomp_filter.build_filter gives them."""

    free: bytes
    limited: bytes


class RunServer:
    """Owns the conversations on run.sock."""

    def __init__(
        self,
        path: str,
        programs: Programs,
        host_netns: int,
        config: SlimRunConfig,
        containers: Containers,
    ) -> None:
        self._programs = programs
        self._host_netns = host_netns
        self._config = config
        self._containers = containers
        # Anybody may connect; credentials decide what they may say.
        listener = seqpacket.listen(path, mode=0o666)
        self._conversations = Conversations(listener, "slim-run", self._converse)

    def use(self, config: SlimRunConfig) -> None:
        """For conversations that begin from now on."""
        self._config = config

    def close(self) -> None:
        self._conversations.close()

    async def wait(self) -> None:
        """Until every conversation that has begun is over."""
        await self._conversations.wait()

    async def _converse(self, sock: socket.socket) -> None:
        conversation = Conversation(sock, self._containers, self._host_netns, self._config)
        try:
            async with asyncio.timeout(CONVERSATION_LIMIT_S):
                await conversation.run(self._programs)
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

    async def run(self, programs: Programs) -> None:
        if self._containers.may_limit(None):
            self.answer(messages.Offer(messages.PROTOCOL, b""))
            described = await self._receive()
            if not isinstance(described, messages.Describe):
                raise seqpacket.ProtocolViolation(f"{type(described).__name__}, not Describe")
            limited = self._may_be_limited(described)
            program = programs.limited if limited else programs.free
        else:
            program = programs.free
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

    def _may_be_limited(self, described: messages.Describe) -> bool:
        """False only of a workload that is fully named, and that no limit is for.

        The claim comes later: who describes another workload than it then claims gets away with
        nothing but the later moment at which what it undid is put back (enforcing.py).
        """
        if self._uid != 0 or not described.workload or not described.labels:
            return True
        identity = Identity(described.workload, described.namespace, described.labels)
        return self._containers.may_limit(identity)

    async def _register(self, claim: messages.Register) -> None:
        if len(self._fds) != 3:
            raise seqpacket.ProtocolViolation(f"Register with {len(self._fds)} fds instead of 3")
        netns, _pidfd, listener = self._fds
        check_claim(claim)
        cookie = workload_cookie(netns)
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
        while True:
            try:
                message, fds = self._channel.receive()
            except BlockingIOError:
                await until_readable(self._channel.sock)
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
