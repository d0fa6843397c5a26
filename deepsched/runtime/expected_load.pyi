class ExpectedLoad:
    """How long what waits is expected to run; native methods only. Made by the dispatcher."""
