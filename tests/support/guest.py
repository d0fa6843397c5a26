"""Python on an emulated machine: python -m tests.support.guest ARGUMENTS

    python -m tests.support.guest -m bench.numa

Boots Debian's kernel under QEMU's emulation (no /dev/kvm is needed; about a minute), with two
sockets of two cores, a NUMA node of 1 GiB each. tests/machines has others. The root is this
machine's, read-only; /dev/shm is the guest's own, and with control groups all that can be written
to. Exits with the status of that Python.

    apt-get install -y --no-install-recommends qemu-system-x86

The kernel and busybox are downloaded by apt-get, and unpacked, not installed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_MODULES = ("fs/9p", "net/9p", "fs/netfs", "fs/fscache", "drivers/virtio")
_STATUS = "guest: exit status "
_SECONDS = 1200

_INIT = """#!/busybox sh
busybox() {{ /busybox "$@"; }}
busybox mkdir -p /proc /dev /root
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
exec < /dev/null > /dev/ttyS0 2>&1
busybox depmod
for module in virtio_pci 9pnet_virtio 9p; do busybox modprobe $module; done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 root /root
for kind in proc sysfs:sys cgroup2:sys/fs/cgroup devtmpfs:dev tmpfs:dev/shm; do
    busybox mkdir -p /root/${{kind#*:}}
    busybox mount -t ${{kind%:*}} guest /root/${{kind#*:}}
done
busybox chroot /root /bin/sh -c {command}
echo "{status}$?"
busybox poweroff -f
"""


class Machine(NamedTuple):
    """What is emulated."""

    smp: str
    """CPUs, sockets, dies, cores and threads, as QEMU's -smp takes them. A die has an L3 cache."""
    nodes: Sequence[str]
    """The CPUs of each NUMA node; "" for one without."""
    mb_per_node: int = 1024
    cpu: str = "max"
    boot: str = ""
    """Options for the kernel."""


TWO_SOCKETS = Machine("4,sockets=2,cores=2,threads=1", ("0-1", "2-3"))


@contextmanager
def kernel() -> Iterator[Path]:
    """A folder with Debian's kernel, its modules and busybox, for `run_python`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        depends = ["apt-cache", "depends", "linux-image-amd64"]
        listed = subprocess.run(depends, capture_output=True, text=True, check=True).stdout
        image = next(line.split()[1] for line in listed.splitlines() if "Depends:" in line)
        packages = folder / "packages"
        packages.mkdir()
        download = ["apt-get", "-qq", "download", image, "busybox-static"]
        subprocess.run(download, cwd=packages, check=True, stdout=subprocess.DEVNULL)
        for package in packages.iterdir():
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        yield folder


def run_python(unpacked: Path, machine: Machine, arguments: Sequence[str]) -> tuple[str, int]:
    """Python with these arguments in a guest: what it printed, and its exit status.

    Raises:
        subprocess.TimeoutExpired: it has not ended in ten minutes.
    """
    (image,) = unpacked.glob("boot/vmlinuz-*")
    initial = unpacked / "initrd"
    initial.write_bytes(b"".join(_archive(_files(unpacked, arguments))))
    guest = subprocess.run(
        _command(machine, image, initial), stdout=subprocess.PIPE, text=True, timeout=_SECONDS
    )
    output, _, status = guest.stdout.replace("\r", "").partition(_STATUS)
    return output, int(status.split()[0]) if status else 1


def _command(machine: Machine, image: Path, initial: Path) -> list[str]:
    nodes: list[str] = []
    for node, cpus in enumerate(machine.nodes):
        nodes += ["-object", f"memory-backend-ram,id=m{node},size={machine.mb_per_node}M"]
        of = f",cpus={cpus}" * bool(cpus)
        nodes += ["-numa", f"node,nodeid={node}{of},memdev=m{node}"]
    memory = f"{machine.mb_per_node * len(machine.nodes)}M"
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi"),
        *("-cpu", machine.cpu, "-m", memory),
        *("-smp", machine.smp, *nodes),
        *("-kernel", str(image), "-initrd", str(initial)),
        *("-append", f"console=ttyS0 quiet panic=-1 {machine.boot}", "-no-reboot"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none"),
        "-virtfs",
        "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
    ]


def _files(unpacked: Path, arguments: Sequence[str]) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of all that the initial file system has."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": "/dev/shm",
        "TMPDIR": "/dev/shm",
        "DEEPSCHED_CACHE_DIR": "/dev/shm/cache",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    python = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable]
    command = f"cd {shlex.quote(str(ROOT))} && {shlex.join([*python, *arguments])}"
    init = _INIT.format(command=shlex.quote(command), status=_STATUS)
    yield "init", 0o100755, init.encode()
    yield "busybox", 0o100755, (unpacked / "bin/busybox").read_bytes()
    (modules,) = unpacked.glob("lib/modules/*/kernel")
    files = [file for name in _MODULES for file in sorted((modules / name).rglob("*.ko"))]
    names = [str(file.relative_to(unpacked)) for file in files]
    folders = {str(folder) for name in names for folder in Path(name).parents}
    for folder in sorted(folders - {"."}):
        yield folder, 0o040755, b""
    for name, file in zip(names, files, strict=True):
        yield name, 0o100644, file.read_bytes()


def _archive(files: Iterator[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """cpio's "newc" format: 13 numbers of 8 hexadecimal digits, a name, a content, each padded."""
    for inode, (name, mode, content) in enumerate((*files, ("TRAILER!!!", 0, b""))):
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = "070701" + "".join(f"{field:08x}" for field in fields) + name + "\0"
        yield _padded(header.encode())
        yield _padded(content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def main(arguments: Sequence[str]) -> int:
    """Runs Python with these arguments in the guest, and prints what it prints."""
    with kernel() as unpacked:
        output, status = run_python(unpacked, TWO_SOCKETS, arguments)
    print(output, end="")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
