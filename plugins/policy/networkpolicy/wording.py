"""How a verdict names what decided, in 80 characters: `networkpolicy:shop/web ingress[0]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.plugins.policy.networkpolicy.model import ClusterPolicy

if TYPE_CHECKING:
    from slim.broker.plugin_api import Direction
    from slim.plugins.policy.networkpolicy.model import NetworkPolicy, Policy
    from slim.plugins.policy.networkpolicy.table import Term

NAME = "networkpolicy"
MAX_RULE = 80


def rule_of(term: Term, direction: Direction) -> str:
    """A rule, by its index in the policy's list as written."""
    return _fit(term.policy, f" {direction}[{term.rule}]")


def isolated_by(policy: NetworkPolicy, others: int, direction: Direction) -> str:
    """Policies that isolate a workload, none of whose rules allows a flow."""
    more = f" (+{others})" if others else ""
    return _fit(policy, f"{more} no {direction} rule allows it")


def _fit(policy: Policy, rest: str) -> str:
    title = policy.title
    if isinstance(policy, ClusterPolicy):
        title = f"{policy.tier}:{title}"
    room = MAX_RULE - len(NAME) - 1 - len(rest)
    if len(title) > room:
        # Names may have 253 characters: both ends tell more than one.
        half = (room - 2) // 2
        title = f"{title[:half]}..{title[-half:]}"
    return f"{NAME}:{title}{rest}"
