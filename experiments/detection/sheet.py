"""One picture of all attacks: what each makes of the first units of each network's middle layer.

    command    python experiments/detection/sheet.py      (a second; after measure.py)
    expected   results/detection/pictures.png

Rows: the clean network, then each attack. The left half is EfficientNet-Lite0's, the right half
GoogLeNet's. The units are the first of the seeded draw (`conditions.draw`), none picked.
"""

import numpy as np
from conditions import NAMES, NETWORKS, ROOT
from PIL import Image

from fvaudit.pictures import GAP, LINE


SHOWN = 5  # units of a network
SHEETS = ROOT / "runs" / "detection"  # where measure.py leaves a row of pictures a condition


def main() -> None:
    rows = [np.concatenate([_first(network, attack) for network in NETWORKS], 1)
            for attack in NAMES]  # fmt: skip
    out = ROOT / "results" / "detection" / "pictures.png"
    few = Image.fromarray(np.concatenate(rows)).quantize(256)  # colours; a third of the bytes
    few.save(out, optimize=True)


def _first(network: str, attack: str) -> np.ndarray:
    path = SHEETS / f"{network}-{NETWORKS[network].middle}-{attack}-test.png"
    with Image.open(path) as file:
        sheet = np.asarray(file.convert("RGB"))
    step = sheet.shape[0] - LINE - GAP  # one square picture and the gap beside it
    return sheet[:, : SHOWN * step + GAP]


if __name__ == "__main__":
    main()
