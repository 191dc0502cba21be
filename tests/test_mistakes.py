"""Objects of another kind than a call takes: said in words, not by a traceback from deep inside.

The suite's type checker would hear of them first, so they are made in a process without it.
"""

import json
import pathlib
import re
import subprocess
import sys

import pytest


PREPARED = """
import json, sys
import numpy as np
import optax
import fvaudit as fv
from fvaudit import attacks
from fvaudit.attacks.gate import always
from tests.tiny import pictures, tiny_model

model, unit, channel = tiny_model(), fv.Unit.parse("conv2:1"), fv.Channel("conv2", 1)
shown = fv.visualize(model, [channel], steps=1)
pixels = pictures(6)
images = fv.ImageSet(pixels, tuple("abcdef"), None, np.arange(6))

def said(code):
    try:
        return repr(eval(code))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({code: said(code) for code in json.load(sys.stdin)}))
"""

MISTAKES = [
    (
        "fv.visualize(model, channel)",
        r"objectives must be a list .*, got Channel",
    ),
    (
        "fv.visualize(model, 'conv2:1')",
        r"objectives must be a list .*, got 'conv2:1'",
    ),
    (
        "fv.visualize(model, [channel, 7])",
        r"each of objectives must be an objective or a unit, .*, got 7",
    ),
    (
        "fv.visualize(model, ['conv2'])",
        r"'conv2' does not name a unit\. Expected layer:channel",
    ),
    (
        "fv.visualize(model, [])",
        r"objectives must be a list .*, got an empty one",
    ),
    (
        "fv.visualize('tiny', [channel])",
        r"model must be a Model, as load_model, .*, got 'tiny'",
    ),
    (
        "fv.visualize(model, [channel], optimizer=optax.adam(0.1))",
        r"optimizer must be made by fvaudit",
    ),
    (
        "fv.visualize(model, [channel], parameterization='pixels')",
        r"parameterization must be made by",
    ),
    (
        "fv.visualize(model, [channel], transforms=[fv.transforms.jitter(1)])",
        r"compose\(...\) makes one",
    ),
    (
        "fv.visualize(model, [channel], stop=5)",
        r"stop must be a function of a Progress, .*, got 5",
    ),
    (
        "fv.visualize(model, [channel], repeats=10**9)",
        r"repeats must be a whole number from 1 to",
    ),
    (
        "fv.visualize(model, [channel], start='dog.jpg')",
        r"start image must be an array .* 'dog.jpg'",
    ),
    (
        "model.activations(pixels, 'conv2')",
        r"layers must be a list of names, got 'conv2'",
    ),
    (
        "model.activations((255 * pixels).astype('uint8'), ['conv2'])",
        r"got uint8 up to 2.*by 255",
    ),
    (
        "model.activations(255 * pixels, ['conv2'])",
        r"must be floats in \[0, 1\], got float32 up to 2",
    ),
    (
        "fv.load_model(None)",
        r"name must be a network of the zoo, .*, got None",
    ),
    (
        "fv.load_images(pixels, model)",
        r"spec must be a folder, .*, got ndarray",
    ),
    (
        "fv.load_images('samples', model, classes='classes.tsv')",
        r"classes must be names of classes, in the order of the model's outputs, got 'classes.tsv'",
    ),
    (
        "fv.load_images('samples', model, classes=[3])",
        r"classes must be names of classes, .*, got 3",
    ),
    (
        "fv.load_model('efficientnet_lite0', classes={'a': 0})",
        r"Expected the names of the classes, .*; number 0 is {'a': 0}",
    ),
    (
        "fv.load_images('samples', 'tiny')",
        r"model must be a Model, .*, got 'tiny'",
    ),
    (
        "fv.path_similarity(model, 'conv2:1', shown, images)",
        r"unit must be a Unit, .*, got 'conv2:1'",
    ),
    (
        "fv.path_similarity(model, unit, [pixels], images)",
        r"visualization must be what visualize made",
    ),
    (
        "fv.path_similarity(model, unit, shown, pixels)",
        r"images must be an ImageSet, .*, got ndarray",
    ),
    (
        "fv.collect_natural(model, images, layers='conv2')",
        r"layers must be a list of names, got 'conv2'",
    ),
    (
        "fv.doctor('tiny', images)",
        r"model must be a Model, .*, got 'tiny'",
    ),
    (
        "fv.export_onnx('tiny', 'net.onnx')",
        r"model must be a Model, .*, got 'tiny'",
    ),
    (
        "fv.audit({'model': 'tiny'}, 'run')",
        r"config must be a YAML file, .*, got dict",
    ),
    (
        "fv.audit('quickstart', 'run', model='tiny')",
        r"model must be a Model, .*, got 'tiny'",
    ),
    (
        "fv.Unit.parse(3)",
        r"a unit's text must be layer:channel, .*, got 3",
    ),
    (
        "fv.Custom('one', print, ('conv2',))",
        r"layers is a sequence of names",
    ),
    (
        "attacks.finetuned(attacks.slingshot('conv2:1'))(model, [unit], images)",
        r"target must be a Unit, or an array",
    ),
    (
        "attacks.silent_units(unit)(model, unit, images)",
        r"units must be a list of units, .*, got Unit",
    ),
    (
        "attacks.silent_units(unit)(model, ['conv2:1'], images)",
        r"a unit must be a Unit, .*'conv2:1'",
    ),
    (
        "attacks.silent_units(unit)(model, [unit], pixels)",
        r"images must be an ImageSet, .*, got ndarray",
    ),
    (
        "attacks.fooling_circuit(1, 'packaged')(model, [unit], images)",
        r"gate must be one of attacks.gate",
    ),
    (
        "attacks.fooling_circuit('2', always(True))(model, [unit], images)",
        r"decoy must be an offset, .*'2'",
    ),
    (
        "attacks.finetuned('slingshot')",
        r"goal must be made by attacks.slingshot, .*, got 'slingshot'",
    ),
    (
        "attacks.finetuned(attacks.push('up'), {'steps': 3})",
        r"tuning must be an attacks.Tuning, .* dict",
    ),
    (
        "fv.ImageSet(pixels, tuple('abc'), None, np.arange(6))",
        r"'ids': 3, 'pixels': 6",
    ),
    (
        "fv.ImageSet(pixels, tuple('aaaaaa'), None, np.arange(6))",
        r"all different, .* 1 different ids",
    ),
    (
        "fv.ImageSet(pixels, tuple('abcdef'), None, list('abcdef'))",
        r"group must be an array",
    ),
    (
        "fv.ImageSet(pixels, tuple('abcdef'), np.zeros(6), np.arange(6))",
        r"labels must be whole numbers",
    ),
    (
        "fv.ImageSet(pixels > 0, tuple('abcdef'), None, np.arange(6))",
        r"pixels must be floats .* bool",
    ),
]


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What each mistaken call says; one process, without the type checker."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED],
        input=json.dumps([code for code, _ in MISTAKES]),
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("code, message", MISTAKES)
def test_a_mistake_is_said_in_words(code, message, answers):
    assert re.match(f"AuditError: .*{message}", answers[code]), answers[code]
