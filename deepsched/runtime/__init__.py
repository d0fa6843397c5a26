"""The native core: requests, the queue, core groups, pinned threads and ONNX Runtime's C API.

README.md in this folder explains the protocols. Nothing here knows the Python classes above it.
"""
