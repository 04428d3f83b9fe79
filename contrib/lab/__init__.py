"""The lab: two hosts as network namespaces, an overlay, slimd on both, and programs to run there.

Used by the benchmark (`bench`), the demonstration (`demo`) and tests. Everything made here is
removed by the context manager that made it.
"""
