"""README's comparison is docs/comparison.yaml's, and what it says of this repository is so."""

import pytest

from tests.jobs import REPOSITORY
from tests.tools.commands import tool

check = tool("check_comparison")


def test_readme_has_the_files_table():
    readme = (REPOSITORY / "README.md").read_text()
    assert check.with_table(readme, check.read_comparison()) == readme


def test_what_the_table_says_of_this_repository():
    """Where this fails the table is out of date: mend docs/comparison.yaml, run it with --write."""
    faults = list(check.wrong_cells(check.read_comparison(), {"here": REPOSITORY}))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ({"files": "*.py", "has": "def train"}, ""),
        ({"files": "*.py", "has": "class"}, "peer: *.py has no class"),
        ({"files": "*.py", "lacks": "ngpt"}, ""),
        ({"files": "*.py", "lacks": "TRAIN"}, "peer: a.py has TRAIN"),
        # a pattern that is missed because its file has moved must not count as missing
        ({"files": "core/**/*.py", "lacks": "ngpt"}, "peer has no core/**/*.py"),
    ],
)
def test_a_reason_holds_or_says_what_is_wrong(tmp_path, reason, fault):
    (tmp_path / "a.py").write_text("def train(): ...\n")
    assert check.Reason.read("peer", reason).fails(tmp_path) == fault


def test_a_missing_checkout_is_named_with_the_way_to_get_it(tmp_path, capsys):
    assert check.main(["--checkouts", str(tmp_path), "--only", "ngpt"]) == 2
    assert "git clone https://github.com/NVIDIA/ngpt" in capsys.readouterr().out


def test_another_version_is_said(tmp_path, capsys):
    (tmp_path / "OLMo-core/olmo_core").mkdir(parents=True)
    (tmp_path / "OLMo-core/olmo_core/version.py").write_text('_MAJOR = "9"\n')
    assert check.main(["--checkouts", str(tmp_path), "--only", "OLMo-core"]) == 1
    assert "another version: OLMo-core" in capsys.readouterr().out
