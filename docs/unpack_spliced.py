"""Unpack the spliced MSR-VTT set and declare it: ``python unpack_spliced.py FOLDER_WITH_TARS TARGET``.

The worked example of ``your-own-dataset.md``. Needs nothing but the standard library. TARGET becomes a workspace with
the annotation files, one folder of features per encoder, and a ``vlbench.toml``.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

DECLARATION = """\
[datasets.spliced]
clip_s = 2.0
features = "motion+appearance+semantic/minilm"

[datasets.spliced.splits]
train = "train.jsonl"
val = "val.jsonl"
test = "test.jsonl"

[datasets.spliced.video]
motion = "motion"
appearance = "appearance"
semantic = "semantic"

[datasets.spliced.text.minilm]
dir = "text"
file = "{source}.npz"
key = "last_hidden_state"
"""


def unpack(source: Path, target: Path) -> None:
    """Copy annotations, unpack both tars, write the declaration. Running it again changes nothing."""
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        shutil.copyfile(source / f"{split}.jsonl", target / f"{split}.jsonl")
    for name in ("features_visual.tar", "features_text.tar"):
        with tarfile.open(source / name) as archive:
            archive.extractall(target, filter="data")
    (target / "vlbench.toml").write_text(DECLARATION, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python unpack_spliced.py FOLDER_WITH_TARS TARGET")
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
