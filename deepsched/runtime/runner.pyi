class Runner:
    """Runs requests; native methods only. Made by the dispatcher."""
