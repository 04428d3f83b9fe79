"""The kernel guard: BPF programs that confine, admit and translate the sockets slimd makes."""
