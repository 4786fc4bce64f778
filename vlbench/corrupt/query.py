"""Words that are missing or somebody else's. Text encoders lose and swap the same tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlbench.corrupt.base import Noise, Rows, Sample


def token_drop(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Remove a share of the tokens, so that the mask gets shorter; the one with the largest number always stays.

    Rows are taken out and not masked where they are: the released fusion reads masks of other samples in the batch,
    and a hole there could hide every word of a query.
    """
    field = noise.per_token(sample)
    stays = field >= amount
    stays[np.argmax(field)] = True
    return replace(sample, words={encoder: rows[stays] for encoder, rows in sample.words.items()})


def token_swap(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Replace a share of the tokens by tokens of queries about other source videos."""
    swapped = np.flatnonzero(noise.per_token(sample) < amount)
    if not len(swapped):
        return sample
    strangers = noise.strangers(sample.query)
    whose, which = noise.per_token(sample, "whose"), noise.per_token(sample, "which")
    words = {encoder: rows.copy() for encoder, rows in sample.words.items()}
    assert noise.others is not None
    for token in swapped:
        given = noise.others.words(int(strangers[int(whose[token] * len(strangers))]))
        for encoder, rows in words.items():
            rows[token] = given[encoder][int(which[token] * len(given[encoder]))]
    return replace(sample, words=words)


def wrong_query(sample: Sample, amount: float, noise: Noise) -> Sample:
    """With probability ``amount`` ask a query about another source video instead."""
    if not noise.per_query(sample.query) < amount:
        return sample
    strangers = noise.strangers(sample.query)
    assert noise.others is not None
    place = int(strangers[int(noise.per_query(sample.query, "whose") * len(strangers))])
    return replace(sample, words=dict(noise.others.words(place)))


def query_blank(sample: Sample, amount: float, noise: Noise) -> Sample:
    """With probability ``amount`` set the query's features to zero; as many tokens stay."""
    if not noise.per_query(sample.query) < amount:
        return sample
    blank: dict[str, Rows] = {encoder: np.zeros_like(sample.words[encoder]) for encoder in sample.touched}
    return replace(sample, words={**sample.words, **blank})
