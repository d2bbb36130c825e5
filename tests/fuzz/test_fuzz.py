"""A few hundred inputs of each kind; ``python -m tests.fuzz`` does a hundred thousand."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ngpt.config.yaml_file import parsed
from megatron_ngpt.engine.checkpoint.index import checksum, read_index
from megatron_ngpt.run.durable import DamagedCheckpoint
from tests.fuzz.run import outcome
from tests.fuzz.targets import NAMES, targets

SLOW = {"settings": 40, "records": 100, "owner": 100, "manifest": 100, "tokenizer_json": 100}
SEEDS = {"manifest": "ValueError"}  # its checksums are those of no pair
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_nearly_right_is_read_or_refused(known, name):
    target, chance = known[name], random.Random(name)
    for seed in target.seeds:
        assert outcome(target, seed) == SEEDS.get(name, "read")
    for _ in range(SLOW.get(name, 300)):
        content = target.mutate(chance.choice(target.seeds), chance)
        outcome(target, content)  # raises what is not one of our own errors


@pytest.mark.parametrize("name", ["manifest", "index", "state", "weights_config"])
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(document=JSON)
def test_any_json(known, name, document):
    outcome(known[name], json.dumps(document).encode())


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", ""])
def test_no_file_of_a_checkpoint_lies_elsewhere(tmp_path, name):
    content = {"format": 1, "files": {name: {"size": 1, "crc32": 1}}, "tensors": {}}
    content["crc32"] = checksum(content)
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpoint, match="is no name of a file in it"):
        read_index(tmp_path)


def test_a_few_lines_of_yaml_that_stand_for_too_many_values():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 6)]
    with pytest.raises(ValueError, match="line 5: over 100,000 values, all aliases written out"):
        parsed("\n".join(lines))
    with pytest.raises(ValueError, match=r"\*a is part of what it stands for"):
        parsed("a: &a [1, *a]")
    with pytest.raises(ValueError, match="line 1: a list or a section stands where a name must"):
        parsed("{a: 1, [b]}")
    with pytest.raises(ValueError, match="nested too deep"):
        parsed("[" * 60 + "]" * 60)
    assert parsed("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
