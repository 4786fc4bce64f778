"""What a study's numbers rest on, to be cited: the methods that were really used, and a paragraph that names them.

``ENTRIES`` holds every source that a report can rest on; ``used`` picks those of one study, by what its tables show.
The paragraph is LaTeX and cites by the same keys, so that ``methods.tex`` and ``references.bib`` always fit together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vlbench.report import words
from vlbench.report.compare import ALPHA, Comparison, orders
from vlbench.report.frame import title_of
from vlbench.report.latex import tex
from vlbench.report.methods import population


@dataclass(frozen=True, slots=True)
class Entry:
    """One source. ``kind``: of BibTeX. fields: in the order in which they are written, LaTeX already."""

    kind: str
    fields: Mapping[str, str]


ENTRIES: Mapping[str, Entry] = {
    # --- models, data and evaluation ---
    "paul2024videolights": Entry(
        "misc",
        {
            "author": "Paul, Dhiman and Parvez, Md Rizwan and Mohammed, Nabeel and Rahman, Shafin",
            "title": "{VideoLights}: Feature Refinement and Cross-Task Alignment Transformer for Joint Video Highlight "
            "Detection and Moment Retrieval",
            "year": "2024",
            "eprint": "2412.01558",
            "archiveprefix": "arXiv",
        },
    ),
    "moon2023qddetr": Entry(
        "inproceedings",
        {
            "author": "Moon, WonJun and Hyun, Sangeek and Park, SangUk and Park, Dongchan and Heo, Jae-Pil",
            "title": "Query-Dependent Video Representation for Moment Retrieval and Highlight Detection",
            "booktitle": "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
            "year": "2023",
            "eprint": "2303.13874",
            "archiveprefix": "arXiv",
        },
    ),
    "lei2021momentdetr": Entry(
        "inproceedings",
        {
            "author": "Lei, Jie and Berg, Tamara L. and Bansal, Mohit",
            "title": "Detecting Moments and Highlights in Videos via Natural Language Queries",
            "booktitle": "Advances in Neural Information Processing Systems (NeurIPS)",
            "volume": "34",
            "year": "2021",
            "eprint": "2107.09609",
            "archiveprefix": "arXiv",
        },
    ),
    "gao2017tall": Entry(
        "inproceedings",
        {
            "author": "Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram",
            "title": "{TALL}: Temporal Activity Localization via Language Query",
            "booktitle": "IEEE International Conference on Computer Vision (ICCV)",
            "year": "2017",
        },
    ),
    "song2015tvsum": Entry(
        "inproceedings",
        {
            "author": "Song, Yale and Vallmitjana, Jordi and Stent, Amanda and Jaimes, Alejandro",
            "title": "{TVSum}: Summarizing Web Videos Using Titles",
            "booktitle": "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
            "year": "2015",
        },
    ),
    "sun2014ranking": Entry(
        "inproceedings",
        {
            "author": "Sun, Min and Farhadi, Ali and Seitz, Steve",
            "title": "Ranking Domain-Specific Highlights by Analyzing Edited Videos",
            "booktitle": "European Conference on Computer Vision (ECCV)",
            "year": "2014",
        },
    ),
    "regneri2013grounding": Entry(
        "article",
        {
            "author": "Regneri, Michaela and Rohrbach, Marcus and Wetzel, Dominikus and Thater, Stefan and Schiele, "
            "Bernt and Pinkal, Manfred",
            "title": "Grounding Action Descriptions in Videos",
            "journal": "Transactions of the Association for Computational Linguistics",
            "volume": "1",
            "pages": "25--36",
            "year": "2013",
        },
    ),
    "krishna2017dense": Entry(
        "inproceedings",
        {
            "author": "Krishna, Ranjay and Hata, Kenji and Ren, Frederic and Fei-Fei, Li and Niebles, Juan Carlos",
            "title": "Dense-Captioning Events in Videos",
            "booktitle": "IEEE International Conference on Computer Vision (ICCV)",
            "year": "2017",
        },
    ),
    # --- statistics ---
    "satterthwaite1946": Entry(
        "article",
        {
            "author": "Satterthwaite, F. E.",
            "title": "An Approximate Distribution of Estimates of Variance Components",
            "journal": "Biometrics Bulletin",
            "volume": "2",
            "number": "6",
            "pages": "110--114",
            "year": "1946",
        },
    ),
    "cameron2011": Entry(
        "article",
        {
            "author": "Cameron, A. Colin and Gelbach, Jonah B. and Miller, Douglas L.",
            "title": "Robust Inference with Multiway Clustering",
            "journal": "Journal of Business \\& Economic Statistics",
            "volume": "29",
            "number": "2",
            "pages": "238--249",
            "year": "2011",
        },
    ),
    "holm1979": Entry(
        "article",
        {
            "author": "Holm, Sture",
            "title": "A Simple Sequentially Rejective Multiple Test Procedure",
            "journal": "Scandinavian Journal of Statistics",
            "volume": "6",
            "number": "2",
            "pages": "65--70",
            "year": "1979",
        },
    ),
    "benjamini1995": Entry(
        "article",
        {
            "author": "Benjamini, Yoav and Hochberg, Yosef",
            "title": "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing",
            "journal": "Journal of the Royal Statistical Society: Series B",
            "volume": "57",
            "number": "1",
            "pages": "289--300",
            "year": "1995",
        },
    ),
    "schuirmann1987": Entry(
        "article",
        {
            "author": "Schuirmann, Donald J.",
            "title": "A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing the "
            "Equivalence of Average Bioavailability",
            "journal": "Journal of Pharmacokinetics and Biopharmaceutics",
            "volume": "15",
            "number": "6",
            "pages": "657--680",
            "year": "1987",
        },
    ),
    "lakens2017": Entry(
        "article",
        {
            "author": 'Lakens, Dani{\\"e}l',
            "title": "Equivalence Tests: A Practical Primer for $t$ Tests, Correlations, and Meta-Analyses",
            "journal": "Social Psychological and Personality Science",
            "volume": "8",
            "number": "4",
            "pages": "355--362",
            "year": "2017",
        },
    ),
    "shapley1953": Entry(
        "incollection",
        {
            "author": "Shapley, Lloyd S.",
            "title": "A Value for $n$-Person Games",
            "booktitle": "Contributions to the Theory of Games II",
            "series": "Annals of Mathematics Studies",
            "number": "28",
            "publisher": "Princeton University Press",
            "pages": "307--317",
            "year": "1953",
        },
    ),
    "box2005": Entry(
        "book",
        {
            "author": "Box, George E. P. and Hunter, J. Stuart and Hunter, William G.",
            "title": "Statistics for Experimenters: Design, Innovation, and Discovery",
            "edition": "2",
            "publisher": "Wiley",
            "year": "2005",
        },
    ),
    "lan1983": Entry(
        "article",
        {
            "author": "Lan, K. K. Gordon and DeMets, David L.",
            "title": "Discrete Sequential Boundaries for Clinical Trials",
            "journal": "Biometrika",
            "volume": "70",
            "number": "3",
            "pages": "659--663",
            "year": "1983",
        },
    ),
    "hwang1990": Entry(
        "article",
        {
            "author": "Hwang, Irving K. and Shih, Weichung J. and De Cani, John S.",
            "title": "Group Sequential Designs Using a Family of Type {I} Error Probability Spending Functions",
            "journal": "Statistics in Medicine",
            "volume": "9",
            "number": "12",
            "pages": "1439--1445",
            "year": "1990",
        },
    ),
}

MODELS: Mapping[str, str] = {"videolights": "paul2024videolights", "qd_detr": "moon2023qddetr"}  # by name's beginning
DATASETS: Mapping[str, str] = {
    "qvhighlights": "lei2021momentdetr",
    "charades": "gao2017tall",
    "tvsum": "song2015tvsum",
    "youtube": "sun2014ranking",
    "tacos": "regneri2013grounding",
    "activitynet": "krishna2017dense",
}
EVALUATION = "lei2021momentdetr"


def used(comparison: Comparison) -> tuple[str, ...]:
    """The keys of what this study's paragraph cites, in the order in which it does."""
    cited = re.findall(r"\\cite\{([^}]*)\}", paragraph(comparison))
    return tuple(dict.fromkeys(key for keys in cited for key in keys.split(",")))


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these keys as a BibTeX file. Raises: KeyError for a key that is not in ``ENTRIES``."""
    found = []
    for key in keys:
        entry = ENTRIES[key]
        fields = ",\n".join(f"  {name} = {{{value}}}" for name, value in entry.fields.items())
        found.append(f"@{entry.kind}{{{key},\n{fields}\n}}\n")
    return "\n".join(found)


def paragraph(comparison: Comparison) -> str:
    """How the numbers were made, as one LaTeX paragraph with citations: to be pasted and shortened, never invented."""
    return " ".join([*_runs(comparison), *_inference(comparison)]) + "\n"


def _runs(comparison: Comparison) -> Iterator[str]:
    """What was trained and scored."""
    frame = comparison.frame
    arms = words.counted(len(frame.arms), "configuration")
    model = next((key for name, key in MODELS.items() if frame.baseline.variant.startswith(name)), None)
    data = next((key for name, key in DATASETS.items() if frame.dataset.startswith(name)), None)
    name = tex(frame.baseline.title or frame.baseline.variant)
    seeds = f"{words.counted(len(frame.seeds), 'seed')} ({tex(words.listed([str(seed) for seed in frame.seeds]))})"
    yield f"Each of the {arms} of {name}{_cite(model)} was trained with {seeds} on {tex(frame.dataset)}{_cite(data)}."
    sources = "" if frame.clusters is None else f" from {words.counted(len(set(frame.clusters)), 'source video')}"
    modes = sorted({run.mode for arm in frame.arms for run in arm.runs if run.mode})
    joint = {"mr-map", "hd-map"} & set(frame.metrics)  # other datasets bring evaluations of their own
    by = f", by the evaluation of QVHighlights{_cite(EVALUATION)}" if joint else ""
    mode = f", {words.listed(modes)} mode" if modes else ""
    yield (
        f"Scores are those of {words.counted(len(frame.queries), 'query')}{sources} (split {tex(frame.split)})"
        f"{by}{mode}."
    )
    yield f"The checkpoint of a run is {tex(frame.selection)}; the reported queries play no part in choosing it."
    if frame.holes:
        yield f"{len(frame.holes)} planned runs are missing; only seeds that every configuration has are used."


def _inference(comparison: Comparison) -> Iterator[str]:
    """How differences were estimated and judged."""
    frame = comparison.frame
    kinds = {row.claim.kind for row in (*comparison.rows, *comparison.effects)}
    if kinds & {"main", "interaction"}:
        yield (
            "Main effects and interactions are contrasts of the cells of the design; an interaction is the difference "
            f"of differences, averaged over the other components, not halved{_cite('box2005')}."
        )
    if "shapley" in kinds:
        yield (
            f"A component's Shapley value is its gain averaged over {orders(frame)} of building up the model; the "
            f"values sum to full minus empty{_cite('shapley1953')}."
        )
    clustered = "" if frame.clusters is None else ", queries clustered by source video"
    yield f"Differences are in points (100 times the score), for {tex(population(comparison))}{clustered}."
    if comparison.estimand == "general":
        yield (
            "Their standard errors come from the crossed table of runs and queries, in which both count as random: "
            "the variance over runs plus the variance over queries minus what both count twice"
            f"{_cite('cameron2011')}; intervals and tests are Student's $t$ with Satterthwaite's degrees of freedom"
            f"{_cite('satterthwaite1946')}. Runs of different configurations are not paired."
        )
    elif comparison.estimand == "benchmark":
        yield (
            "Their standard errors come from the variance over runs; intervals and tests are Student's $t$ with "
            f"Satterthwaite's degrees of freedom{_cite('satterthwaite1946')}."
        )
    else:
        yield (
            "With one seed only the queries count as random: nothing is claimed about training again. Intervals and "
            "tests are Student's $t$."
        )
    primary = words.listed([title_of(metric) for metric in comparison.metrics])
    declared = f"The primary metrics, {tex(primary)}, were declared before the runs"
    family = words.counted(len(comparison.rows), "test")
    if frame.look is not None:
        looks = words.listed([str(look) for look in frame.looks])
        yield (
            f"{declared}. The study was looked at after {looks} seeds as declared; levels follow the spending function "
            f"of Hwang, Shih and De Cani{_cite('hwang1990')}, recomputed for the looks taken{_cite('lan1983')} and "
            f"shared out evenly over the {family}."
        )
    else:
        yield f"{declared}; their $p$-values are corrected by Holm's procedure{_cite('holm1979')} over {family}."
    if comparison.exploratory:
        yield (
            "All other metrics are exploratory and carry false discovery rates only"
            f"{_cite('benjamini1995')}; no verdict rests on them."
        )
    yield (
        f"A component helps or hurts where the corrected $p$ is at most {ALPHA:g}, is equivalent where the 90\\% "
        f"interval lies inside $\\pm${frame.margin:g} points, the margin set "
        f"beforehand{_cite('schuirmann1987', 'lakens2017')}, and is unresolved otherwise."
    )
    if frame.unplanned is not None:
        yield f"These results are exploratory: {tex(frame.unplanned)}."


def _cite(*keys: str | None) -> str:
    known = [key for key in keys if key is not None]
    return f"~\\cite{{{','.join(known)}}}" if known else ""
