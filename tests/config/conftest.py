"""What a refused command line tells."""

from collections.abc import Callable

import pytest

from megatron_ngpt.config import parse_config


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """The message on stderr of a command line that must end with exit code 2."""

    def message(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse_config(words)
        assert ended.value.code == 2
        return capsys.readouterr().err

    return message


@pytest.fixture
def yaml_file(tmp_path) -> Callable[[str], str]:
    """Path of a YAML file with this text."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write
