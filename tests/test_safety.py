"""What reads files and talks to hosts runs nothing that they hold: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "vaccel").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"),
                  *(ROOT / "integrations").rglob("*.py"), *(ROOT / "packages").rglob("*.py")])  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
#: Builtins and functions of modules that run text; ``re.compile`` and methods of that name are none of them.
RUN = {"eval", "exec", "compile", "__import__"}
CALLS = {("os", "system"), ("os", "popen"), ("torch", "load"), ("torch", "save"), ("yaml", "load"),
         ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}  # fmt: skip


def faults(text: str) -> list[str]:
    """What a source does that it must not, with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        found += [f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in RUN:
            found.append(f"line {node.lineno}: calls {called.id}()")
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            pair = (called.value.id, called.attr)
            if pair in CALLS or pair == ("builtins", "eval"):
                found.append(f"line {node.lineno}: calls {'.'.join(pair)}()")
        shell = [k.value for k in node.keywords if k.arg in ("shell", "allow_pickle")]
        found += [f"line {node.lineno}: shell or pickle" for value in shell
                  if not (isinstance(value, ast.Constant) and value.value is False)]  # fmt: skip
    return found


@pytest.mark.fast
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    assert faults(path.read_text()) == []


@pytest.mark.fast
@pytest.mark.parametrize("text", [
    "import pickle", "from cloudpickle import loads", "eval('1')", "exec(text)", "import os\nos.system('ls')",
    "subprocess.run('ls', shell=True)", "torch.load(path)", "np.load(path, allow_pickle=True)", "__import__(name)",
    "def f():\n    import marshal", "import yaml\nyaml.load(text)",
])  # fmt: skip
def test_the_check_can_fail(text):
    assert faults(text)


@pytest.mark.fast
@pytest.mark.parametrize(
    "text", ["re.compile('a')", "model.eval()", "subprocess.run(['ls'], shell=False)", "ast.literal_eval(x)"]
)
def test_what_is_harmless_is_left_alone(text):
    assert faults(text) == []
