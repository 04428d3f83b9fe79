"""The OCI seccomp agent: `oci.sock`, where runc and crun bring the listeners of containers.

The second way to Containers.register, beside run_server.py. The protocol has no answer: what is
refused loses its listener, and the kernel then fails its trapped calls with ENOSYS.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import secrets
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from slim.broker.claims import check_claim, workload_cookie
from slim.broker.conversations import Conversations, until_readable
from slim.broker.errors import ControlError, SlimError
from slim.broker.local import messages, seqpacket, states
from slim.broker.oci.identity import identify
from slim.broker.oci.process import open_network
from slim.broker.oci.process_state import MAX_BYTES, ContainerProcessState, ObjectEnd, parse

if TYPE_CHECKING:
    from slim.broker.registry import Membership, Workload

log = logging.getLogger(__name__)

SOCKET = "oci.sock"
CONVERSATION_LIMIT_S = 10.0
MAX_FDS = 16
FINISH_LIMIT_S = 1.0
_PIECE = 1 << 16
_INT_SIZE = array.array("i").itemsize


class Containers(Protocol):
    """What the agent needs of control."""

    async def register(
        self,
        claim: messages.Register,
        container: states.ContainerState,
        fds: list[int],
        membership: Membership = ...,
    ) -> None:
        """As for slim-run (run_server.Containers), which runs nothing that is on no overlay."""
        ...

    def find_runtime(self, runtime_id: str) -> list[Workload]:
        """The workloads with a container that an OCI runtime calls so."""
        ...


class OciAgent:
    """Owns the conversations on oci.sock."""

    def __init__(self, listener: socket.socket, host_netns: int, containers: Containers) -> None:
        """Takes the listening socket."""
        self._host_netns = host_netns
        self._containers = containers
        self.counters: Counter[str] = Counter(oci_registered=0, oci_refused=0)
        self._conversations = Conversations(listener, "an OCI runtime", self._converse)

    def close(self) -> None:
        self._conversations.close()

    async def wait(self) -> None:
        """Until every conversation that has begun is over."""
        await self._conversations.wait()

    async def finish(self) -> None:
        """Accept no more, let the runtimes that are being heard end, close. Who is cut off loses
        a container's listener; who comes now waits for the next slimd."""
        self._conversations.stop()
        try:
            async with asyncio.timeout(FINISH_LIMIT_S):
                await self._conversations.wait()
        except TimeoutError:
            log.warning("an OCI runtime did not end in time")
        self.close()

    async def _converse(self, sock: socket.socket) -> None:
        conversation = Conversation(sock, self._containers, self._host_netns)
        try:
            async with asyncio.timeout(CONVERSATION_LIMIT_S):
                await conversation.run()
        except SlimError as error:
            self._refused(conversation, error.message + (f" ({error.hint})" if error.hint else ""))
        except TimeoutError:
            self._refused(conversation, f"it was not done within {CONVERSATION_LIMIT_S:g} s")
        except OSError as error:
            self._refused(conversation, error.strerror or str(error))
        else:
            self.counters["oci_registered"] += 1
        finally:
            conversation.close()

    def _refused(self, conversation: Conversation, why: str) -> None:
        self.counters["oci_refused"] += 1
        log.warning("%s is refused: %s", conversation.subject, why)


class Conversation:
    """One runtime, one process of a container; owns its socket and every fd it sent."""

    def __init__(self, sock: socket.socket, containers: Containers, host_netns: int) -> None:
        self._sock = sock
        self._containers = containers
        self._host_netns = host_netns
        self._fds: list[int] = []
        self._netns: int | None = None
        pid, self._uid, _ = seqpacket.peer_credentials(sock)
        self.subject = f"an OCI runtime (pid {pid}, uid {self._uid})"
        """Who and what this is about, for the log."""

    async def run(self) -> None:
        if self._uid not in (0, os.geteuid()):
            raise ControlError(
                "only root's runtimes may register containers",
                hint="a container's identity decides what policy allows",
            )
        raw = await self._receive()
        sent, index = parse(raw, len(self._fds))
        self.subject = f"container {sent.state.id!r} (pid {sent.pid})"
        await self._register(sent, self._fds[index])

    async def _register(self, sent: ContainerProcessState, listener: int) -> None:
        known = self._containers.find_runtime(sent.state.id)
        netns, cookie = self._find_network(sent, known)
        own = next((workload for workload in known if workload.state.cookie == cookie), None)
        claim = _claim_again(own.state) if own is not None else _claim(sent)
        check_claim(claim)
        container = states.ContainerState(
            container=secrets.token_hex(6),
            workload=cookie,
            pid=sent.pid,
            command=[sent.state.id],
            started=time.time(),
            runtime_id=sent.state.id,
        )
        membership = self._membership(claim, cookie)
        await self._containers.register(claim, container, [netns, listener], membership)

    def _membership(self, claim: messages.Register, cookie: int) -> Membership:
        """An engine's default profile reaches containers that have nothing to do with an overlay:
        they must run as without Slim, unless something was said that only Slim can keep."""
        is_wanted = claim.overlay is not None or claim.fail_mode == "closed"
        if cookie != self._host_netns:
            return "required" if is_wanted else "optional"
        if is_wanted:
            raise ControlError(
                "it is to be on an overlay, and runs in the host's own network namespace",
                hint="give it a network, or leave slim.overlay and slim.fail-mode out",
            )
        return "never"

    def _find_network(self, sent: ContainerProcessState, known: list[Workload]) -> tuple[int, int]:
        """The namespace of the process: an fd, lent, and its cookie."""
        for pid in (sent.pid, sent.state.pid):
            if pid:
                self._netns = open_network(pid)
                if self._netns is not None:
                    return self._netns, workload_cookie(self._netns)
        if len(known) == 1:
            # crun says no pid for an exec; and a short exec may be over, its children not.
            return known[0].netns_fd, known[0].state.cookie
        if known:
            raise ControlError(
                f"{len(known)} containers have that id, and the runtime gives no live process id"
            )
        raise ControlError(
            "its process has ended"
            if sent.pid
            else "the runtime gives no process id, and slimd knows no container of that id",
            hint="start the container again while slimd runs",
        )

    # --- the wire -----------------------------------------------------------------------------

    async def _receive(self) -> bytes:
        """Everything up to the end of the JSON object."""
        raw, end = bytearray(), ObjectEnd()
        while not end.is_over:
            try:
                piece = self._receive_piece()
            except BlockingIOError:
                await until_readable(self._sock)
                continue
            if not piece:
                raise ControlError(f"it hung up after {len(raw)} bytes of an unfinished message")
            raw += piece
            if len(raw) > MAX_BYTES:
                raise ControlError(f"its message is larger than {MAX_BYTES} bytes")
            end.feed(piece)
            # Others may be served between two pieces, however fast these come.
            await asyncio.sleep(0)
        return bytes(raw)

    def _receive_piece(self) -> bytes:
        space = socket.CMSG_SPACE(MAX_FDS * _INT_SIZE)
        piece, ancillary, flags, _ = self._sock.recvmsg(_PIECE, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % _INT_SIZE])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise ControlError(f"not all of its fds arrived: more than {MAX_FDS}, or no fd left")
        return piece

    def close(self) -> None:
        self._sock.close()
        if self._netns is not None:
            os.close(self._netns)
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _claim(sent: ContainerProcessState) -> messages.Register:
    claimed = identify(sent.metadata, sent.state.annotations)
    return messages.Register(
        workload=claimed.workload,
        namespace=claimed.namespace,
        labels=claimed.labels,
        overlay=claimed.overlay,
        fail_mode=claimed.fail_mode,
        command=[sent.state.id],
        prepared=None,
    )


def _claim_again(known: states.WorkloadState) -> messages.Register:
    """A further process of a container: who that is was said when it was created."""
    return messages.Register(
        workload=known.name,
        namespace=known.namespace,
        labels=known.labels,
        overlay=known.overlay or None,
        fail_mode=known.fail_mode,
        command=[],
        prepared=None,
    )
