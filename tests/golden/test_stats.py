"""Protects the statistics against third-party reference answers (SciPy, R, statsmodels, lme4, multtest, exact counts).

Also protects the checker itself: a wrong number, a field that nothing computes and an unknown topic must be reported.
"""

import copy
import json
from pathlib import Path

import pytest

from vlbench.testing.golden_stats import FORMAT, check_directory, check_file

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "stats"
STEMS = sorted(path.stem for path in SHARED.glob("*.json"))

# Worked out by hand: p of (0.01, 0.02, 0.04) times (3, 2, 1), made monotone.
HOLM = {
    "format": FORMAT,
    "topic": "multiplicity: p-value adjustment and max-T sign-flip step-down (Westfall-Young)",
    "cases": [{"id": "by_hand", "input": {"p": [0.04, 0.01, 0.02]}, "expected": {"holm": [0.04, 0.03, 0.04]}}],
}


@pytest.mark.skipif(not STEMS, reason="the shared reference answers are not on this machine")
@pytest.mark.parametrize("stem", STEMS)
def test_reference_answers_are_reproduced(stem: str) -> None:
    results = check_file(stem, json.loads((SHARED / f"{stem}.json").read_text()))
    assert results
    assert [result for result in results if not result.ok] == []


def test_a_directory_is_checked_whole(tmp_path: Path) -> None:
    (tmp_path / "renamed.json").write_text(json.dumps(HOLM))
    (tmp_path / "new.json").write_text(json.dumps({"format": FORMAT, "topic": "tomorrow's statistic", "cases": []}))
    (tmp_path / "other.json").write_text("[1, 2]")
    new, renamed = check_directory(tmp_path)
    assert (renamed.name, renamed.ok) == ("renamed/by_hand", True)
    assert (new.ok, new.detail) == (False, "no public function for this topic yet")


def test_a_directory_without_such_files_gives_nothing(tmp_path: Path) -> None:
    assert check_directory(tmp_path) == []


def test_a_wrong_number_is_named() -> None:
    wrong = copy.deepcopy(HOLM)
    wrong["cases"][0]["expected"]["holm"][1] = 0.0300001
    (result,) = check_file("x", wrong)
    assert not result.ok
    assert result.worst == "holm"
    assert result.deviation == pytest.approx(1e-7)
    assert result.tolerance == 1e-9


def test_a_field_that_nothing_computes_is_not_passed_over() -> None:
    wrong = copy.deepcopy(HOLM)
    wrong["cases"][0]["expected"]["holm_squared"] = [0.0, 0.0, 0.0]
    (result,) = check_file("x", wrong)
    assert not result.ok
    assert "holm_squared" in result.detail


def test_a_section_that_nothing_computes_is_not_passed_over() -> None:
    more = HOLM | {"extra_cases": [{"id": "y", "input": {}, "expected": {}}]}
    assert [result.ok for result in check_file("x", more)] == [True, False]


def test_an_input_that_is_refused_is_a_failed_case() -> None:
    wrong = copy.deepcopy(HOLM)
    wrong["cases"][0]["input"]["p"][0] = 1.5
    (result,) = check_file("x", wrong)
    assert not result.ok
    assert "must lie in [0, 1]" in result.detail
