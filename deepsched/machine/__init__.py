"""The machine, and the part of it that this process may use.

sysfs and cgroup read the kernel's files; topology makes cores of them, partition cuts these into
streams. Beside them: contention by other processes, the inventory of all CPUs, and its diagram.
latency, probe and measured ask the cores themselves; state tells which measurements compare.
"""
