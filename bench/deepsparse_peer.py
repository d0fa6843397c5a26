"""DeepSparse's side of bench.peers. Runs in DeepSparse's own environment, which has no deepsched.

    python bench/deepsparse_peer.py MODEL SCHEDULER NUM_CORES

For each line "CALLERS SECONDS" on stdin it prints the spans of all requests as one line of JSON.
"""

import json
import sys
import threading
import time

from deepsparse import compile_model
from deepsparse.utils import generate_random_inputs


def measure(engine, inputs, callers, seconds):
    begin = time.perf_counter_ns() + int(seconds / 5 * 1e9)
    end = begin + int(seconds * 1e9)
    spans = [[] for _ in range(callers)]

    def call_on(mine):
        ended = 0
        while ended < end:
            started = time.perf_counter_ns()
            engine.run(inputs)
            ended = time.perf_counter_ns()
            mine.append((started, ended))

    threads = [threading.Thread(target=call_on, args=(mine,)) for mine in spans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"begin": begin, "end": end, "spans": [span for mine in spans for span in mine]}


def main():
    path, scheduler, num_cores = sys.argv[1:]
    options = {"num_streams": int(num_cores)} if scheduler == "multi_stream" else {}
    engine = compile_model(
        path, batch_size=1, num_cores=int(num_cores), scheduler=scheduler, **options
    )
    inputs = generate_random_inputs(path, 1)
    for line in sys.stdin:
        callers, seconds = line.split()
        print(json.dumps(measure(engine, inputs, int(callers), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
