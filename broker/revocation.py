"""What a change of policy, of labels or of membership means for what was allowed before it.

    isolation of workloads -> a new epoch in traps -> inbound flows -> live connections

In this order, so that nothing is let in by the old policy behind the back of the step after it:
whatever traps had allowed until it acknowledged the new epoch is on record by then, and judged.
Each slimd judges its own direction. All of it is repeatable, and is repeated until it was done:
traps may be away, and policy may change again meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import msgspec

from slim.broker import cutting
from slim.broker.admission.keyring import flow_key, read_flows
from slim.broker.cutting import Victim, local_end
from slim.broker.endpoints import contains_any, from_packed16
from slim.broker.enforcing import Enforcing
from slim.broker.errors import ControlError, SlimError
from slim.broker.events import ConnectionsCut
from slim.broker.judging import Ingress, Judge
from slim.broker.local import messages
from slim.broker.peers import messages as peer_messages
from slim.broker.rechecking import Rechecking

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slim.broker.admission.keyring import InboundFlow
    from slim.broker.control_links import KeeperClient, TrapsServer
    from slim.broker.endpoints import Address, Network
    from slim.broker.queues import Queues
    from slim.broker.registry import Registry, Workload
    from slim.broker.resolver import Resolver
    from slim.broker.sources import Sources
    from slim.broker.survey import Survey

log = logging.getLogger(__name__)

SLICE = 500
"""Verdicts between two turns of the event loop."""
FLOWS_PER_MESSAGE = 4096
RETRY_S = 0.2
LOOK_AGAIN_S = (0.1, 0.4, 1.5)
"""A call that traps let go on may connect a moment after the look at the kernel's table."""
YOUNG_S = 10.0
MAX_ENDS = 65_536


class News(Protocol):
    """What peers are to know; peering.Peering."""

    def tell_policy_changed(self) -> None: ...
    def tell_relabelled(self, workload: Workload) -> None: ...
    def tell_cut(self, ends: Iterable[tuple[Address, bytes]]) -> None: ...
    def tell_pace(self, rate: int | None, ends: Iterable[tuple[Address, bytes]]) -> None: ...


class NoNews:
    """Of a slimd without a control channel."""

    def tell_policy_changed(self) -> None:
        return

    def tell_relabelled(self, workload: Workload) -> None:
        return

    def tell_cut(self, ends: Iterable[tuple[Address, bytes]]) -> None:
        return

    def tell_pace(self, rate: int | None, ends: Iterable[tuple[Address, bytes]]) -> None:
        return


class Revocation:
    """Borrows everything it is made with; `run` is its one task."""

    def __init__(
        self,
        registry: Registry,
        sources: Sources,
        survey: Survey,
        keeper: KeeperClient,
        traps: TrapsServer,
        resolver: Resolver,
        news: News,
        queues: Queues,
    ) -> None:
        self._registry = registry
        self._sources = sources
        self._survey = survey
        self._keeper = keeper
        self._traps = traps
        self._news = news
        self._queues = queues
        self._wanted = 0
        self._done = 0
        self._work = asyncio.Event()
        self._finished = asyncio.Condition()
        self._rechecking = Rechecking(registry, survey, resolver, self._cut)
        self.enforcing = Enforcing(registry, survey, traps, news, self._cut)
        self._ends: set[tuple[tuple[bytes, int], tuple[bytes, int]]] = set()
        self._look_again: list[float] = []
        self._unseen = False
        self._unpublished: set[int] = set()
        """Workloads of which keeper or traps may know what was."""
        self._unmarked: set[int] = set()
        """Workloads whose live sockets may have another mark than new ones get."""
        self.counters: Counter[str] = Counter()

    # --- what may be asked --------------------------------------------------------------------

    def policy_changed(self) -> None:
        """Everything is to be judged again; peers are told to ask again."""
        self._news.tell_policy_changed()
        self.judge_again()

    def judge_again(self) -> None:
        """Everything of this host is to be judged again."""
        self._wanted += 1
        self._work.set()

    def relabelled(self, workload: Workload, host: str) -> None:
        """The workload of this host, so named, has another identity: each end judges it anew."""
        for address in workload.state.addresses:
            self._sources.remember(host, address, workload.identity)
        self._registry.epoch += 1
        self._unpublished.add(workload.state.cookie)
        self._news.tell_relabelled(workload)
        self._rechecking.ask_for(workload.state.cookie)
        self.judge_again()

    def peer_changed(self, networks: tuple[Network, ...]) -> None:
        """What its slimd said of workloads in these networks is to be asked again."""
        self._rechecking.ask_about(networks)

    def peer_cut(self, ends: list[bytes], networks: tuple[Network, ...]) -> None:
        """A peer ended these connections with its own workloads, which are in the networks."""
        for end in ends:
            own, other = peer_messages.unpack_end(end)
            is_its = contains_any(networks, from_packed16(other[0]))
            if is_its and len(self._ends) < MAX_ENDS:
                self._ends.add((own, other))
        self._work.set()

    async def settled(self, limit_s: float) -> None:
        """Wait until everything asked for by now was done; ControlError when it takes too long."""
        wanted = self._wanted
        try:
            async with asyncio.timeout(limit_s), self._finished:
                await self._finished.wait_for(lambda: self._done >= wanted)
        except TimeoutError:
            raise ControlError(
                f"live connections were not judged again in {limit_s:.0f} s",
                hint="is traps running? slimctl status; slimd goes on trying",
            ) from None

    async def prepare(self) -> None:
        """Put policy in force for a traps that does not run yet: it lets nobody in by an older one.

        Only then may its memory be written here.
        """
        for workload in self._registry:
            if self._registry.describe_again(workload):
                await self._store(workload)
        store = await self._survey.open_admission(writable=True)
        if store is None:
            return
        judge = Judge(self._registry, self._sources)
        try:
            for flow in [*read_flows(store)]:
                if not judge.ingress(question_of(flow)).allow:
                    store.delete(flow_key(flow.flow))
        finally:
            store.close()

    # --- the task -----------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rechecking.run())
            tasks.create_task(self.enforcing.run())
            tasks.create_task(self._run())

    async def _run(self) -> None:
        while True:
            looks_again = await self._wait()
            wanted = self._wanted
            try:
                if self._done < wanted:
                    await self._enforce()
                elif looks_again:
                    await self._cut_forbidden(Judge(self._registry, self._sources))
                await self._cut_ended()
            except (SlimError, OSError) as error:
                # Keeper or traps are away, or no fd or memory is left for a look.
                log.warning("policy is not in force everywhere yet: %s", error)
                await asyncio.sleep(RETRY_S)
                self._work.set()
                continue
            async with self._finished:
                self._done = wanted
                self._finished.notify_all()

    async def _wait(self) -> bool:
        """Until there is something to do; True when it is time to look again."""
        now = time.monotonic()
        limit = max(0.0, self._look_again[0] - now) if self._look_again else None
        try:
            async with asyncio.timeout(limit):
                await self._work.wait()
        except TimeoutError:
            self._look_again.pop(0)
            return True
        self._work.clear()
        return False

    async def _enforce(self) -> None:
        started, epoch = time.monotonic(), self._registry.epoch
        await self._describe_workloads()
        await self._traps.request(messages.NewEpoch)
        judge = Judge(self._registry, self._sources)
        await self._judge_inbound(judge)
        ended = await self._cut_forbidden(judge)
        await self.enforcing.mark(self._unmarked)
        self._unmarked.clear()
        self._rechecking.ask_isolated()
        self._plan_looks(started)
        if ended:
            took = 1000 * (time.monotonic() - started)
            log.info("policy epoch %d: %d connections cut in %.0f ms", epoch, ended, took)

    def _plan_looks(self, started: float) -> None:
        """Look again, if a record has no socket yet whose call traps may just have let go on."""
        self._look_again = [started + later for later in LOOK_AGAIN_S] if self._unseen else []

    async def _describe_workloads(self) -> None:
        """Isolation follows policy: traps refuses plain peers, and the overlay, by it."""
        for workload in self._registry:
            before = workload.state.mark
            if self._registry.describe_again(workload):
                self._unpublished.add(workload.state.cookie)
            if workload.state.mark != before:
                self._unmarked.add(workload.state.cookie)
        await self._queues.apply(self._registry.container_rates())
        for cookie in [*self._unpublished]:
            known = self._registry.workloads.get(cookie)
            if known is not None:
                await self._publish(known)
            self._unpublished.discard(cookie)

    async def _publish(self, workload: Workload) -> None:
        """Let keeper and traps know what a workload is now."""
        state = workload.state
        await self._store(workload)
        await self._traps.request(
            lambda token: messages.AttachWorkload(token, state), (workload.netns_fd,)
        )

    async def _store(self, workload: Workload) -> None:
        state = workload.state
        await self._keeper.store(
            f"workload/{state.cookie}", msgspec.msgpack.encode(state), (workload.netns_fd,)
        )

    async def _judge_inbound(self, judge: Judge) -> None:
        forbidden = []
        for number, flow in enumerate(await self._survey.inbound_flows()):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            verdict = judge.ingress(question_of(flow))
            if not verdict.allow:
                forbidden.append(flow.flow)
            elif verdict.shaping != flow.shaping:
                await self.enforcing.change_flow(flow, verdict.shaping)
        for start in range(0, len(forbidden), FLOWS_PER_MESSAGE):
            part = forbidden[start : start + FLOWS_PER_MESSAGE]
            await self._traps.request(
                lambda token, part=part: messages.DropInbound(token, part)  # type: ignore[misc]
            )
        self.counters["inbound_flows_dropped"] += len(forbidden)

    # --- connections --------------------------------------------------------------------------

    async def _cut_forbidden(self, judge: Judge) -> int:
        """End what is forbidden now, and change the limits of what is limited otherwise now."""
        records = await self._survey.records()
        # Only of these the kernel chose the address, and may not have connected them yet.
        overlay = await self._survey.sockets(
            record for record in records if record.path == "fallback"
        )
        since = time.time() - YOUNG_S
        self._unseen, forbidden = False, {}
        changed = []
        for number, record in enumerate(records):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            source = record.local[0]
            if record.path == "fallback":
                sock = overlay.get(record.cookie)
                if sock is None:
                    self._unseen = self._unseen or record.created > since
                    continue
                source = local_end(record, sock)[0]
            verdict = judge.connection(record, source)
            if not verdict.allow:
                forbidden[record.cookie] = record, verdict.rule
            elif verdict.shaping != record.shaping and record.workload in self._registry.workloads:
                changed.append((record, record.limited_by(verdict.shaping, record.peer_rate)))
        sockets = await self._survey.sockets(record for record, _ in forbidden.values())
        victims = [Victim(*forbidden[cookie], sock) for cookie, sock in sockets.items()]
        ended = await self._cut(victims, "by_policy")
        await self.enforcing.change(changed)
        return len(ended)

    async def cut_chosen(self, cookies: frozenset[int]) -> set[int]:
        """End the connections with these cookies: an administrator's wish."""
        chosen = {
            record.cookie: record
            for record in await self._survey.records()
            if record.cookie in cookies
        }
        sockets = await self._survey.sockets(chosen.values())
        victims = [
            Victim(chosen[cookie], "administrator", sock) for cookie, sock in sockets.items()
        ]
        return await self._cut(victims, "by_administrator")

    async def _cut_ended(self) -> None:
        """End what peers ended."""
        if not self._ends:
            return
        records = await self._survey.records()
        ends, self._ends = self._ends, set()
        others = {peer for _, peer in ends}
        near = {
            record.cookie: record
            for record in records
            if record.peer in others
            and (not record.local[1] or (record.local, record.peer) in ends)
        }
        sockets = await self._survey.sockets(near.values())
        victims = [
            Victim(near[cookie], "ended by the peer", sock)
            for cookie, sock in sockets.items()
            if (local_end(near[cookie], sock), near[cookie].peer) in ends
        ]
        await self._cut(victims, "by_peer")

    async def _cut(self, victims: list[Victim], why: str) -> set[int]:
        ended = await cutting.cut(self._registry, victims)
        self.counters[f"connections_cut_{why}"] += len(ended)
        rules = Counter(victim.rule for victim in victims if victim.record.cookie in ended)
        for rule, count in rules.items():
            self._registry.publish(
                ConnectionsCut(why=why.removeprefix("by_"), rule=rule, count=count)
            )
        if why != "by_peer":
            self._tell_ends(victim for victim in victims if victim.record.cookie in ended)
        return ended

    def _tell_ends(self, victims: Iterable[Victim]) -> None:
        """A reset may be lost, and an idle peer would never know: say it on the channel too."""
        self._news.tell_cut(
            (
                from_packed16(victim.record.peer[0]),
                peer_messages.pack_end(victim.record.peer, local_end(victim.record, victim.sock)),
            )
            for victim in victims
        )


def question_of(flow: InboundFlow) -> Ingress:
    """What was asked when the flow was made."""
    return Ingress(flow.workload, flow.destination, flow.port, flow.peer, flow.source)
