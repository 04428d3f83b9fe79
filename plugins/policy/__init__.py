"""Policy plugins: who may talk to whom."""
