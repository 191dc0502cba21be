"""Do both sides compute the same? Logits of a photograph, in PyTorch and in fvaudit.

    python experiments/bench/check.py

Expected: largest differences of about 1e-6 relative to the largest logit; above 1e-4 it fails.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import torch
import torch_nets
from safetensors.numpy import load_file


EXPECTED = torch_nets.MODELS.parent / "expected"


def main() -> None:
    pairs = (("googlenet", "googlenet_bvlc"), ("efficientnet_lite0", "efficientnet_lite0"))
    for network, file in pairs:
        expected = load_file(EXPECTED / f"{file}.safetensors")
        image = expected["input_uint8_nhwc"].reshape(1, 224, 224, 3).astype(np.float32) / 255
        logits = np.asarray(
            networks.load(network).activations(jnp.asarray(image), ["logits"])["logits"]
        )
        _show(f"{network}: fvaudit against the reference", logits[0], expected["logits"])
        for variant in _variants(network):
            _show(
                f"{variant}: PyTorch against fvaudit", _torch_logits(variant, image)[0], logits[0]
            )


def _variants(network: str) -> tuple[str, ...]:
    return (network, "googlenet-own-lrn") if network == "googlenet" else (network,)


def _torch_logits(network: str, images: np.ndarray) -> np.ndarray:
    net = torch_nets.truncated(torch_nets.load(network), "logits")
    with torch.no_grad():
        return net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def _show(what: str, got: np.ndarray, wanted: np.ndarray) -> None:
    relative = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"{relative:.1e}  {what}")
    assert relative < 1e-4


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
