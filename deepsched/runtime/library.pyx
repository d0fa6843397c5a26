"""ONNX Runtime's shared library: found in the installed wheel, loaded once, never unloaded.

The Python package `onnxruntime` is not imported. If the program imports it anyway, nothing is
shared: its extension module carries a library of its own.
"""

from deepsched.runtime.ort cimport (
    ALLOCATOR_DEVICE, API_VERSION, LOG_FATAL, MEMORY_DEFAULT, MIN_MINOR_VERSION, OrtApiBase,
)
from deepsched.runtime.posix cimport pthread_atfork
from libc.stdint cimport uint32_t
from libc.stdio cimport fflush
from libcpp.atomic cimport (
    atomic, memory_order_acquire, memory_order_relaxed, memory_order_release,
)

import importlib.util
import os
import re
import sys
import threading
from pathlib import Path

from deepsched.errors import InferenceError, OrtImportError
from deepsched.runtime import telemetry

cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int mode)
    void* dlsym(void* handle, const char* name)
    char* dlerror()
    int RTLD_NOW
    int RTLD_LOCAL

cdef extern from "<cstdlib>" nogil:
    int on_exit(void (*handler)(int, void*) noexcept nogil, void* argument)

cdef extern from "<unistd.h>" nogil:
    void _exit(int status)

ctypedef const OrtApiBase* (*GetApiBaseFn)() noexcept nogil

INSTALL_HINT = f"install it with: pip install 'onnxruntime>=1.{MIN_MINOR_VERSION}'"

cdef Library _library
# Set last: whoever sees it sees the rest.
cdef atomic[uint32_t] _is_loaded
# Reentrant: a finalizer or a signal handler may come here while it is held.
cdef object _loading = threading.RLock()
cdef str _path = None
cdef str _version = None


def find_library() -> str:
    """The path of libonnxruntime.so in the installed onnxruntime wheel.

    Raises:
        OrtImportError: onnxruntime is not installed, or holds no such library.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        if getattr(sys, "frozen", False):
            raise OrtImportError(
                "this frozen program lacks the library of onnxruntime: freeze it with the file "
                "onnxruntime/capi/libonnxruntime.so.* in the same place, relative to its modules"
            )
        raise OrtImportError(f"deepsched needs onnxruntime's kernels; {INSTALL_HINT}")
    for folder in spec.submodule_search_locations:
        found = sorted(Path(folder, "capi").glob("libonnxruntime.so.*"))
        if found:
            return os.fspath(found[-1])
    raise OrtImportError(
        f"no capi/libonnxruntime.so.* in {list(spec.submodule_search_locations)}: this build of "
        f"onnxruntime carries no shared library; {INSTALL_HINT}"
    )


def describe_library() -> dict[str, str]:
    """The path and the version of the library; loads it if need be."""
    library()
    return {"path": _path, "version": _version}


cdef Library* library() except NULL:
    """The library, loaded at the first call."""
    # acquire: pairs with the release in _load().
    if not _is_loaded.load(memory_order_acquire):
        path = find_library()
        with _loading:
            if not _is_loaded.load(memory_order_relaxed):  # relaxed: ordered by the lock
                _load(path)
    return &_library


cdef Library* loaded_library() noexcept nogil:
    """The library, for callers that hold something made by it: it is loaded."""
    return &_library


cdef void _on_exit_of_child(int status, void* ignored) noexcept nogil:
    """Ends a forked child here, before ORT's own exit handlers run: from 1.29 on telemetry's destroys
    a condition variable that the parent's threads wait on, and waits for them for ever. Python
    has finished by now."""
    fflush(NULL)
    _exit(status)


cdef void _on_fork_in_child() noexcept nogil:
    # Registered last, so it runs first.
    on_exit(_on_exit_of_child, NULL)


cdef _load(str path):
    global _path, _version
    cdef bint has_telemetry = not telemetry.switch_off()
    cdef void* handle = dlopen(os.fsencode(path), RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise OrtImportError(f"cannot load {path}: {dlerror().decode(errors='replace')}")
    cdef GetApiBaseFn get_base = <GetApiBaseFn>dlsym(handle, "OrtGetApiBase")
    if get_base == NULL:
        raise OrtImportError(f"{path} does not export OrtGetApiBase; {INSTALL_HINT}")
    cdef const OrtApiBase* base = get_base()
    version = base.GetVersionString().decode(errors="replace")
    match = re.match(r"1\.(\d+)\b", version)
    cdef const OrtApi* api = NULL
    # GetApi prints an error on stderr for a version that it lacks, so ask only for one it has.
    if match and int(match[1]) >= MIN_MINOR_VERSION:
        api = base.GetApi(API_VERSION)
    if api == NULL:
        raise OrtImportError(
            f"onnxruntime {version} at {path} is too old: deepsched needs 1.{MIN_MINOR_VERSION} or "
            f"newer; {INSTALL_HINT}"
        )
    if has_telemetry:
        pthread_atfork(NULL, NULL, _on_fork_in_child)
    cdef Library loaded
    loaded.api = api
    # Errors reach the caller as exceptions, so ORT need not write them to stderr as well.
    _check(api, api.CreateEnv(LOG_FATAL, b"deepsched", &loaded.env))
    _check(api, api.GetAllocatorWithDefaultOptions(&loaded.allocator))
    _check(api, api.CreateCpuMemoryInfo(ALLOCATOR_DEVICE, MEMORY_DEFAULT, &loaded.cpu_memory))
    global _library
    _library = loaded
    _path, _version = path, version
    _is_loaded.store(1, memory_order_release)


cdef str _take_message(const OrtApi* api, OrtStatus* status, int* code):
    message = api.GetErrorMessage(status).decode(errors="replace")
    code[0] = api.GetErrorCode(status)
    api.ReleaseStatus(status)
    return message


cdef _check(const OrtApi* api, OrtStatus* status):
    cdef int code
    if status != NULL:
        message = _take_message(api, status, &code)
        raise InferenceError(f"onnxruntime failed (code {code}): {message}")


cdef str take_message(OrtStatus* status, int* code):
    """The message and the code of a status, which is released."""
    return _take_message(_library.api, status, code)


cdef check(OrtStatus* status):
    """Raises for a status of a call that fails only when ORT itself is broken or out of memory."""
    _check(_library.api, status)
