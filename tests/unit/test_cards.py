"""Protects cards: inheritance, defaults, edits, and errors that name file and line, the near miss and the known names."""

from pathlib import Path

import pytest

from vlbench.cards.library import cards, load_ablation, load_variant
from vlbench.cards.read import line_of
from vlbench.cards.resolve import edit, flatten
from vlbench.errors import CardError

TEXT = """\
title = "x"          # 1
[features]
video = ["a"]        # 3
[model.fusion]
use = "bicmf"        # 5
layers = 2
[[reported]]
dataset = "d"        # 8
[[reported]]
dataset = "e"        # 10
values = { "mr-map" = 1.0 }
[search]
"train.lr" = 3       # 13
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["title"], 1),
        (["features", "video"], 3),
        (["model", "fusion", "layers"], 6),
        (["model", "fusion", "absent"], 4),
        (["reported", 1, "dataset"], 10),
        (["reported", 1, "values", "mr-map"], 11),
        (["search", "train.lr"], 13),
        (["nowhere"], None),
    ],
)
def test_the_line_of_a_key(path, line):
    assert line_of(TEXT, path) == line


@pytest.fixture
def card(workspace):
    (workspace / "models").mkdir()

    def write(text: str, name: str = "mine") -> Path:
        path = workspace / "models" / f"{name}.toml"
        path.write_text(text)
        return workspace

    return write


def test_a_card_writes_only_what_differs_from_its_parent(card):
    root = card('extends = "videolights"\ntitle = "Mine"\n[model.fusion]\nlayers = 3\n')
    mine, parent = load_variant("mine", root), load_variant("videolights", root)
    assert {k for k, v in flatten(mine).items() if flatten(parent)[k] != v} == {"model.fusion.layers"}
    assert mine.origin["model.fusion.layers"].endswith("mine.toml:4")
    assert mine.origin["model.fusion.use"].endswith("videolights.toml:13")
    assert mine.origin["model.decoder.anchors"].endswith("qd_detr.toml:32")
    assert mine.origin["model.matcher.span"] == "catalog"


def test_a_new_component_starts_from_its_own_defaults(card):
    root = card('extends = "videolights"\n[model.fusion]\nuse = "one-way"\n')
    assert flatten(load_variant("mine", root))["model.fusion.layers"] == 2  # bicmf's one layer is not inherited


def test_a_workspace_card_hides_a_built_in_one(card):
    root = card('extends = "qd_detr"\ntitle = "Other"\n', "videolights")
    assert load_variant("videolights", root).title == "Other"
    assert cards("models", root)["qd_detr"].parent != root / "models"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "videolight"', r'mine.toml:1: "videolight" is not a variant; did you mean "videolights"\? known: .*qd_detr'),
        ('extends = "mine"', r"mine.toml:1: .*leads back"),
        ('extends = "qd_detr"\n[model.refinement]\nuse = "fraa"', r'mine.toml:3: .*not a component of refinement; did you mean "fra"'),
        ('extends = "qd_detr"\n[model.refinment]\nuse = "fra"', r'mine.toml:3: unknown key "model.refinment.use"; did you mean "refinement"'),
        ('extends = "qd_detr"\n[loss.spam]\nuse = "l1"', r'mine.toml:3: unknown key "loss.spam.use"; did you mean "span"'),
        ('extends = "qd_detr"\n[model.fusion]\nlayer = 2', r'mine.toml:3: unknown key "model.fusion.layer"; "one-way" takes: layers'),
        ('extends = "qd_detr"\n[model.fusion]\nlayers = "2"', r"mine.toml:3: model.fusion.layers must be a whole number \(got '2', a text\)"),
        ('extends = "qd_detr"\n[train]\nlr = -1.0', r"mine.toml:3: train.lr must be above 0 \(got -1.0\)"),
        ('extends = "qd_detr"\n[train]\nselect = "mr-mapp"', r'mine.toml:3: train.select names "mr-mapp".*did you mean "mr-map"'),
        ('extends = "qd_detr"\n[train]\nlearning_rate = 1.0', r'mine.toml:3: unknown key "train.learning_rate"'),
        ('extends = "qd_detr"\n[features]\nvideo = ["clip", "clip"]', r"mine.toml:3: features.video .* twice"),
        ('extends = "qd_detr"\ntitel = "x"', r'mine.toml:2: unknown key "titel"; did you mean "title"'),
        ('extends = "qd_detr"\n[loss.task_coupled]\nuse = "cosine"', r"task_coupled reads what model.feedback"),
        ("extends = \n", r"mine.toml:1: not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(card, text, message):
    root = card(text)
    with pytest.raises(CardError, match=message) as caught:
        load_variant("mine", root)
    assert "\n" not in str(caught.value)


def test_an_edit_is_printed_as_what_it_changes(card):
    base = load_variant("videolights", card("extends = 'qd_detr'"))
    arm = edit(base, {"model.refinement.use": "none"}, name="without FRA", origin="--set")
    assert [str(e) for e in arm.edits] == ["model.refinement.use: fra -> none"]
    assert arm.variant.slots["refinement"].args == {}
    same = edit(base, {"model.refinement.use": "fra"}, origin="--set")
    assert same.edits == () and flatten(same.variant) == flatten(base)


def test_emptying_a_loss_drops_its_weight_and_filling_it_takes_the_default(card):
    base = load_variant("videolights", card("extends = 'qd_detr'"))
    without = edit(base, {"loss.alignment.use": "none"}, origin="--set")
    assert without.variant.losses["alignment"].args == {}
    again = edit(without.variant, {"loss.alignment.use": "cosine"}, origin="--set")
    assert again.variant.losses["alignment"].args == {"weight": 1.0}


def test_an_ablation_card_is_checked(workspace):
    (workspace / "ablations").mkdir()
    path = workspace / "ablations" / "mine.toml"
    path.write_text(
        'component = "fra"\nquestion = "?"\nvariants = ["videolights"]\nprimary = ["mr-mapp"]\n[[arm]]\nname = "a"\nset = {}\n'
    )
    with pytest.raises(CardError, match=r'mine.toml:4: primary names "mr-mapp".*did you mean "mr-map"'):
        load_ablation("mine", workspace)
    path.write_text('component = "fra"\nquestion = "?"\nvariants = ["videolights"]\n[[arm]]\nnam = "a"\nset = {}\n')
    with pytest.raises(CardError, match=r"mine.toml:\d+: "):
        load_ablation("mine", workspace)


@pytest.mark.parametrize("name", [p.stem for p in sorted((Path(__file__).parents[2] / "models").glob("*.toml"))])
def test_every_built_in_variant_resolves(name, workspace):
    variant = load_variant(name, workspace)
    assert variant.title and set(variant.origin) >= set(flatten(variant))
    for row in variant.reported:
        assert all(0 <= value <= 100 for value in row.values.values())
