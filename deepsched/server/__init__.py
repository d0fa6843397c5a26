"""`deepsched serve`: models behind the Open Inference Protocol, REST and gRPC, in one process.

Needs the extra `serve`. Nothing outside this package imports it but `deepsched.cli.serve`.
"""
