"""Hostile files, made from valid ones: how many are used, how many are refused by our own errors, and at what cost.

    python benchmarks/fuzz.py [--tries 100000] [--seed 0] [--only NUMBER] [--json]

Exit code 1 where anything but our own errors came out, where a try took more memory than `tests/hostile/memory.py`
allows or more than 20 seconds, and where code of a file was run. Linux only. The tries run in a process of their own,
in which asking for half a gigabyte fails; where it dies or hangs, that is a fault, and another goes on.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

from hostile import memory  # noqa: E402  # found by that path
from hostile.tries import Outcome, Tries  # noqa: E402

from lyc_fx.binding.report import table  # noqa: E402

_PATIENCE = 120.0
"""Seconds without a word until a try is held to hang"""
_SHOWN = 10


def _work(pipe: Connection, seed: int, numbers: range) -> None:
    import torch

    torch.set_num_threads(1)
    with Tries.prepared(seed) as tries:
        memory.limit_addresses()
        for number in numbers:
            pipe.send(tries.run(number))
    pipe.close()


def outcomes(seed: int, numbers: range) -> Iterator[Outcome]:
    """Every try, in order."""
    fresh = multiprocessing.get_context("spawn")
    while numbers:
        ours, theirs = fresh.Pipe(duplex=False)
        process = fresh.Process(target=_work, args=(theirs, seed, numbers), daemon=True)
        process.start()
        theirs.close()
        why = "hangs"
        try:
            while ours.poll(_PATIENCE):
                outcome = ours.recv()
                numbers = numbers[1:]
                yield outcome
        except EOFError:
            process.join()
            why = f"the process died: exit code {process.exitcode}"
        process.kill()
        process.join()
        if numbers:
            yield Outcome(numbers[0], "(not known)", "", why, 0, 0, 0.0)
            numbers = numbers[1:]


def rows(found: list[Outcome]) -> Iterator[dict[str, object]]:
    """The table: one row for each kind of attack, and their sum."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in found:
        groups[outcome.attack].append(outcome)
    for name, group in [*groups.items(), ("all", found)]:
        ends = Counter(outcome.end for outcome in group)
        refused = {kind: sum(n for end, n in ends.items() if end.startswith(kind)) for kind in _KINDS}
        big = [outcome.extra / outcome.size for outcome in group if outcome.size > 10**6]
        yield {
            "attack": name,
            "tries": len(group),
            "used": ends["used"],
            **refused,
            "faults": sum(bool(outcome.fault) for outcome in group),
            "most extra MB": f"{max(outcome.extra for outcome in group) / 1e6:.1f}",
            "× file over 1 MB": f"{max(big):.1f}" if big else "-",
            "seconds": f"{sum(outcome.seconds for outcome in group):.1f}",
            "slowest": f"{max(outcome.seconds for outcome in group):.2f}",
        }


_KINDS = ("BadFile", "BadAdapter", "Unsupported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one try, such as one that a message names")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = parser.parse_args()
    started = time.perf_counter()
    numbers = range(chosen.tries) if chosen.only is None else range(chosen.only, chosen.only + 1)
    found = []
    for outcome in outcomes(chosen.seed, numbers):
        found.append(outcome)
        if outcome.fault and sum(bool(each.fault) for each in found) <= _SHOWN:
            print(f"try {outcome.number} ({outcome.attack}): {outcome.fault}", file=sys.stderr, flush=True)
    lines = list(rows(found))
    print(json.dumps(lines) if chosen.json else "\n".join(table(lines)))
    faults = sum(bool(outcome.fault) for outcome in found)
    if not chosen.json:
        print(f"{len(found)} tries, {faults} faults, {time.perf_counter() - started:.0f} seconds in all")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
