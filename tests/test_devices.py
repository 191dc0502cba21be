"""What the engine asks of JAX before anything is computed."""

import jax
import pytest

from fvaudit.models import devices
from fvaudit.records import AuditError


def test_64_bits_are_refused_and_a_context_without_them_is_a_way_out():
    with jax.enable_x64(True):
        with pytest.raises(AuditError, match="64 bits.*jax.enable_x64.False"):
            devices.start()
        with jax.enable_x64(False):
            devices.start()


def test_programs_are_kept_where_that_can_be_and_else_somebody_is_told(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    devices._keep_programs(tmp_path / "a" / "b")
    assert asked == {"jax_compilation_cache_dir": str(tmp_path / "a" / "b")}
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    asked.clear()
    with pytest.warns(UserWarning, match="cannot be kept in .*file/programs"):
        devices._keep_programs(tmp_path / "file" / "programs")
    assert asked == {}
