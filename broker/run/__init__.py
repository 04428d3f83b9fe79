"""slim-run: start one command under Slim, in its place (command.py is the entry)."""
