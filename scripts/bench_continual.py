"""What measuring and the Trainer add to a continual run.

    python scripts/bench_continual.py --part meter|loops [options of that part]

- meter  all of the layer meter's time over a run's, Split CIFAR-10's size: scripts/bench_continual_meter.py
- loops  Lightning's Trainer beside the strategy's own loop, paired: scripts/bench_continual_loops.py

Results: docs/benchmarks.md.
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--part", choices=["meter", "loops"], default="meter")
    options, rest = parser.parse_known_args()
    sys.argv = [f"{sys.argv[0]} --part {options.part}", *rest]
    if options.part == "meter":
        import bench_continual_meter as part  # of the same folder
    else:
        import bench_continual_loops as part
    part.main()


if __name__ == "__main__":
    main()
