"""One image at a time, as a user would wait for it; run as a process of its own by wall.py.

    python reached.py lucent LAYER CHANNEL STEPS SEED FILE.npy
    python reached.py ours LAYER CHANNEL,CHANNEL STEPS SEED FOLDER

The first runs torch-lucent's loop on BVLC's GoogLeNet and writes its last image; the network is
frozen and ends at the layer, which leaves the image as it is and takes a third of the time. The
second is what a program with `import fvaudit` does: load, visualize, write a PNG per channel.
"""

import pathlib
import sys

import numpy as np


def lucent(layer: str, channel: str, steps: str, seed: str, file: str) -> None:
    import shipped
    import torch
    import torch_nets

    torch.manual_seed(int(seed))
    np.random.seed(int(seed))  # its transforms draw from NumPy's global generator
    net = torch_nets.truncated(torch_nets.load("googlenet"), layer)
    image = shipped.render(net, f"{layer}:{channel}", int(steps), preprocess=False)[0]
    np.save(file, image)


def ours(layer: str, channels: str, steps: str, seed: str, folder: str) -> None:
    import networks

    import fvaudit
    from fvaudit.pictures import png

    objectives = [fvaudit.Channel(layer, int(c)) for c in channels.split(",")]
    made = fvaudit.visualize(
        networks.load("googlenet"), objectives, steps=int(steps), seed=int(seed)
    )
    for objective, vis in zip(objectives, made, strict=True):
        pathlib.Path(folder, f"{objective.index}.png").write_bytes(png(vis.images[0]))


if __name__ == "__main__":
    {"lucent": lucent, "ours": ours}[sys.argv[1]](*sys.argv[2:])
