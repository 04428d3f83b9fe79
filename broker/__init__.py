"""Slim's broker: the daemon, its tools and the launcher (see ARCHITECTURE.md)."""
