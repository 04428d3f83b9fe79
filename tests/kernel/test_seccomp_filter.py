"""The portable filter in the kernel: what programs under it notice. Needs no root."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slim.broker.kernel.call_numbers import CALL_NUMBERS, I386, architectures
from slim.broker.kernel.seccomp_filter import build_filter
from support.supervising import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = CALL_NUMBERS[architectures()[0]]

# Installs the filter that it is sent, hands the listener back, becomes the target.
LAUNCHER = """
import os, socket, sys
from slim.broker.kernel.seccomp_install import install_filter, set_no_new_privs
channel = socket.socket(fileno=int(sys.argv[1]))
set_no_new_privs()
listener = install_filter(channel.recv(65536))
socket.send_fds(channel, [b"x"], [listener])
os.close(listener)
channel.recv(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# Given to Python targets: raw system calls whose arguments are passed in all 64 bits.
PRELUDE = """
import ctypes, errno, json, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*arguments):
    result = libc.syscall(*map(ctypes.c_ulong, arguments))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
BIT_32 = 1 << 32
"""


def run_filtered(argv: list[str]) -> tuple[str, list[int]]:
    """Run a program under the filter: its output, and the numbers of its trapped calls."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(theirs.fileno()), *argv],
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
        )
        with process:
            theirs.close()
            ours.settimeout(10)
            ours.send(build_filter("portable"))
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            supervisor = Supervisor(fds[0])
            try:
                ours.send(b"x")
                output, _ = process.communicate(timeout=20)
            finally:
                process.kill()
                supervisor.close()
    assert process.returncode == 0
    return output, supervisor.numbers()


def run_python(code: str) -> tuple[Any, list[int]]:
    output, trapped = run_filtered([sys.executable, "-I", "-c", PRELUDE + code])
    return json.loads(output), trapped


def test_socket_calls_of_a_program_are_trapped_and_work() -> None:
    said, trapped = run_python("""
a = socket.create_server(("127.0.0.1", 0))
b = socket.create_connection(a.getsockname())
c, peer = a.accept()
b.sendall(b"hello")
print(json.dumps([c.recv(5).decode(), list(peer) == list(b.getsockname())]))
""")
    assert said == ["hello", True]
    names = ["bind", "listen", "getsockname", "connect", "accept4"]
    assert [NUMBERS[name] for name in names if NUMBERS[name] not in trapped] == []
    assert NUMBERS["sendto"] not in trapped
    assert NUMBERS["setsockopt"] not in trapped


def test_only_sends_with_fastopen_are_trapped() -> None:
    code = """
a = socket.create_server(("127.0.0.1", 0))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(json.dumps([
    s.sendto(b"x", {flags}, a.getsockname()),
    s.sendmsg([b"x"], [], {flags}, a.getsockname()),
]))
"""
    said, trapped = run_python(code.format(flags="socket.MSG_DONTWAIT"))
    assert said == [1, 1]
    assert not {NUMBERS["sendto"], NUMBERS["sendmsg"]} & set(trapped)
    said, trapped = run_python(code.format(flags="socket.MSG_FASTOPEN"))
    assert said == [1, 1]
    assert {NUMBERS["sendto"], NUMBERS["sendmsg"]} <= set(trapped)


def test_arguments_wider_than_an_int_do_not_pass_by() -> None:
    _, trapped = run_python(f"""
s = socket.socket()
value = ctypes.create_string_buffer(4)
args = (s.fileno(), socket.SOL_SOCKET | BIT_32, 25 | BIT_32, ctypes.addressof(value), 0)
data = ctypes.create_string_buffer(b"x")
call({NUMBERS["setsockopt"]}, *args)
call({NUMBERS["sendto"]}, s.fileno(), ctypes.addressof(data), 1, 0x20000000 | BIT_32, 0, 0)
print("0")
""")
    assert NUMBERS["setsockopt"] in trapped
    assert NUMBERS["sendto"] in trapped


def test_io_uring_setup_gives_enosys() -> None:
    code = "print(json.dumps(call(425, 1, 0)))"
    unfiltered = subprocess.check_output(
        [sys.executable, "-I", "-c", PRELUDE + code], text=True
    ).strip()
    if unfiltered == '"ENOSYS"':
        pytest.skip("this kernel has no io_uring")
    said, _ = run_python(code)
    assert said == "ENOSYS"


INT80 = r"""
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static int int80(int nr, int a, int b, int c)
{
	int result;

	__asm__ volatile("int $0x80"
		: "=a"(result)
		: "a"(nr), "b"(a), "c"(b), "d"(c)
		: "memory", "r8", "r9", "r10", "r11");
	return result;
}

int main(void)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);
	int listening = socket(AF_INET, SOCK_STREAM, 0);
	/* 32-bit calls see 32-bit pointers. */
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, -1, 0);

	listen(listening, 1);
	getsockname(listening, (struct sockaddr *)&address, &length);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	memcpy(low, &address, sizeof(address));
	printf("[%d, ", int80(362, socket(AF_INET, SOCK_STREAM, 0), (int)(long)low, length));
	printf("%d]", int80(425, 1, 0, 0));
	return 0;
}
"""


@pytest.mark.needs_program("gcc")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="int 0x80 is of x86")
def test_i386_calls_are_trapped_and_io_uring_gives_enosys(tmp_path: Path) -> None:
    source = tmp_path / "int80.c"
    source.write_text(INT80)
    program = tmp_path / "int80"
    subprocess.run(["gcc", "-o", program, source], check=True)
    unfiltered = json.loads(subprocess.check_output([program], text=True))
    if unfiltered[0] != 0:
        pytest.skip("this kernel has no 32-bit system calls")
    output, trapped = run_filtered([str(program)])
    # -38 is -ENOSYS.
    assert json.loads(output) == [0, -38]
    assert {NUMBERS["listen"], CALL_NUMBERS[I386]["connect"]} <= set(trapped)
