"""Policy by Kubernetes' NetworkPolicy and ClusterNetworkPolicy documents (docs/policy.md)."""

from __future__ import annotations

from slim.plugins.policy.networkpolicy.plugin import Plugin

__all__ = ["Plugin"]
