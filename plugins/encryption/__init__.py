"""Encryption plugins: how admission records are sealed."""
