class Gatherer:
    """Pops requests for the owners of core groups; native methods only. Made by the dispatcher."""
