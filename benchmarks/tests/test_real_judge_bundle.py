"""benchmarks/real_judge/bundle.py: what is unpacked is what was packed, and a damaged part is refused."""

import random
from pathlib import Path

import pytest

from benchmarks.real_judge.bundle import pack, receive, unpack


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "sent"
    (folder / "inputs").mkdir(parents=True)
    (folder / "inputs" / "labels.jsonl").write_text('{"prompt": "Why?"}\n' * 1000)
    (folder / "model.gguf").write_bytes(random.Random(0).randbytes(5000))
    return pack(folder, [folder / "inputs", folder / "model.gguf"], tmp_path / "parts", part_bytes=2000)


def test_parts_arrive_in_any_order(parts: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert len(parts) == 3
    assert all(path.stat().st_size <= 2000 for part in parts for path in part.glob("*.part"))
    assert receive(parts[2], place) == [1, 2]
    assert receive(parts[0], place) == [2]
    assert receive(parts[0], place) == [2]
    assert receive(parts[1], place) == []
    for _ in range(2):
        found = unpack(place)
        for name in ("inputs/labels.jsonl", "model.gguf"):
            assert (found / name).read_bytes() == (tmp_path / "sent" / name).read_bytes()


def test_a_damaged_part_and_one_of_another_bundle_are_refused(parts: list[Path], tmp_path: Path) -> None:
    (file,) = parts[1].glob("*.part")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"1\.part is not what was packed: its checksum differs"):
        receive(parts[1], tmp_path / "place")
    (tmp_path / "sent" / "model.gguf").write_bytes(b"another")
    others = pack(tmp_path / "sent", [tmp_path / "sent" / "model.gguf"], tmp_path / "others")
    receive(parts[0], tmp_path / "place")
    with pytest.raises(ValueError, match=r"is of another bundle than the parts in"):
        receive(others[0], tmp_path / "place")
