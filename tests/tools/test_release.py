"""What tools/release.sh compares holds at every commit."""

import importlib.util
import re

import yaml

import megatron_ngpt
from tests.jobs import REPOSITORY


def _links():
    path = REPOSITORY / "tools/release/check_links.py"
    spec = importlib.util.spec_from_file_location("check_links", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_version_is_the_same_everywhere():
    """The newest release of the changelog is that of the package, until it is raised."""
    version = megatron_ngpt.__version__
    released = re.findall(
        r"^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M
    )
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert released[0] == version or version not in released


def test_unreleased_is_on_top_of_the_changelog():
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"


def test_every_link_of_the_pages_leads_to_a_file():
    assert _links().broken(REPOSITORY) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("[b](b.md) [c](../c.md#x) `[d](d.md)` [e](https://e)")
    (tmp_path / "c.md").touch()
    assert _links().broken(tmp_path) == ["docs/a.md: b.md"]


def test_issue_templates_are_forms():
    for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            for item in form["body"]:
                assert all(isinstance(o, str) for o in item["attributes"].get("options", []))
