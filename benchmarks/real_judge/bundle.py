"""Everything that a machine without a network needs for the benchmark, in parts that are small enough to be sent.

An archive holds the prepared inputs, the model's .gguf file and wheels. It is cut into parts, each with a list of all
checksums. The other machine keeps the parts that it receives, and unpacks them when all are there. Needs Python's
standard library alone, as that machine has not built the package yet.
"""

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

PART_BYTES = 52 * 2**20
"""Most bytes of a part: with the tree of 11 MiB, less than the 64 MiB that a call takes."""
_MANIFEST = "manifest.json"
# Texts repeat in the files of labels, of unlabeled pairs and of tests; the window spans them all.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}]


def pack(folder: Path, files: Iterable[Path], out: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Writes files and folders, by their names, into an archive in parts; a manifest is beside every part.

    Returns a folder for each part, each of which is sent in a call of its own.
    """
    archive = out / "archive"
    out.mkdir(parents=True, exist_ok=True)
    with lzma.open(archive, "wb", filters=_FILTERS) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files:
            tar.add(path, path.relative_to(folder))
    content = archive.read_bytes()
    archive.unlink()
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    manifest = {"parts": [hashlib.sha256(part).hexdigest() for part in parts]}
    folders = []
    for number, part in enumerate(parts):
        folders.append(out / f"part-{number + 1}")
        folders[-1].mkdir(exist_ok=True)
        (folders[-1] / f"{number}.part").write_bytes(part)
        (folders[-1] / _MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return folders


def receive(part: Path, place: Path) -> list[int]:
    """Keeps a part that was sent -> numbers of the parts that are still missing, from 1.

    Raises ValueError for a part that arrived damaged, or that is of another bundle than the ones before.
    """
    manifest = (part / _MANIFEST).read_text("utf-8")
    place.mkdir(parents=True, exist_ok=True)
    known = place / _MANIFEST
    if known.exists() and known.read_text("utf-8") != manifest:
        raise ValueError(f"{part} is of another bundle than the parts in {place}: expected an empty place")
    sums = json.loads(manifest)["parts"]
    for path in part.glob("*.part"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != sums[int(path.stem)]:
            raise ValueError(f"{path} is not what was packed: its checksum differs")
        shutil.copy(path, place)
    known.write_text(manifest, "utf-8")
    return [number + 1 for number in range(len(sums)) if not (place / f"{number}.part").exists()]


def unpack(place: Path) -> Path:
    """Joins the parts of a place and unpacks them, once -> the folder of the contents."""
    contents = place / "contents"
    if not contents.exists():
        count = len(json.loads((place / _MANIFEST).read_text("utf-8"))["parts"])
        joined, staged = place / "joined", place / "staged"
        with joined.open("wb") as whole:
            for number in range(count):
                whole.write((place / f"{number}.part").read_bytes())
        with lzma.open(joined) as packed, tarfile.open(fileobj=packed) as tar:
            tar.extractall(staged, filter="data")
        joined.unlink()
        staged.rename(contents)
    return contents


def install(wheels: Path, site: Path) -> Path:
    """Installs all wheels of a folder into a folder of their own, once and without a network -> that folder."""
    if not site.exists():
        staged = site.with_name(f"{site.name}.partial")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target"]
        subprocess.run([*pip, str(staged), *map(str, sorted(wheels.glob("*.whl")))], check=True)
        staged.rename(site)
    return site


def with_site(site: Path) -> None:
    """Makes the packages of a folder importable here and in processes that are started."""
    sys.path.append(str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(site)]))
