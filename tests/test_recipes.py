"""Recipes: what each name stands for, and that each makes pictures."""

from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import load_file

from fvaudit.config import RecipeName
from fvaudit.models.model import InputSpec
from fvaudit.models.zoo import load_model
from fvaudit.optvis import visualize as engine
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.optimizers import sgd
from fvaudit.optvis.params import pixels
from fvaudit.optvis.recipes import NAMES, recipe
from fvaudit.records import AuditError
from tests.tiny import tiny_model


CAFFE = InputSpec((224, 224), (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, resize=256)


def test_lucid_is_lucids_default():
    settings = recipe("lucid", CAFFE).settings()
    assert settings["optimizer"] == "adam(rate=0.05, schedule='constant')"
    assert settings["parameterization"] == "fourier(sd=0.01, decay=1.0, decorrelate=True)"
    assert settings["steps"] == 512 and settings["redirected_steps"] == 16
    assert settings["transforms"].startswith("jitter(8) > scale(0.9..1.1, n=11) > rotate(-10..10")
    assert settings["regularizer"] == "none"


@pytest.mark.parametrize("number, steps", [(1, 500), (2, 750), (3, 1000), (4, 1000)])
def test_yosinskis_settings_take_the_networks_mean(number, steps):
    settings = recipe(f"yosinski{number}", CAFFE).settings()
    assert settings["steps"] == steps and settings["transforms"] == "none"
    assert "123" in settings["parameterization"] and settings["redirected_steps"] == 0
    assert settings["regularizer"] != "none"


def test_given_fields_replace_the_recipes_and_none_does_not():
    made = recipe("lucid", CAFFE, steps=7, optimizer=sgd(1.0), transform=None)
    assert made.steps == 7 and made.optimizer is sgd(1.0)
    assert made.transform.text == recipe("lucid", CAFFE).transform.text


def test_a_config_and_its_schema_know_every_recipe():
    assert get_args(RecipeName) == NAMES


def test_names_share_programs_only_where_they_are_equal():
    texts = {str(recipe(name, CAFFE).settings()) for name in NAMES}
    assert len(texts) == len(NAMES)


# A CPPN starts grey, which this network maps to 0 everywhere: it is rightly reported dead there.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "cppn"])
def test_every_recipe_makes_a_picture(name):
    model = tiny_model()
    (vis,) = engine.visualize(model, [Channel("conv2", 2)], recipe=name, steps=4, shot_steps=(0,))
    assert vis.images.min() >= 0 and vis.images.max() <= 1 and vis.alive.all()
    assert not np.array_equal(vis.images, vis.shots[:, 0])


# Yosinski et al.'s four take 500 to 1000 steps: at 96 nothing is known of them yet. The CPPN's way
# out of its grey start is chaotic: after 96 steps, seeds and roundings stand between 0.9 and 17.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("yosinski")])
def test_every_recipe_drives_a_real_unit_beyond_photographs(name, shared_data):
    """GoogLeNet's mixed4d:140 against the beagle and against the recipe's start."""
    model = load_model("googlenet", shared_data / "models" / "googlenet_bvlc.safetensors")
    steps = 384 if name == "cppn" else 96
    (vis,) = engine.visualize(
        model, [Channel("mixed4d", 140)], recipe=name, steps=steps, shot_steps=(0,)
    )
    expected = load_file(shared_data / "expected" / "googlenet_bvlc.safetensors")
    beagle = expected["input_uint8_nhwc"].reshape(1, 224, 224, 3).astype(np.float32) / 255
    seen = np.concatenate([vis.shots[:, 0], beagle])
    start, natural = np.asarray(model.activations(seen, ["mixed4d"])["mixed4d"])[..., 140].mean(
        (1, 2)
    )
    assert vis.alive.all() and vis.activation[0] > 2 * max(start, natural)


def test_visualize_takes_what_is_given_over_the_recipe():
    (vis,) = engine.visualize(
        tiny_model(), [Channel("conv1", 0)], recipe="lucid", parameterization=pixels(), steps=2
    )
    assert vis.settings["parameterization"] == pixels().text
    assert vis.settings["optimizer"] == recipe("lucid", CAFFE).optimizer.text


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(AuditError, match="no recipe 'macco'.*did you mean 'maco'"):
        engine.visualize(tiny_model(), [Channel("conv1", 0)], recipe="macco")
