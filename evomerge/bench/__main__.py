"""`python -m evomerge.bench kernels`: on a machine with torch (and triton) and nothing else."""

import sys

from evomerge.errors import EvomergeError

if sys.argv[1:] != ["kernels"]:
    sys.exit("usage: python -m evomerge.bench kernels    (searches and merges: evomerge bench search|merge)")

from evomerge.bench.kernels import bench_kernels

try:
    for line in bench_kernels():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
except EvomergeError as error:
    sys.exit(f"error: {error}")
