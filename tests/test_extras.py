"""Optional packages: there, not there, or there in name only."""

from __future__ import annotations

import pytest

from megatron_ngpt.extras import available, require


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Folder in which a test installs packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_folder_without_a_package_is_not_available(site):
    (site / "ngpt_hollow" / "cute").mkdir(parents=True)
    (site / "ngpt_hollow" / "cute" / "__init__.py").write_text("")
    assert not available("ngpt_hollow")
    assert available("ngpt_hollow.cute")
    with pytest.raises(ModuleNotFoundError, match=r"hollow is a folder without .*\[gpu\]"):
        require("ngpt_hollow", "gpu", "this test")


def test_package_of_the_same_name_is_not_available(site):
    (site / "ngpt_other.py").write_text("func_v4 = 1")
    assert available("ngpt_other")
    assert available("ngpt_other", "func_v4")
    assert not available("ngpt_other", "func_v2")
    with pytest.raises(ModuleNotFoundError, match="has no func_v2"):
        require("ngpt_other", "gpu", "this test", "func_v2")


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "AttributeError"])
def test_package_that_fails_to_import_is_not_available(site, error):
    (site / f"ngpt_broken_{error}.py").write_text(f"raise {error}('its other half is missing')")
    assert not available(f"ngpt_broken_{error}")
    with pytest.raises(ModuleNotFoundError, match="its other half is missing"):
        require(f"ngpt_broken_{error}", "gpu", "this test")
