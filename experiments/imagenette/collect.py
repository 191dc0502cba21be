"""Copies the numbers and curves of an imagenette audit to results/imagenette/; no photographs.

Claim: FVs of class logits follow the path of other classes through most of the network and that
of their own class only in its last layers. Expected (measured with seed 0): P of the ten logits
below 0 up to blocks.14, about 0.5 at blocks.15, about 1 at avgpool and logits. Takes seconds.

    python experiments/imagenette/collect.py runs/imagenette
"""

import pathlib
import shutil
import sys

import pandas as pd


RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results" / "imagenette"


def main(folder: pathlib.Path) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in (*sorted((folder / "figures").iterdir()), folder / "summary.md"):
        shutil.copy(path, RESULTS / path.name)
    units = pd.read_parquet(folder / "units.parquet").drop(columns="fv_responses")
    units.round(4).to_csv(RESULTS / "units.csv", index=False)
    print(f"wrote {len(list(RESULTS.iterdir()))} files to {RESULTS.name}/")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
