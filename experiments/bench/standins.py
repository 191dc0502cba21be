"""What torch-lucent imports and the benchmark does not need: torchvision and IPython, stood in for.

torch-lucent asks torchvision for `Normalize` (used on networks other than its own InceptionV1, and
not here) and for a star import of ready-made models; it asks IPython for `display` (notebooks
only). `install()` puts the least that satisfies these imports into `sys.modules`, also where the
real packages are there: a torchvision that was not built for this PyTorch cannot be imported.
"""

import sys
import types


class Normalize:
    """(x - mean) / std per channel of one (c, h, w) image."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, image):
        mean, std = (image.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (image - mean) / std


def install() -> None:
    """Makes `import torchvision` and `import IPython.display` work."""
    _stand_in("torchvision", models={}, transforms={"Normalize": Normalize})
    _stand_in("IPython", display={})


def _stand_in(package: str, **modules: dict) -> None:
    if package in sys.modules:
        return
    parent = sys.modules[package] = types.ModuleType(package)
    for name, contents in modules.items():
        child = types.ModuleType(f"{package}.{name}")
        vars(child).update(contents)
        setattr(parent, name, child)
        sys.modules[child.__name__] = child
