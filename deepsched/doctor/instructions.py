"""The instruction sets of the CPUs, and how ONNX Runtime's kernels use them.

Sources: onnxruntime/core/mlas/lib/platform.cpp, which dispatches the kernels;
mlas/lib/sbgemm_kernel_neon.cpp; ONNX Runtime's documentation of quantisation. fp16 and bf16 on x86
were tried with 1.32 (fp16 took as long as fp32). Its wheel for aarch64 has KleidiAI's kernels, some
of which use SME, and none of MLAS's for SVE. The names are those of /proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Callable

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host

_X86 = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
_ARM = ("asimd", "asimddp", "fphp", "asimdhp", "sve", "sve2", "i8mm", "bf16", "sme", "sme2")


def fp32(host: Host) -> Check:
    """The vector width of the fp32 kernels, which nearly all models use."""
    return _by_architecture(host, "instructions_fp32", _x86_fp32, _arm_fp32)


def int8(host: Host) -> Check:
    """Whether quantised models are fast, and whether they are exact."""
    return _by_architecture(host, "instructions_int8", _x86_int8, _arm_int8)


def fp16(host: Host) -> Check:
    """Whether fp16 models are computed in fp16."""
    return _by_architecture(host, "instructions_fp16", _x86_fp16, _arm_fp16)


def bf16(host: Host) -> Check:
    """Whether bfloat16 models are computed in bfloat16."""
    return _by_architecture(host, "instructions_bf16", _x86_bf16, _arm_bf16)


_Flags = frozenset[str]


def _by_architecture(
    host: Host,
    name: str,
    x86: Callable[[str, _Flags, list[str]], Check],
    arm: Callable[[str, _Flags, list[str]], Check],
) -> Check:
    for field, known, check in (("flags", _X86, x86), ("Features", _ARM, arm)):
        flags = _common_flags(host, field)
        if flags:
            return check(name, flags, [flag for flag in known if flag in flags])
    return unknown(name, "proc/cpuinfo lists no x86 or Arm instruction sets")


def _common_flags(host: Host, field: str) -> _Flags:
    """The flags common to all usable CPUs: a stream may run on any of them."""
    usable = [host.cpuinfo[cpu] for cpu in host.topology.cpus if cpu in host.cpuinfo]
    sets = [
        frozenset(fields[field].split())
        for fields in usable or host.cpuinfo.values()
        if field in fields
    ]
    return frozenset.intersection(*sets) if sets else frozenset()


# --- x86 --------------------------------------------------------------------------------------


def _has_avx512(flags: _Flags) -> bool:
    return {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags


def _x86_fp32(name: str, flags: _Flags, sets: list[str]) -> Check:
    if not {"avx2", "fma"} <= flags:
        width = 8 if "avx" in flags else 4
        return warn(
            name,
            f"no AVX2 with FMA; kernels process {width} floats per instruction",
            "Without fused multiply-add, kernels do half the work per instruction, or less.",
            "On a virtual machine, pass the host's CPU through (QEMU: -cpu host; libvirt: "
            "host-passthrough); else use a CPU with AVX2 (Intel since 2013, AMD since 2015).",
            flags=sets,
        )
    if "avx512f" in flags:
        return ok(name, "AVX-512; kernels process 16 floats per instruction", flags=sets)
    return ok(name, "AVX2 and FMA; kernels process 8 floats per instruction", flags=sets)


def _x86_int8(name: str, flags: _Flags, sets: list[str]) -> Check:
    has_vnni = "avx_vnni" in flags or (_has_avx512(flags) and "avx512_vnni" in flags)
    if {"amx_tile", "amx_int8"} <= flags:
        return ok(
            name,
            "AMX and VNNI" if has_vnni else "AMX",
            "uint8 x int8 products use AMX tiles; sums are exact.",
            flags=sets,
        )
    if has_vnni:
        width = "AVX-512" if "avx512_vnni" in flags and _has_avx512(flags) else "AVX"
        return ok(
            name,
            f"{width} VNNI",
            "One instruction multiplies and adds four int8 values per lane; sums are exact.",
            flags=sets,
        )
    slow = "Quantised models are often no faster than fp32"
    if not {"avx2", "fma"} <= flags:  # SSE kernels widen to 16 bits first: exact, but slow
        return warn(
            name,
            "neither VNNI nor AVX2",
            f"{slow}.",
            "Serve fp32, or compare the two on this machine: deepsched benchmark MODEL.",
            flags=sets,
        )
    return warn(
        name,
        "no VNNI",
        f"{slow}, and sums of two uint8 x int8 products are kept in 16 bits, which may saturate "
        "and cost accuracy.",
        "Serve fp32, or quantise with reduce_range=True (7-bit weights) or to uint8 weights, and "
        "compare speed and accuracy on this machine.",
        flags=sets,
    )


def _x86_fp16(name: str, flags: _Flags, sets: list[str]) -> Check:
    has_conversion = "f16c" in flags
    return ok(
        name,
        "conversions only (F16C)" if has_conversion else "none",
        "ONNX Runtime computes fp16 models in fp32 on x86: smaller, but not faster.",
        flags=sets,
    )


def _x86_bf16(name: str, flags: _Flags, sets: list[str]) -> Check:
    has = [
        title
        for flag, title in (("avx512_bf16", "AVX-512 BF16"), ("amx_bf16", "AMX BF16"))
        if flag in flags
    ]
    return ok(
        name,
        " and ".join(has) or "none",
        "ONNX Runtime's x86 kernels do not use bf16, and bf16 models do not run (1.32 has no "
        "bf16 MatMul or Conv): convert them to fp32.",
        flags=sets,
    )


# --- Arm --------------------------------------------------------------------------------------


def _arm_fp32(name: str, flags: _Flags, sets: list[str]) -> Check:
    if "asimd" not in flags:
        return unknown(name, "no NEON in the features", flags=sets)
    if "sme" in flags:
        return ok(
            name,
            "SME and NEON; matrix products and convolutions may use SME's tiles, other kernels "
            "process 4 floats per instruction",
            flags=sets,
        )
    sve = "; matrix products do not use the SVE that is present" if "sve" in flags else ""
    return ok(name, f"NEON; kernels process 4 floats per instruction{sve}", flags=sets)


def _arm_int8(name: str, flags: _Flags, sets: list[str]) -> Check:
    if "i8mm" in flags:
        return ok(
            name,
            "int8 matrix instructions (i8mm)",
            "Products of quantised models use them; sums are exact.",
            flags=sets,
        )
    if "asimddp" in flags:
        return ok(
            name,
            "dot product instructions (asimddp)",
            "Products of quantised models use them; sums are exact.",
            flags=sets,
        )
    return warn(
        name,
        "neither dot product (asimddp) nor int8 matrix instructions (i8mm)",
        "Quantised models are often no faster than fp32.",
        "Serve fp32, or compare the two on this machine: deepsched benchmark MODEL.",
        flags=sets,
    )


def _arm_fp16(name: str, flags: _Flags, sets: list[str]) -> Check:
    if {"fphp", "asimdhp"} <= flags:
        return ok(
            name,
            "fp16 arithmetic (fphp, asimdhp)",
            "ONNX Runtime has native fp16 kernels here for some operators.",
            flags=sets,
        )
    return ok(
        name,
        "none",
        "ONNX Runtime computes fp16 models in fp32: smaller, but not faster.",
        flags=sets,
    )


def _arm_bf16(name: str, flags: _Flags, sets: list[str]) -> Check:
    if "bf16" in flags:
        return ok(
            name,
            "bf16 matrix instructions",
            "ONNX Runtime can use them for fp32 matrix products, with its option "
            "mlas.enable_gemm_fastmath_arm64_bfloat16; deepsched leaves it off, to keep fp32 "
            "accuracy.",
            flags=sets,
        )
    return ok(name, "none", flags=sets)
