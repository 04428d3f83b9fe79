"""A packet classifier that chooses a class by the socket's mark: cls_bpf over rtnetlink, by hand.

Marks and classes have the same numbers, so one program serves any number of them. Classic BPF,
which the kernel takes without bpf(2); u32 and fw would want a filter for each class, and kernels
without CONFIG_CLS_U32_MARK take a u32 match of marks and ignore it. Layouts: linux/rtnetlink.h,
linux/pkt_cls.h, linux/filter.h.
"""

from __future__ import annotations

import errno
import socket
import struct

from slim.broker.kernel.libc import syscall_error

ETH_P_ALL = 3
NLMSG_ERROR = 2
NLM_F_ACK = 4
NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200
NLM_F_REQUEST = 1
RTM_NEWTFILTER = 44
SKF_AD_MARK = 20
SKF_AD_OFF = -0x1000
TCA_BPF_OPS = 5
TCA_BPF_OPS_LEN = 4
TCA_KIND = 1
TCA_OPTIONS = 2

_NLMSGHDR = struct.Struct("=IHHII")
_NLATTR = struct.Struct("=HH")
_TCMSG = struct.Struct("=B3xiIII")
_SOCK_FILTER = struct.Struct("=HBBI")
_ERROR = struct.Struct("=i")
_PRIORITY = 1


def classify_by_mark(device: int, root: int, mask: int) -> None:
    """RTM_NEWTFILTER with cls_bpf, Linux 3.13: packets whose mark has the mask's bits as `root`.

    Such a packet goes to the class of its mark's number. OSError: ENOENT when the kernel has no
    cls_bpf, EEXIST when there is a filter already.
    """
    load_word, tax, and_k, jump_eq, txa, ret_a, ret_k = 0x20, 0x07, 0x54, 0x15, 0x87, 0x16, 0x06
    program = (
        (load_word, 0, 0, (SKF_AD_OFF + SKF_AD_MARK) & 0xFFFFFFFF),
        (tax, 0, 0, 0),
        (and_k, 0, 0, mask),
        (jump_eq, 0, 2, root),
        (txa, 0, 0, 0),
        (ret_a, 0, 0, 0),
        (ret_k, 0, 0, 0),
    )
    code = b"".join(_SOCK_FILTER.pack(*instruction) for instruction in program)
    options = _attribute(TCA_BPF_OPS_LEN, struct.pack("=H", len(program)))
    options += _attribute(TCA_BPF_OPS, code)
    info = _PRIORITY << 16 | socket.htons(ETH_P_ALL)
    body = _TCMSG.pack(socket.AF_UNSPEC, device, 0, root, info)
    body += _attribute(TCA_KIND, b"bpf\0") + _attribute(TCA_OPTIONS, options)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    header = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), RTM_NEWTFILTER, flags, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as netlink:
        netlink.connect((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(4096)
    kind = _NLMSGHDR.unpack_from(answer)[1]
    code_of = (
        -_ERROR.unpack_from(answer, _NLMSGHDR.size)[0] if kind == NLMSG_ERROR else errno.EPROTO
    )
    if code_of:
        raise syscall_error("rtnetlink(RTM_NEWTFILTER)", f"device {device}", code_of)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _NLATTR.pack(_NLATTR.size + len(value), kind) + value + padding
