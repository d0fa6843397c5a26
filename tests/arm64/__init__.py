"""The package as it is on aarch64: cross-built, and tried under emulation."""
