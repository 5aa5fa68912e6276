"""Builds gram_fast._C with CMake and maps the top-level folders into the package; all metadata is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# Import name -> folder. The symlinks gram_fast/kernels and gram_fast/training say the same to pytest, mypy and pkgutil.
PACKAGE_DIRS = {"gram_fast": "gram_fast", "gram_fast.kernels": "kernels", "gram_fast.training": "training"}


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt. GRAM_FAST_CUDA=AUTO|ON|OFF and GRAM_FAST_SANITIZE=ON are passed on."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "RelWithDebInfo" if self.debug else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output,
            # Always named: a reused build folder remembers the ninja of an isolated environment that is gone.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "GRAM_FAST_CUDA": os.environ.get("GRAM_FAST_CUDA", "AUTO"),
            "GRAM_FAST_SANITIZE": os.environ.get("GRAM_FAST_SANITIZE", "OFF"),
        }
        import pybind11

        options["pybind11_DIR"] = pybind11.get_cmake_dir()
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


def packages() -> list[str]:
    found = []
    for name, folder in PACKAGE_DIRS.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    # The symlinks make find_packages see kernels and training a second time below gram_fast.
    return sorted(set(found))


def address() -> str | None:
    """Web address of the repository that this clone comes from; None of a clone of a folder and without git."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    return web_address(subprocess.run(git, capture_output=True, text=True).stdout.strip())


def web_address(remote: str) -> str | None:
    """Web address of a remote by https or ssh, without the user, who may carry a password; None of any other."""
    by_https = re.fullmatch(r"https://(?:[^/@]*@)?([^/@]+)/(.+)", remote)
    by_ssh = re.fullmatch(r"ssh://(?:[^/@]*@)?([^/@:]+)(?::\d+)?/(.+)|(?:[^/@:]+@)([^/@:]+):(.+)", remote)
    found = [part for part in (by_https or by_ssh).groups() if part] if by_https or by_ssh else None
    return f"https://{found[0]}/{found[1].removesuffix('.git')}" if found else None


def readme(source: str | None) -> str:
    """README.md as a package index shows it: links to files of the repository go to `source`, or are plain text."""
    link = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")
    to = r"\1[\2](" + f"{source}/blob/HEAD/" + r"\3)" if source else r"\2"
    return link.sub(to, (ROOT / "README.md").read_text("utf-8"))


if __name__ == "__main__":
    source = address()
    setup(
        long_description=readme(source),
        long_description_content_type="text/markdown",
        project_urls={"Source": source, "Changelog": f"{source}/blob/HEAD/CHANGELOG.md"} if source else {},
        packages=packages(),
        package_dir=PACKAGE_DIRS,
        ext_modules=[
            Extension(
                "gram_fast._C",
                sources=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()),
                depends=["CMakeLists.txt"],
            )
        ],
        cmdclass={"build_ext": CMakeBuild},
    )
