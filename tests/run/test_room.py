"""The room stands by itself: what looks at a run's folder starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import megatron_ngpt.run

FOLDER = Path(megatron_ngpt.run.__file__).parent
ROOMS = {"config", "data", "mesh", "ops", "model", "parallel", "engine", "train", "estimate"}


def test_no_module_brings_torch_or_numpy():
    modules = sorted(f"megatron_ngpt.run.{path.stem}" for path in FOLDER.glob("[!_]*.py"))
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done


def test_its_only_other_room_is_the_configuration():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron_ngpt"):
                room = [*node.module.split("."), ""][1]
                assert room not in ROOMS - {"config"}, f"{path.name} imports {node.module}"
