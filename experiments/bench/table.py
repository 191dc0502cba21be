"""Rows of numbers in CSV files that are added to, and the engine benchmark's table in Markdown.

`engine_rounds.csv` keeps every single measurement; `engine.csv` and `engine.md` are made from it
and from what the workers said of themselves.
"""

import csv
import pathlib
import statistics
from collections.abc import Iterable, Mapping


Row = dict[str, str | float]
RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results" / "bench"


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a CSV file, numbers as numbers; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write(path: pathlib.Path, rows: list[Row]) -> None:
    """All rows anew; columns are the union, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)


def replace(path: pathlib.Path, rows: Iterable[Row], keys: tuple[str, ...]) -> list[Row]:
    """Writes `rows` in place of those with equal `keys`, or at the end; returns all."""
    rows = list(rows)
    new = {tuple(row[k] for k in keys) for row in rows}
    kept = [row for row in read(path) if tuple(row[k] for k in keys) not in new]
    write(path, kept + rows)
    return kept + rows


def summary(workload: Mapping[str, str], rounds: list[Row], facts: dict[str, dict]) -> list[Row]:
    """One row a side: medians over rounds, ratios to ours within the same rounds.

    Args:
        workload: network and layer, copied into every row.
        rounds: side, round, ms (per image-step).
        facts: by side, what its workers reported.
    """
    ms = {side: _by_round(rounds, side) for side in facts}
    peaks = {s: facts["peak-numpy"]["matmul_gflop"] / statistics.median(ms[s].values()) * 1e3
             for s in ms if s.startswith("peak")}  # fmt: skip
    gflop = facts["peak-numpy"]["gflop"]
    rows = []
    for side in ms:
        if side in peaks:
            continue
        median = statistics.median(ms[side].values())
        row: Row = {**workload, "side": side, "ms": median}
        row |= {"ms_low": min(ms[side].values()), "ms_high": max(ms[side].values())}
        row |= _ratios("ours8", ms.get("ours-8"), ms[side])
        row |= _ratios("ours1", ms.get("ours-1"), ms[side])
        row |= {k: facts[side].get(k, "") for k in ("cold_s", "ready_s", "peak_mib")}
        row |= {"gflop": gflop, "share_of_peak": gflop / median * 1e3 / max(peaks.values())}
        row |= {f"{k.replace('-', '_')}_gflops": v for k, v in peaks.items()}
        row |= {"rounds": len(ms[side]), "version": _version(facts[side])}
        rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """The table that people read."""
    ratios = ["time of ours-8 / this", "time of ours-1 / this"]
    costs = ["cold start, s", "memory, MiB", "share of sgemm peak"]
    head = ["network", "layer", "side", "ms per image-step", *ratios, *costs]
    lines = [head, ["---"] * 3 + ["---:"] * 6]
    lines += [
        [str(row["network"]), str(row["layer"]), str(row["side"]),
         f"{_ms(row['ms'])} ({_ms(row['ms_low'])}-{_ms(row['ms_high'])})",
         _span(row, "ours8"), _span(row, "ours1"), _plain(row["cold_s"]),
         _plain(row["peak_mib"]), f"{row['share_of_peak']:.2f}"]
        for row in rows
    ]  # fmt: skip
    return joined(lines)


def joined(lines: list[list[str]]) -> str:
    """A Markdown table of cells, headings and their rule among them."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _by_round(rounds: list[Row], side: str) -> dict[float, float]:
    return {float(r["round"]): float(r["ms"]) for r in rounds if r["side"] == side}


def _ratios(name: str, ours: dict[float, float] | None, side: dict[float, float]) -> Row:
    shared = sorted((ours or {}).keys() & side.keys())
    values = [ours[r] / side[r] for r in shared] if ours else []
    if not values:
        return {name: "", f"{name}_low": "", f"{name}_high": ""}
    return {
        name: statistics.median(values),
        f"{name}_low": min(values),
        f"{name}_high": max(values),
    }


def _version(facts: dict) -> str:
    return " ".join(f"{k} {facts[k]}" for k in ("jax", "torch") if k in facts)


def _span(row: Row, name: str) -> str:
    if row[name] == "":
        return ""
    return f"{row[name]:.2f} ({row[name + '_low']:.2f}-{row[name + '_high']:.2f})"


def _ms(value) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _plain(value: str | float) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _short(value: str | float) -> str | float:
    return f"{value:.6g}" if isinstance(value, float) else value
