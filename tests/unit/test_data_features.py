"""Protects access to feature files: fallbacks, joined files, headers instead of reading, names of what is broken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_files import small
from vlbench.cards.kinds import Features
from vlbench.data.base import Dataset, open_dataset
from vlbench.data.features import Encoder
from vlbench.data.types import Query
from vlbench.errors import CardError, DataError
from vlbench.workspace import find

QUERY = Query(qid=7, text="t", vid="v", duration_s=20.0, source_video="up", extra={"source": "clip3"}, domain="BK")
ALL = Features(("motion", "look"), ("words",))


def encoder(
    folder: Path, *files: str, key: str = "features", width: int | None = None, cache: Path | None = None
) -> Encoder:
    return Encoder("mine", folder, files=files, key=key, width=width, where="vlbench.toml:3", cache=cache)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset("small", find(small(tmp_path)))


def test_names_use_any_field_of_the_row(tmp_path: Path) -> None:
    assert encoder(tmp_path, "{vid}_{qid}_{source}_{domain}.npy").key(QUERY) == "v_7_clip3_BK.npy"
    plain = Query(qid=7, text="t", vid="v", duration_s=20.0, source_video="up")
    assert encoder(tmp_path, "{source}.npz").key(plain) == "up.npz"
    with pytest.raises(DataError, match=r'vlbench\.toml:3: .*\{sorce\}.*did you mean "source"'):
        encoder(tmp_path, "{sorce}.npz").key(QUERY)
    with pytest.raises(DataError, match="is not a pattern"):
        encoder(tmp_path, "{vid.npz").key(QUERY)


def test_npy_stands_in_for_a_missing_or_broken_npz(tmp_path: Path) -> None:
    rows = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "v.npy", rows)
    found = encoder(tmp_path, "{vid}.npz")
    np.testing.assert_array_equal(found.read(QUERY), rows)
    (tmp_path / "v.npz").write_bytes(b"not an archive")
    np.testing.assert_array_equal(found.read(QUERY), rows)
    assert found.shape(QUERY) == (3, 2, np.dtype(np.float64))
    np.savez(tmp_path / "v.npz", features=rows + 1)
    np.testing.assert_array_equal(found.read(QUERY), rows + 1)


def test_two_files_are_joined_before_anything_else(tmp_path: Path) -> None:
    np.save(tmp_path / "v_rgb.npy", np.ones((5, 2), np.float16))
    np.save(tmp_path / "v_opt.npy", np.zeros((4, 3), np.float32))
    found = encoder(tmp_path, "{vid}_rgb.npy", "{vid}_opt.npy")
    assert found.read(QUERY).tolist() == [[1, 1, 0, 0, 0]] * 4
    assert found.shape(QUERY) == (4, 5, np.dtype(np.float32))


def test_a_sentence_vector_is_one_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "qid7.npz", pooler_output=np.ones(8, np.float32))
    assert encoder(tmp_path, "qid{qid}.npz", key="pooler_output").read(QUERY).shape == (1, 8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"other": np.ones((2, 2))}, 'has no array "features" \\(it has: other\\)'),
        ({"features": np.ones((2, 2, 2))}, "has shape \\(2, 2, 2\\), not \\(rows, columns\\)"),
        ({"features": np.ones((0, 2))}, "has shape \\(0, 2\\)"),
        ({"features": np.array([["a"]])}, "holds <U1, not numbers"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "v.npz", **content)
    found = encoder(tmp_path, "{vid}.npz")
    for look in (found.read, found.shape):
        with pytest.raises(DataError, match=rf"v\.npz: cannot be read: {says}"):
            look(QUERY)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        encoder(tmp_path, "{vid}.npy").read(QUERY)


def test_missing_broken_and_odd_files_are_all_named(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.missing("report", ALL) == []
    dataset.require(ALL)
    (tmp_path / "motion" / "val0.npz").unlink()
    (tmp_path / "look" / "val1.npz").write_bytes((tmp_path / "look" / "val1.npz").read_bytes()[:40])
    np.savez(tmp_path / "words" / "qid102.npz", last_hidden_state=np.ones((2, 9)))
    problems = {Path(problem.path).name: problem.what for problem in dataset.missing("report", ALL)}
    assert set(problems) == {"val0.npz", "val1.npz", "qid102.npz"}
    assert "does not exist" in problems["val0.npz"]
    assert "cannot be read" in problems["val1.npz"]
    assert problems["qid102.npz"] == "9 columns where words has 5"
    with pytest.raises(DataError, match=r"3 feature files of small cannot be used: .*val0\.npz"):
        dataset.require(ALL)
    assert dataset.missing("fit", ALL) == []


def test_a_missing_folder_is_one_problem_with_its_declaration(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "motion").rename(tmp_path / "moved")
    (problem,) = dataset.missing("report", ALL)
    assert f"{tmp_path / 'vlbench.toml'}:8" in problem.what


def test_widths_come_from_the_files(dataset: Dataset, tmp_path: Path) -> None:
    assert dict(dataset.video_encoders) == {"motion": 6, "look": 4}
    assert dict(dataset.text_encoders) == {"words": 5}
    assert "blip2" not in dataset.video_encoders
    with pytest.raises(CardError, match=r'"mtion" is not a video encoder .*did you mean "motion"'):
        dataset.video_encoders["mtion"]
    with pytest.raises(CardError, match="known: look, motion"):
        dataset.check_features(Features(("slowfast",), ("words",)))


def test_an_encoder_that_is_not_used_may_have_no_files(tmp_path: Path) -> None:
    text = (small(tmp_path) / "vlbench.toml").read_text()
    (tmp_path / "vlbench.toml").write_text(text.replace('look = "look"', 'look = "look"\nabsent = "nowhere"'))
    dataset = open_dataset("small", find(tmp_path))
    assert list(dataset.video_encoders) == ["motion", "look", "absent"]
    assert dataset.video_encoders["motion"] == 6
    with pytest.raises(DataError, match="does not exist"):
        dataset.video_encoders["absent"]


def test_a_declared_width_is_checked(tmp_path: Path) -> None:
    text = (small(tmp_path) / "vlbench.toml").read_text()
    (tmp_path / "vlbench.toml").write_text(text.replace('motion = "motion"', 'motion = { dir = "motion", width = 7 }'))
    problems = open_dataset("small", find(tmp_path)).missing("report", ALL)
    assert [problem.what for problem in problems] == ["6 columns where motion has 7"] * 4


def test_fingerprints_follow_content_and_not_form(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_dataset("small", find(tmp_path)).fingerprint("report", ALL)

    first = (small(tmp_path), fingerprint())[1]
    assert fingerprint() == first
    path = tmp_path / "motion" / "val0.npz"
    rows = np.load(path)["features"]
    np.savez(path, features=rows)  # the same array without compression
    assert fingerprint() == first
    rows[0, 0] += 1
    np.savez(path, features=rows)
    changed = fingerprint()
    assert changed != first
    text = (tmp_path / "val.jsonl").read_text()
    (tmp_path / "val.jsonl").write_text(text.replace("[4, 4, 4]", "[4, 4, 3]"))
    assert fingerprint() not in (first, changed)


def test_a_fingerprint_needs_only_its_own_files(dataset: Dataset, tmp_path: Path) -> None:
    first = dataset.fingerprint("report", Features(("motion",), ("words",)))
    np.savez(tmp_path / "look" / "val0.npz", features=np.ones((10, 4)))
    np.savez(tmp_path / "motion" / "train0.npz", features=np.ones((10, 6)))
    again = open_dataset("small", find(tmp_path))
    assert again.fingerprint("report", Features(("motion",), ("words",))) == first
    (tmp_path / "motion" / "val3.npz").unlink()
    with pytest.raises(DataError, match=r"val3\.npz: the file does not exist"):
        again.fingerprint("report", Features(("motion",), ("words",)))


def test_facts_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "f", tmp_path / "cache"
    folder.mkdir()
    path = folder / "v.npy"
    np.save(path, np.zeros((4, 3)))
    first = encoder(folder, "{vid}.npy", cache=cache).digest([QUERY])
    (inventory,) = cache.iterdir()
    stat = path.stat()
    np.save(path, np.ones((4, 3)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time: not looked at again
    assert encoder(folder, "{vid}.npy", cache=cache).digest([QUERY]) == first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert encoder(folder, "{vid}.npy", cache=cache).digest([QUERY]) != first
    inventory.write_text("damaged")
    assert encoder(folder, "{vid}.npy", cache=cache).digest([QUERY]) != first


def test_no_damage_escapes_as_anything_but_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10, 6)).astype(np.float16)
    np.savez_compressed(tmp_path / "a.npz", features=rows)
    np.save(tmp_path / "b.npy", rows)
    refused = 0
    for name in ("a.npz", "b.npy"):
        path, whole = tmp_path / name, (tmp_path / name).read_bytes()
        found = encoder(tmp_path, name)
        for _ in range(400):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            path.write_bytes(bytes(damaged))
            for look in (found.read, found.shape):
                try:
                    look(QUERY)
                except DataError as error:
                    refused += 1
                    assert error.where == str(path)
    assert refused > 800


def test_a_file_that_is_cut_off_is_found_without_reading_it(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((50, 4)))
    whole = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(whole[:-8])
    (problem,) = encoder(tmp_path, "{vid}.npy").problems([QUERY])
    assert "is cut off" in problem.what
