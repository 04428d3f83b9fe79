"""Slim beside OCI runtimes: the seccomp agent, the profile that calls it, its installation."""
