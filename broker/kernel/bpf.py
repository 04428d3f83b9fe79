"""libbpf through ctypes: load an object file, attach its programs to a cgroup, keep them in bpffs.

Programs, links and maps live as long as something refers to them: a pin in bpffs is such a
reference, so what is pinned outlives the process. libbpf is loaded at the first use; without it
everything here raises KernelFeatureMissing.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING

from slim.broker.errors import KernelFeatureMissing, SyscallError
from slim.broker.kernel.bpf_maps import Map
from slim.broker.kernel.libc import libc, syscall_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

SONAME = "libbpf.so.1"
# From linux/magic.h.
BPF_FS_MAGIC = 0xCAFE4A11

_POINTER_RESULTS = (
    "bpf_object__open_file",
    "bpf_object__next_map",
    "bpf_object__next_program",
    "bpf_program__attach_cgroup",
)


@cache
def load_libbpf() -> ctypes.CDLL:
    """dlopen(3) of libbpf 1.x, whose calls return a negative errno, or NULL with errno set."""
    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise KernelFeatureMissing(
            f"{SONAME} cannot be loaded: {error}", hint="install libbpf (Debian: libbpf1)"
        ) from None
    for name in _POINTER_RESULTS:
        getattr(library, name).restype = ctypes.c_void_p
    library.bpf_map__name.restype = ctypes.c_char_p
    library.bpf_program__name.restype = ctypes.c_char_p
    # libbpf prints to stderr by itself; what matters comes back as an errno.
    library.libbpf_set_print(None)
    return library


def why_no_libbpf() -> str:
    """dlopen(3): an empty string when libbpf 1.x is there."""
    try:
        load_libbpf()
    except KernelFeatureMissing as error:
        return error.message
    return ""


class Link:
    """A pinned attachment of one program to one cgroup (bpf_link), Linux 5.7; owns its fd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, pin: Path) -> Link:
        """BPF_OBJ_GET of bpf(2), Linux 4.4; FileNotFoundError-like SyscallError when none is."""
        fd: int = load_libbpf().bpf_obj_get(os.fsencode(pin))
        if fd < 0:
            raise SyscallError("bpf(BPF_OBJ_GET)", -fd, str(pin))
        return cls(fd)

    def update(self, program: int) -> None:
        """BPF_LINK_UPDATE of bpf(2), Linux 5.7: the next packet runs the new one; borrows."""
        code: int = load_libbpf().bpf_link_update(self._fd, program, None)
        if code < 0:
            raise SyscallError("bpf(BPF_LINK_UPDATE)", -code)

    def close(self) -> None:
        os.close(self._fd)


class Object:
    """An object file in the kernel: its programs and maps, for the length of a with-block.

    Maps that are pinned below `maps` already are used as they are, so their contents live on;
    the others are pinned there. A map of another size or type is an error (EINVAL).
    """

    def __init__(self, path: Path, maps: Path) -> None:
        self._libbpf = load_libbpf()
        handle = self._libbpf.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise syscall_error("bpf_object__open_file", str(path))
        self._handle = ctypes.c_void_p(handle)
        try:
            for name, entry in self._entries("map").items():
                # Read-only data are maps, too; they belong to the program's version.
                if name.startswith("."):
                    continue
                code = self._libbpf.bpf_map__set_pin_path(entry, os.fsencode(maps / name))
                self._check(code, "bpf_map__set_pin_path", name)
            self._check(
                self._libbpf.bpf_object__load(self._handle), "bpf(BPF_PROG_LOAD)", str(path)
            )
        except BaseException:
            self.close()
            raise

    def program(self, name: str) -> int:
        """The fd of a program; it stays the object's."""
        entry = self._entries("program").get(name)
        if entry is None:
            raise SyscallError("bpf_program__fd", errno.ENOENT, name)
        fd: int = self._libbpf.bpf_program__fd(entry)
        return fd

    def program_names(self) -> tuple[str, ...]:
        return tuple(self._entries("program"))

    def attach(self, name: str, cgroup: int, pin: Path) -> None:
        """BPF_LINK_CREATE of bpf(2), Linux 5.7, and BPF_OBJ_PIN: borrows the cgroup's fd."""
        attached = self._libbpf.bpf_program__attach_cgroup(self._entries("program")[name], cgroup)
        if not attached:
            raise syscall_error("bpf(BPF_LINK_CREATE)", name)
        link = ctypes.c_void_p(attached)
        try:
            self._check(
                self._libbpf.bpf_link__pin(link, os.fsencode(pin)), "bpf(BPF_OBJ_PIN)", str(pin)
            )
        finally:
            self._libbpf.bpf_link__destroy(link)

    def close(self) -> None:
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle.value is not None:
            self._libbpf.bpf_object__close(handle)

    def __enter__(self) -> Object:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _entries(self, kind: str) -> Mapping[str, ctypes.c_void_p]:
        following = getattr(self._libbpf, f"bpf_object__next_{kind}")
        name_of = getattr(self._libbpf, f"bpf_{kind}__name")
        found: dict[str, ctypes.c_void_p] = {}
        entry = following(self._handle, None)
        while entry:
            pointer = ctypes.c_void_p(entry)
            found[name_of(pointer).decode()] = pointer
            entry = following(self._handle, pointer)
        return found

    def _check(self, code: int, call: str, subject: str) -> None:
        if code < 0:
            raise SyscallError(call, -code, subject)


def open_map(pin: Path, *, key_size: int, value_size: int) -> Map:
    """BPF_OBJ_GET of bpf(2), Linux 4.4: a pinned map; the caller owns it.

    SyscallError with ENOENT when nothing is pinned there, EINVAL when its sizes are others.
    """
    fd: int = load_libbpf().bpf_obj_get(os.fsencode(pin))
    if fd < 0:
        raise SyscallError("bpf(BPF_OBJ_GET)", -fd, str(pin))
    opened = Map(fd, key_size=key_size, value_size=value_size)
    if opened.sizes() != (key_size, value_size):
        opened.close()
        raise SyscallError("bpf(BPF_OBJ_GET)", errno.EINVAL, f"{pin}: another layout")
    return opened


def is_bpffs(path: Path) -> bool:
    """statfs(2): is this directory in a BPF file system (Linux 4.4)?"""
    # f_type is the first member of struct statfs; 256 bytes hold the rest.
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)) < 0:
        return False
    return (buffer[0] & 0xFFFFFFFF) == BPF_FS_MAGIC


def mount_bpffs(target: Path) -> None:
    """mount(2) of a BPF file system, Linux 4.4, readable by root only."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if libc.mount(b"bpf", os.fsencode(target), b"bpf", 0, b"mode=0700") < 0:
        raise syscall_error("mount", f"bpf on {target}")
