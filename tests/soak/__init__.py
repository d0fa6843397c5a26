"""Engines under load and faults for as long as one likes: all requests end once, nothing grows.

    python -m tests.soak                    # 30 minutes
    python -m tests.soak --rounds 5         # the short form, of a minute; CI runs it
    python -m tests.soak --seed 7 --first 12 --rounds 1   # round 12 of seed 7 again

A soak is made of rounds. A round opens contexts and engines, calls them in all ways (`callers`,
`main_thread`) while faults come (`faults`, a file each), then closes all of it. What a round does
is drawn from its seed and number alone, for each thread by itself; how the threads meet is up to
the machine. A round lasts until its faults are over.

Broken is (`ledger`): a wrong answer, an error that the call does not allow, a request that does
not end; counts of `stats()` that are not what callers saw (`fleet`); anything that waits or is left
at a round's end, and memory that grows from round to round (`growth`); a descriptor that somebody
else closed (`descriptors`). A hang ends the soak with the stack of every thread.

Harsh surroundings (a quota and a cpuset that change, little memory, a full disk, a clock that is
set) are another soak's: a child process, with the load and without these faults.
"""
