"""A sandbox's filter of system calls: those named fail, as a container's seccomp profile has it."""

from __future__ import annotations

import ctypes
import errno
import platform

# The numbers on x86-64 and on aarch64. Plain onnxruntime runs without these calls.
NUMBERS = {
    "eventfd2": (290, 19),
    "fallocate": (285, 47),
    "fchmod": (91, 52),
    "fgetxattr": (193, 10),
    "flock": (73, 32),
    "fstatfs": (138, 44),
    "getcpu": (309, 168),
    "get_mempolicy": (239, 236),
    "madvise": (28, 233),
    "mbind": (237, 235),
    "membarrier": (324, 283),
    "memfd_create": (319, 279),
    "mkdirat": (258, 34),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "renameat": (264, 38),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_yield": (24, 124),
    "set_mempolicy": (238, 237),
    "sysinfo": (99, 179),
    "unlinkat": (263, 35),
    "utimensat": (280, 88),
}

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS; the number is the first word of seccomp_data
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def number_of(name):
    """The number of a system call on this machine."""
    return NUMBERS[name][("x86_64", "aarch64").index(platform.machine())]


def refuse(*names, code=errno.EPERM):
    """From here on these system calls fail in this thread, and in those that it starts. For good:
    call it in a process of its own, before anything else is imported. Raises OSError."""
    numbers = [number_of(name) for name in names]
    body = [_Instruction(_LOAD_WORD, 0, 0, 0)]
    for number in numbers:
        body.append(_Instruction(_JUMP_IF_EQUAL, 0, 1, number))
        body.append(_Instruction(_RETURN, 0, 0, _FAIL | code))
    body.append(_Instruction(_RETURN, 0, 0, _ALLOW))
    program = _Program(len(body), (_Instruction * len(body))(*body))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "a filter of system calls cannot be made here")
