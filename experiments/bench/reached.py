"""One image at a time, as a user would wait for it; run as a process of its own by wall.py.

    python reached.py lucent LAYER CHANNEL STEPS SEED FILE.npy
    python reached.py shipped LAYER CHANNEL STEPS SEED FILE.npy
    python reached.py ours LAYER CHANNEL,CHANNEL STEPS SEED FOLDER
    python reached.py stages LAYER CHANNEL STEPS SEED FOLDER

The first runs torch-lucent's loop on BVLC's GoogLeNet and writes its last image; the network is
frozen and ends at the layer, which leaves the image as it is and takes less time. The second does
the same as torch-lucent does it, the whole network and gradients of all weights. The third is what
a program with `import fvaudit` does: load, visualize, write a PNG per channel; the fourth does it
for one channel and writes where the time went.
"""

import json
import pathlib
import sys
import time

import numpy as np


EVENTS = {  # what JAX reports -> stage
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile or fetch",
}


def lucent(layer: str, channel: str, steps: str, seed: str, file: str) -> None:
    import torch_nets

    net = torch_nets.truncated(torch_nets.load("googlenet"), layer)
    _by_lucent(net, layer, channel, steps, seed, file)


def shipped(layer: str, channel: str, steps: str, seed: str, file: str) -> None:
    import torch_nets

    _by_lucent(torch_nets.load("googlenet"), layer, channel, steps, seed, file)


def _by_lucent(net, layer: str, channel: str, steps: str, seed: str, file: str) -> None:
    import shipped
    import torch

    torch.manual_seed(int(seed))
    np.random.seed(int(seed))  # its transforms draw from NumPy's global generator
    image = shipped.render(net, f"{layer}:{channel}", int(steps), preprocess=False)[0]
    np.save(file, image)


def ours(layer: str, channels: str, steps: str, seed: str, folder: str) -> None:
    import networks

    import fvaudit
    from fvaudit.pictures import png

    objectives = [fvaudit.Channel(layer, int(c)) for c in channels.split(",")]
    made = fvaudit.visualize(
        networks.load("googlenet"),
        objectives,
        steps=int(steps),
        seed=int(seed),
    )
    for objective, vis in zip(objectives, made, strict=True):
        pathlib.Path(folder, f"{objective.index}.png").write_bytes(png(vis.images[0]))


def stages(layer: str, channel: str, steps: str, seed: str, folder: str) -> None:
    """`ours` for one channel; writes how long each stage took to FOLDER/stages.json."""
    spent = dict.fromkeys((*EVENTS.values(), "import"), 0.0)
    begun = time.perf_counter()
    import jax.monitoring

    import fvaudit

    for name in ("load_model", "visualize"):
        getattr(fvaudit, name)  # what they need is imported here
    spent["import"] = time.perf_counter() - begun

    seen: list[tuple[float, float, str]] = []  # (begin, end, stage), none within another

    def note(event, seconds, **_):
        if event in EVENTS:
            end = time.perf_counter()
            while seen and seen[-1][0] >= end - seconds:  # traced or compiled within this one
                seen.pop()
            seen.append((end - seconds, end, EVENTS[event]))

    jax.monitoring.register_event_duration_secs_listener(note)
    begun = time.perf_counter()
    ours(layer, channel, steps, seed, folder)
    spent["rest"] = time.perf_counter() - begun - sum(end - at for at, end, _ in seen)
    for at, end, stage in seen:
        spent[stage] += end - at
    pathlib.Path(folder, "stages.json").write_text(json.dumps(spent))


if __name__ == "__main__":
    verbs = {"lucent": lucent, "shipped": shipped, "ours": ours, "stages": stages}
    verbs[sys.argv[1]](*sys.argv[2:])
