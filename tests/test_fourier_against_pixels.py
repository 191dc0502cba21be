"""On a real network the Fourier basis reaches further than pixels in equal steps."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fvaudit.models.zoo import load_model
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.visualize import visualize


@pytest.mark.slow
def test_fourier_beats_pixels_in_activation_at_equal_steps():
    """24 channels drawn by seed, paired; same optimizer, transforms, steps and random streams."""
    model = load_model("efficientnet_lite0")
    channels = np.random.default_rng(0).choice(model.shapes["blocks.8"][-1], 24, replace=False)
    units = [Channel("blocks.8", int(c)) for c in sorted(channels)]
    reached = {
        name: np.array([v.activation[0] for v in visualize(model, units, recipe=name, steps=64)])
        for name in ("lucid", "pixels")
    }
    gain = reached["lucid"] - reached["pixels"]
    test: Any = stats.wilcoxon(reached["lucid"], reached["pixels"], alternative="greater")
    p = test.pvalue
    print(f"median gain {np.median(gain):.2f}, better in {(gain > 0).sum()} of 24, p = {p:.2g}")
    assert p < 0.01
