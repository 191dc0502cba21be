"""Images in blocks and steps: every row comes back, once, in order, whatever its neighbours."""

import gc

import jax
import numpy as np
import pytest

from fvaudit.evidence.activations import collect
from fvaudit.models import devices, stream
from fvaudit.records import AuditError
from tests.tiny import pictures, tiny_model


devices.start()


def _doubled(images):
    return {"mean": 2 * images.mean((1, 2)), "all": images + 0.0}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("beyond", [-7, -1, 0, 1, 5])
def test_every_row_comes_back_in_order(lanes, beyond):
    count = 2 * stream.width(lanes) + beyond
    images = np.random.default_rng(0).random((count, 2, 3, 3), np.float32)
    run = stream.program(_doubled, 0, lanes)
    seen = list(stream.calls(run, (), images, lanes))
    assert [rows.start for rows, _ in seen] == [*range(0, count, stream.width(lanes))]
    found = [stream.rows(out["all"], rows) for rows, out in seen]
    np.testing.assert_array_equal(np.concatenate(found), images)
    means = [stream.rows(out["mean"], rows) for rows, out in seen]
    np.testing.assert_allclose(np.concatenate(means), 2 * images.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_few_images_are_shared_by_all_devices_and_cost_their_own_steps(count):
    run = stream.program(lambda images: images.mean((1, 2)) + 1, 0, 1)
    images = np.random.default_rng(0).random((count, 2, 3, 3), np.float32)
    ((rows, out),) = stream.calls(run, (), images, 1)
    assert rows == slice(0, count) and len(out) == stream.width(1)
    reached = (np.asarray(out) != 0).all(1).reshape(jax.local_device_count(), -1)
    assert (reached.sum(1) == -(-count // jax.local_device_count())).all()
    assert sum(map(len, stream.parts(out, rows))) == count


def test_no_lanes_are_refused():
    with pytest.raises(
        AuditError, match=r"images a device and step\) must be a whole number from 1 to 4096, got 0"
    ):
        collect(tiny_model(), pictures(1), ["conv1"], lanes=0)


def test_no_images_are_no_calls():
    run = stream.program(_doubled, 0, 1)
    assert list(stream.calls(run, (), np.zeros((0, 2, 3, 3), np.float32), 1)) == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="one image a step is a CPU's default")
def test_an_image_has_the_same_bytes_in_any_company():
    model, images = tiny_model(), pictures(40)
    together = collect(model, images, model.layers, metric="cosine")
    for some in ([3], [39, 3, 17], range(5, 38)):
        alone = collect(model, images[list(some)], model.layers, metric="cosine")
        for layer in model.layers:
            np.testing.assert_array_equal(alone.vectors[layer], together.vectors[layer][list(some)])


def test_python_looks_for_cycles_again_once_a_program_is_traced_or_failed():
    seen = []

    def noting(x):
        seen.append(gc.isenabled())
        return x

    def failing(x):
        raise ValueError("no")

    x = np.ones((len(jax.local_devices()), 1), np.float32)
    devices.on_every_device(noting, shared=0)(x)
    with pytest.raises(ValueError, match="no"):
        devices.on_every_device(failing, shared=0)(x)
    assert seen == [False] and gc.isenabled()
