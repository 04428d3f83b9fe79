"""`slimctl explain`: what would become of a connection, asked as a program would ask.

The answer takes the way of a real lookup, peers included; the steps before it are looked at first,
so that each is told with what decided it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.broker.admin import messages as admin
from slim.broker.endpoints import Endpoint, from_packed16, packed16, parse_address
from slim.broker.errors import ControlError
from slim.broker.local import messages

if TYPE_CHECKING:
    from slim.broker.endpoints import Address
    from slim.broker.registry import Registry, Workload
    from slim.broker.resolver import FlowAnswer, Resolver


@dataclass(frozen=True, slots=True)
class Explaining:
    """Borrows both."""

    registry: Registry
    resolver: Resolver
    host: str

    async def explain(self, asked: admin.Explain) -> admin.Explanation:
        """ControlError if source or destination are not to be found."""
        workload, own = self._find_source(asked.source)
        destination = Endpoint(self._find_destination(asked.destination, own), asked.port)
        source = own or workload.source_for(destination.address)
        steps = [self._tell_workload("source", workload, source)]
        if source is not None and packed16(source) in workload.state.addresses:
            verdict = self.registry.plugins.decide(
                self.resolver.egress_request(workload, source, destination)
            )
            depends = ", if the destination's own say the same" if verdict.provisional else ""
            word = "allow" if verdict.allow else "deny"
            steps.append(self._step("egress", f"{word}: {verdict.text}{depends}"))
            if verdict.allow:
                steps.append(await self._tell_owner(workload, destination))
        answer = await self.resolver.look_up(
            messages.LookUp(
                token=0,
                workload=workload.state.cookie,
                source=packed16(source) if source is not None else None,
                destination=packed16(destination.address),
                port=destination.port,
                pid=0,
            )
        )
        return self._conclude(steps, answer)

    # --- who ----------------------------------------------------------------------------------

    def _find_source(self, text: str) -> tuple[Workload, Address | None]:
        """A workload of this host, by name, `namespace/name` or address; the address if told."""
        address = _address(text)
        if address is not None:
            found = self.registry.by_address(address)
            if found is not None:
                return found, address
        named = [each for each in self.registry if text in _names(each)]
        if len(named) == 1:
            return named[0], None
        if named:
            raise ControlError(
                f"{len(named)} workloads are called {text}", hint="say which: NAMESPACE/NAME"
            )
        raise ControlError(
            f"no workload of this host is called {text}",
            hint="slimctl ps lists them; ask where the source runs, and give a workload of another"
            " host by its address",
        )

    def _find_destination(self, text: str, source: Address | None) -> Address:
        address = _address(text)
        if address is not None:
            return address
        workload, _ = self._find_source(text)
        version = source.version if source is not None else 4
        ordered = sorted(workload.addresses, key=lambda each: each.version != version)
        if not ordered:
            raise ControlError(f"{text} has no overlay address", hint="give an address")
        return ordered[0]

    # --- steps --------------------------------------------------------------------------------

    def _step(self, what: str, outcome: str) -> admin.ExplainStep:
        return admin.ExplainStep(host=self.host, what=what, outcome=outcome)

    def _tell_workload(
        self, what: str, workload: Workload, address: Address | None
    ) -> admin.ExplainStep:
        labels = ",".join(f"{key}={value}" for key, value in workload.identity.labels.items())
        name = f"{workload.state.namespace}/{workload.state.name}"
        where = f" at {address}" if address is not None else ", no route to the destination"
        return self._step(what, f"{name}{where}" + (f" ({labels})" if labels else ""))

    async def _tell_owner(self, workload: Workload, destination: Endpoint) -> admin.ExplainStep:
        local = self.registry.by_address(destination.address)
        if local is not None:
            return self._tell_workload("destination", local, destination.address)
        located = await self.resolver.locate(workload.state.cookie, destination.address)
        if located is None:
            return self._step("destination", f"no discovery knows who has {destination.address}")
        if located.control is None:
            return self._step("destination", f"{destination.address} is a plain peer: no slimd")
        host = located.host or "a host"
        return self._step("destination", f"{destination.address} is on {host}, {located.control}")

    def _conclude(self, steps: list[admin.ExplainStep], answer: FlowAnswer) -> admin.Explanation:
        match answer:
            case messages.FlowFast():
                at = Endpoint(from_packed16(answer.host_address), answer.host_port)
                return admin.Explanation(
                    steps, "fast", f"from host to host, to {at} of {answer.peer}", answer.rule
                )
            case messages.FlowOverlay():
                return admin.Explanation(steps, "fallback", answer.reason, answer.rule)
            case messages.FlowDenied():
                return admin.Explanation(steps, "denied", "policy", answer.rule)


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


def _names(workload: Workload) -> tuple[str, str]:
    return workload.state.name, f"{workload.state.namespace}/{workload.state.name}"
