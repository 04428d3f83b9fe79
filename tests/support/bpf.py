"""Classic BPF as seccomp runs it, in Python: what would a filter say to a system call?

Shows verdicts that this machine cannot produce (x32 calls where the kernel has none).
Source: linux/filter.h, linux/seccomp.h (struct seccomp_data).
"""

from __future__ import annotations

import struct

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=iIQ6Q")

LD_ABS, RET, AND, JUMP = 0x20, 0x06, 0x54, 0x05
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45


def verdict(program: bytes, *, arch: int, nr: int, args: tuple[int, ...] = ()) -> int:
    """The filter's return value, SECCOMP_RET_*."""
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = _DATA.pack(nr - (1 << 32) if nr >= 1 << 31 else nr, arch, 0, *padded)
    instructions = list(_INSTRUCTION.iter_unpack(program))
    accumulator = 0
    at = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == LD_ABS:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == AND:
            accumulator &= operand
        elif code == JUMP:
            at += operand
        elif code == RET:
            return int(operand)
        else:
            taken = {
                JEQ: accumulator == operand,
                JGT: accumulator > operand,
                JGE: accumulator >= operand,
                JSET: bool(accumulator & operand),
            }
            assert code in taken, f"instruction {code:#x}"
            at += if_true if taken[code] else if_false
