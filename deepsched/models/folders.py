"""Folders that no other user can change: checked from the root down, then used by descriptor.

A path is looked up anew by every system call, so whoever can write to one of its ancestors can put
another folder in its place between two calls. A descriptor stays with the folder that was checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

_LOOK_UP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as the kernel's own limit

# f_type of statfs (linux/magic.h, and the sources of those that are not in the kernel). `flock` is
# local to a client there, or works for files only, or depends on the server. FUSE may be sshfs.
_SHARED_BY_MACHINES = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x65735546: "FUSE or virtiofs",
    0x01021997: "9p",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x00C36400: "Ceph",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
    0x20030528: "OrangeFS",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x564C: "NCP",
    0xBACBACBC: "VMware's shared folders",
    0x786F4256: "VirtualBox's shared folders",
    0x7C7C6013: "Parallels' shared folders",
}

_OVERLAY = 0x794C7630

# These give a changed file a ctime of now, in ns, whether it was written to by a call or through a
# mapping. tmpfs does not: a page that was read through a mapping can be written to unnoticed.
_KEEP_TIMES = frozenset(
    (
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0xF2F52010,  # F2FS
        _OVERLAY,  # containers; the files of images are on one of these
    )
)

_IN_MEMORY = frozenset((0x01021994, 0x858458F6))  # tmpfs, ramfs

_libc = ctypes.CDLL(None, use_errno=True)


class Folder:
    """An open folder: it stays the same one, whatever happens to its path."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        """For people; never used to open anything."""
        self._fd = fd

    @property
    def fd(self) -> int:
        """For `dir_fd=`. Raises OSError once it is closed."""
        if self._fd < 0:
            raise OSError(errno.EBADF, "the folder has been closed", str(self.path))
        return self._fd

    def inside(self, name: str) -> Path:
        """The path of a file in it, for code that takes no descriptor; good until `close`.

        Raises:
            OSError: there is no /proc.
        """
        folder = Path(f"/proc/self/fd/{self.fd}")
        if not folder.is_dir():
            raise OSError(
                errno.ENOENT, "/proc is not mounted, by which ONNX Runtime is given files"
            )
        return folder / name

    def open_folder(self, name: str, makes: bool = False) -> Folder:
        """A folder in it that belongs to this user alone; `makes` it if there is none.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is a symbolic link, or others may change it.
        """
        if makes:
            self.make_folder(name)
        path = self.path / name
        with _naming(path):
            return _checked(path, os.open(name, _READ, dir_fd=self.fd), is_ours_alone=True)

    def make_folder(self, name: str) -> None:
        """Makes a folder for this user alone, unless there is something of that name."""
        with contextlib.suppress(FileExistsError), _naming(self.path / name):
            os.mkdir(name, 0o700, dir_fd=self.fd)

    def open_file(self, name: str) -> int:
        """Descriptor of a regular file in it, which no other user may change.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is something else, or others may change it.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with _naming(self.path / name):
            fd = os.open(name, flags, dir_fd=self.fd)
        try:
            found = os.fstat(fd)
            _check(found, self.path / name, is_ours_alone=True)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(self.path / name))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def names(self) -> list[str]:
        """The names of all that is in it."""
        return os.listdir(self.fd)

    def stat(self, name: str = ".") -> os.stat_result:
        """Of it, or of something in it; links are not followed."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def has(self, name: str, other: Folder) -> bool:
        """Whether that name in it is the folder `other`."""
        try:
            found = self.stat(name)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, other.stat())

    def remove_folder(self, name: str) -> None:
        """With all in it. Not by shutil's rmtree, which takes no descriptor where os.open has been
        replaced: eventlet does that."""
        walked = os.fwalk(name, topdown=False, onerror=_raise, dir_fd=self.fd)
        for _, folders, files, fd in walked:
            for file in files:
                os.unlink(file, dir_fd=fd)
            for folder in folders:
                os.rmdir(folder, dir_fd=fd)
        os.rmdir(name, dir_fd=self.fd)

    def close(self) -> None:
        """Also releases the lock, if there is one. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _raise(error: OSError) -> None:
    raise error


def open_trusted(path: Path, makes: bool = False) -> Folder:
    """Opens a folder that only this user and root can exchange for another one.

    As sshd does for the files it trusts (StrictModes): each folder on the way belongs to root or to
    this user, and no one else may write to it. Others may write to a sticky one, such as /tmp:
    what is ours there they cannot rename. The way leads through symbolic links only if they belong
    to root or to this user. What `makes` creates is for this user alone.

    Raises:
        PermissionError: others could change it.
        OSError: it cannot be opened or made, or is shared by machines: see network_name.
    """
    # Not the working folder for an absolute path: it may have been removed.
    whole = path if path.is_absolute() else Path(working_folder(), path)
    todo = list(reversed(whole.parts[1:]))
    here = _checked(Path("/"), os.open("/", _LOOK_UP))
    num_links = 0
    while todo:
        name = todo.pop()
        below = _step(here, name, makes)
        if not stat.S_ISLNK(os.fstat(below.fd).st_mode):
            here = below
            continue
        target = Path(os.readlink("", dir_fd=below.fd))
        num_links += 1
        if num_links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        if target.is_absolute():
            here = _checked(Path("/"), os.open("/", _LOOK_UP))
            target = target.relative_to("/")
        todo += reversed(target.parts)
    with _naming(here.path):
        folder = Folder(here.path, os.open(".", _READ, dir_fd=here.fd))
    if kind := network_name(folder.fd):
        raise OSError(
            errno.ENOTSUP,
            f"{folder.path} is on {kind}, which several machines may share, and a lock there does "
            "not bind the others; choose a folder on a local disk",
        )
    return folder


def working_folder() -> str:
    """Its path; one that nobody can make if it has been removed: nothing can be found there."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/proc/self/cwd (removed)"


def network_name(fd: int) -> str | None:
    """The kind of a file system that several machines may share; None for a local one."""
    return _SHARED_BY_MACHINES.get(_file_system(fd))


def keeps_times(fd: int) -> bool:
    """Whether a file's times are sure to change with each change of the file."""
    return _file_system(fd) in _KEEP_TIMES


def is_overlay(fd: int) -> bool:
    """Whether a file is part of an overlay: of another file system in truth."""
    return _file_system(fd) == _OVERLAY


def is_in_memory(fd: int) -> bool:
    """Whether what is written there stays in memory, or in swap."""
    return _file_system(fd) in _IN_MEMORY


def _file_system(fd: int) -> int:
    """f_type of statfs, which Python does not have."""
    buffer = (ctypes.c_long * 64)()  # f_type comes first; the whole is 120 bytes
    while _libc.fstatfs(fd, buffer) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return buffer[0] & 0xFFFFFFFF


def _step(here: Folder, name: str, makes: bool) -> Folder:
    path = here.path / name
    with _naming(path):
        try:
            return _checked(path, os.open(name, _LOOK_UP, dir_fd=here.fd))
        except FileNotFoundError:
            if not makes:
                raise
        here.make_folder(name)
        return _checked(path, os.open(name, _LOOK_UP, dir_fd=here.fd))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of system calls name the whole path, where the call was given its last part."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def _checked(path: Path, fd: int, is_ours_alone: bool = False) -> Folder:
    folder = Folder(path, fd)
    _check(os.fstat(fd), path, is_ours_alone, _has_acl(fd))
    return folder


def _has_acl(fd: int) -> bool:
    try:
        os.getxattr(fd, "system.posix_acl_access")
    except OSError:  # none, or a file system that knows of none
        return False
    return True


def _check(
    found: os.stat_result, path: Path, is_ours_alone: bool = False, has_acl: bool = False
) -> None:
    """Raises PermissionError if others than this user and root may change it."""
    owners = {os.geteuid()} if is_ours_alone else {os.geteuid(), 0}
    if found.st_uid not in owners:
        raise PermissionError(f"{path} belongs to another user ({found.st_uid})")
    if stat.S_ISLNK(found.st_mode):
        return  # its mode has no meaning
    if not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # an ACL shows in the group's bits
        return
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and not is_ours_alone:
        return
    if (
        not is_ours_alone  # what we make is writable for no group
        and not found.st_mode & stat.S_IWOTH
        and not has_acl  # then the group's bits are the mask of what others may do
        and _is_group_of_one(found.st_gid, found.st_uid)
    ):
        return
    remedy = "chmod go-w helps" + ("" if is_ours_alone else ", or chmod +t as for /tmp")
    raise PermissionError(f"others may write to {path}; {remedy}")


def _is_group_of_one(gid: int, uid: int) -> bool:
    """Whether the owner is the group's only member. Where each user has such a group, umask is 002,
    and folders are writable for it. Debian's sshd makes the same exception."""
    try:
        named = [pwd.getpwnam(name).pw_uid for name in grp.getgrgid(gid).gr_mem]
    except KeyError:
        return False
    return {*named, *(user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid)} == {uid}
