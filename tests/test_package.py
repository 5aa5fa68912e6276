"""What an installation provides, and what it must not."""

import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gram_fast
from gram_fast.extension import _C

ROOT = Path(__file__).parents[1]


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


def test_the_extension_and_torch_share_one_libgomp():
    code = (
        "import gram_fast.extension, torch; "
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}, torch.__path__[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    libgomp, torch = run.stdout.split()
    assert libgomp.startswith(torch), run.stdout


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://host.org/team/project.git", "https://host.org/team/project"),
        ("https://oauth2:SECRET@host.org:8443/team/project.git", "https://host.org:8443/team/project"),
        ("git@host.org:team/project.git", "https://host.org/team/project"),
        ("ssh://git@host.org:2222/team/project", "https://host.org/team/project"),
        ("/srv/project", None),
        ("file:///srv/project.git", None),
        ("", None),
    ],
)
def test_the_address_of_a_project_has_no_password(remote, address):
    assert runpy.run_path(str(ROOT / "setup.py"))["web_address"](remote) == address


def test_the_description_on_an_index_links_to_no_file_that_is_not_there():
    description = importlib.metadata.metadata("gram_fast").get_payload()
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links), links


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-newest.txt"])
def test_dependencies_are_bounded_by_what_was_tested(constraints):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [extra for name, extra in project["optional-dependencies"].items() if name not in ("test", "lint")]
    needed = [Requirement(text) for text in (*project["dependencies"], *(text for extra in extras for text in extra))]
    needed = [requirement for requirement in needed if requirement.name != project["name"]]
    lines = [line for line in (ROOT / constraints).read_text("utf-8").splitlines() if not line.startswith("#")]
    tested = {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in needed:
        assert any(bound.operator == "<" for bound in requirement.specifier), f"{requirement} has no upper bound"
        assert tested[requirement.name.lower()] in requirement.specifier, f"{requirement} excludes what was tested"
