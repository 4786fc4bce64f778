"""Sweeps: which values of a variant's parameters are best, decided in rounds and rungs. The only module with Optuna.

*Rounds.* Trials are asked for in rounds of ``batch`` (in the sweep card, whatever the number of workers), each with a
sampler that is seeded by the study and the trial's number, and told in trial order when the whole round has ended.
*Rungs.* The fits of a round run to the next decision epoch and pause there with their checkpoints. When all have
arrived, their tuning values are reported and the pruner is asked, both in trial order, and the survivors go on. No
worker ever waits for a decision and nothing has a deadline, so a study is a function of its card and its data: the
number of workers, the executor, kills and the time change nothing in it, with any pruner.

*Trials are cells.* A trial is a fit like any other, so a repeated suggestion costs nothing, and a study whose storage
was lost is rebuilt from the cells. Being pruned is a verdict of this study and no property of the cell: it keeps its
checkpoint, and another study may finish it. Nothing here opens the reporting split; the values of trials are means over
the tuning split at the checkpoint that it selected. A maximum over trials is no measurement, so the winner is fitted
again with fresh seeds and compared with the card as it is (``final_plan``).

Decisions are made by a study in memory that is filled from the storage at the start: finished rounds as they stand, the
trials of a broken round with their parameters. The storage is written along and never read in between, so it can be
any database that Optuna reaches, and Optuna's dashboard can open it.

``studies/<name>/sweep.json`` is written after every rung and is what reports read (all of it but ``seconds`` and
``storage`` is equal for equal studies; metrics are fractions, higher is better; epochs are counts)::

    format      1
    study, card, variant, title, dataset, features, command, question      texts
    state       "running" | "trials" (all told, no final fits yet) | "finished" | "stopped"
    stopped     why it was stopped (too many failures), or null
    definition  what the trials follow from: {variant, data, space, sampler, pruner, ...}; digest: its sha256
    storage     the database without its password
    device      "cpu" or "cuda", for hours
    notes       [text]
    objective   [metric]; the value of a trial is their mean, or with pareto one value each
    pareto      whether several objectives are kept apart
    budget      {trials, batch, epochs, decisions, sampler, pruner, startup, parameters}; parameters: keys in the space
    space       [{key, kind: "float" | "int" | "choices", low, high, step, log, choices, now}]; now: the card's value
    trials      [{number, round, state: "running" | "complete" | "pruned" | "failed", params: {key: value},
                  edits: [text], value: mean or null, values: [per objective] or null, rungs: {"epoch": value},
                  cell: id or null, epochs: trained for this trial, seconds: of training, cause: text or null}]
    best        number of the best trial or null (null with pareto); ties go to the earlier one
    front       numbers of the trials that no other one beats in every objective ([best] with one objective)
    importances [{of: "objective" or a metric, method: "PED-ANOVA", values: {key: share}}], exploration only
    final       {study, arms: {arm: trial number}, seeds, trial_seed}, or null before there is one; the study is in the
                store like any ablation, baseline against tuned
"""
