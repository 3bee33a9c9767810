"""What is installed with vaccel, and what is said where something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vaccel
from vaccel.extras import EXTRAS, command, needed

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parent.parent
#: Where a distribution is called otherwise than its module.
CALLED = {"imageio-ffmpeg": "imageio_ffmpeg", "scikit-image": "skimage", "pillow": "PIL", "nvidia-ml-py": "pynvml",
          "cvvdp": "pycvvdp"}  # fmt: skip


def project():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def module_of(requirement: str) -> str:
    name = requirement.split(";")[0].split("[")[0]
    for sign in "<>=! ":
        name = name.split(sign)[0]
    return CALLED.get(name, name)


def test_the_package_itself_needs_little():
    assert {module_of(r) for r in project()["dependencies"]} == {"torch", "numpy", "safetensors", "msgspec", "filelock"}


@pytest.mark.parametrize("extra", ["diffusers", "cli", "report", "train", "app", "ray"])
def test_what_an_extra_brings_is_named_by_it(extra):
    found = project()["optional-dependencies"]
    for module in map(module_of, found[extra]):
        if module != "vaccel":
            assert module in EXTRAS[extra] or any(module in EXTRAS[other] for other in EXTRAS)
    for module in EXTRAS[extra]:
        assert module in map(module_of, found[extra]), f"{module} is named by {extra}, which does not bring it"
    assert f"vaccel[{','.join(sorted(['cli', 'diffusers', 'report', 'train']))}]" in found["all"]


def test_a_missing_package_is_said_with_what_brings_it():
    with pytest.raises(ModuleNotFoundError, match=r"x needs peft\.utils: pip install 'vaccel\[train\]'"), needed("x"):
        raise ModuleNotFoundError("No module named 'peft.utils'", name="peft.utils")
    with pytest.raises(ModuleNotFoundError, match=r"^other$"), needed("x"):
        raise ModuleNotFoundError("other", name="somebody.elses")
    with pytest.raises(ModuleNotFoundError, match="needs typer"), needed("outer"), needed("inner"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer")
    assert command("numpy") == ""


@pytest.mark.parametrize(("module", "arguments", "says"), [
    ("typer", ["--version"], "this command needs typer: pip install 'vaccel[cli]'"),
    ("diffusers", ["generate", "a cat"], ": pip install 'vaccel[diffusers]'"),
])  # fmt: skip
def test_the_command_line_says_what_is_missing(module, arguments, says):
    code = f"import sys; sys.modules[{module!r}] = None; from vaccel.__main__ import main; main()"
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert says in said.stderr
    assert "Traceback" not in said.stderr


def test_the_version():
    said = subprocess.run([sys.executable, "-m", "vaccel", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"vaccel {vaccel.__version__}" == f"vaccel {project()['version']}"
    other = (ROOT / "packages" / "vaccel-cu13" / "pyproject.toml").read_text()
    assert f'version = "{vaccel.__version__}"' in other
    assert f'"vaccel=={vaccel.__version__}"' in other
    assert f'"{vaccel.__version__}"' in (ROOT / "packages" / "vaccel-cu13" / "vaccel_cu13" / "__init__.py").read_text()


def test_a_cuda_library_of_another_version_is_refused(tmp_path, monkeypatch):
    from vaccel.ops import _native

    (tmp_path / "vaccel_cu13.py").write_text("__version__ = '9.9'\nLIBRARY = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vaccel_cu13", raising=False)
    found, why = _native._packaged()
    assert not found
    assert why == f"vaccel-cu13 is of version 9.9, and vaccel of {vaccel.__version__}: install that one"
