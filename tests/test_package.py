"""What an installation provides, and what it must not."""

import importlib.metadata
import subprocess
import sys

import gram_fast
from gram_fast.extension import _C


def test_subpackages_import_under_the_package_name_only():
    code = (
        "import gram_fast.kernels.tree_attention, gram_fast.training, importlib.util as u; "
        "print(u.find_spec('training'), u.find_spec('kernels'))"
    )
    # From a folder that is not the repository's, where the top-level folders would be found by place.
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["None", "None"], run.stderr


def test_versions_agree():
    assert importlib.metadata.version("gram_fast") == gram_fast.__version__


def test_the_extension_says_what_it_has():
    assert isinstance(_C.has_cuda, bool)


def test_presets_are_shipped():
    assert gram_fast.preset_names() == [
        "genrm",
        "gram",
        "gram-demo",
        "gram-llama3",
        "gram-qwen3",
        "short",
        "skywork-critic",
        "verifier",
    ]
