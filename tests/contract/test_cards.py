"""Protects every built-in card: it resolves, builds and makes one training step on planted data; every arm changes something.
Also that a card that cannot work is reported as such."""

from click.testing import CliRunner

from vlbench.cli.check import check


def test_every_card_is_built_and_stepped_once(workspace):
    done = CliRunner().invoke(check, [], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "models/videolights " in done.output and "ablations/fra" in done.output


def test_a_broken_card_fails_the_check(workspace):
    (workspace / "models").mkdir()
    (workspace / "models" / "mine.toml").write_text('extends = "videolights_quick"\n[features]\nvideo = ["i3d"]\n')
    (workspace / "ablations").mkdir()
    (workspace / "ablations" / "odd.toml").write_text(
        'component = "fra"\nquestion = "?"\nvariants = ["mine"]\n[[arm]]\nname = "a"\nset = { "model.fusion.use" = "fra" }\n'
    )
    done = CliRunner().invoke(check, [], standalone_mode=False)
    assert done.return_value == 1
    assert "FAIL  models/mine" in done.output and "i3d" in done.output
    assert "FAIL  ablations/odd" in done.output and "odd.toml:6" in done.output
