class RunSlots:
    """What runs on each core group and may be stopped; native functions only."""
