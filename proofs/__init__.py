"""Models of the protocols of deepsched/runtime/README.md, and what checks them: see __main__."""
