"""Which lowerings pay off on this backend, and with which of them a run repeats to the byte.

    python experiments/bench/rules.py googlenet mixed4d --lanes 64 --rules "" "strided pooling"

Prints, and adds to the backend's own table (results/bench/gpu/rules.csv), milliseconds per image
and step (median of 5 calls of 32 steps) for each set of rules, and whether two calls with the same
key left the same bytes. Half a minute for each set.
"""

import argparse
import pathlib
import statistics
import time

import jax
import networks
import numpy as np
import ours
import table

from fvaudit.models import devices
from fvaudit.optvis import render
from fvaudit.optvis.lowering import backends


ROUNDS, STEPS = 5, 32


def main() -> None:
    options = _options()
    devices.start()
    out = options.out or table.RESULTS / jax.default_backend() / "rules.csv"
    for rules in options.rules:
        row = {
            "network": options.network,
            "layer": options.layer,
            "lanes": options.lanes,
            "rules": " ".join(sorted(rules.split())),
            **measured(options.network, options.layer, options.lanes, rules.split()),
        }
        print(row, flush=True)
        table.replace(out, [row], ("network", "layer", "lanes", "rules"))


def measured(network: str, layer: str, lanes: int, rules: list[str]) -> table.Row:
    """Time and repeatability of the program that these rules make."""
    backends.RULES[jax.default_backend()] = frozenset(rules)
    render.programs.cache_clear()
    jax.clear_caches()
    width = render.width(lanes)
    begun = time.perf_counter()
    call = ours.ascent(networks.load(network), layer, list(range(width)), width)
    call(0, 1)
    ready = time.perf_counter() - begun
    spent = []
    for seed in range(ROUNDS):
        begun = time.perf_counter()
        call(seed, STEPS)
        spent.append(time.perf_counter() - begun)
    first, again = (_bytes(call(0, STEPS)) for _ in range(2))
    ms = statistics.median(spent) / STEPS / width * 1e3
    return {"ms": ms, "ready_s": ready, "same_bytes": str(first == again)}


def _bytes(images: list) -> bytes:
    return b"".join(np.asarray(each).tobytes() for each in images)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("layer")
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--rules", nargs="+", required=True, metavar="'RULE ...'")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    known = backends.RULES["cpu"]
    if unknown := {rule for rules in options.rules for rule in rules.split()} - known:
        parser.error(
            f"no rules: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return options


if __name__ == "__main__":
    main()
