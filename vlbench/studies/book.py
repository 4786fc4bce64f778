"""A sweep's trials in Optuna: suggested and pruned in memory, kept in a database. The only module with Optuna."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import statistics
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlbench.canon import digest
from vlbench.cards.space import Space
from vlbench.errors import EnvironmentProblem, PlanError
from vlbench.registry import Scalar
from vlbench.runs.store import Store
from vlbench.streams import seed_for, stream
from vlbench.studies.sweep import State, Sweep, Trial, changed, load


def default_url(store: Store) -> str:
    """A SQLite file inside the store."""
    return f"sqlite:///{(store.root / 'optuna.db').resolve()}"


def shown_url(url: str) -> str:
    """A database's address without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


class Book:
    """Two Optuna studies of one name: in memory, where suggestions and prunings are decided, and the storage's copy.

    The storage is read once. Finished trials enter the memory as they stand; a trial of a broken round keeps its
    parameters, and its verdict is found again from the cells.
    """

    def __init__(self, sweep: Sweep, stored: Any, storage: Any, url: str) -> None:
        import optuna

        self.sweep, self.stored, self.storage, self.shown = sweep, stored, storage, shown_url(url)
        self.known = {trial.number: trial for trial in stored.get_trials(deepcopy=False)}
        self._study_id = storage.get_study_id_from_name(sweep.study)
        self._memory_storage = optuna.storages.InMemoryStorage()
        self.memory = optuna.create_study(
            storage=self._memory_storage,
            study_name=sweep.study,
            directions=_directions(sweep),
            pruner=_pruner(sweep),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self.distributions = _distributions(sweep.space)

    @classmethod
    @contextlib.contextmanager
    def open(cls, sweep: Sweep, store: Store, url: str, *, restart: bool) -> Iterator[Book]:
        """Find or create the study in the storage, whose connections are closed when the block ends.

        Raises: PlanError if it was begun with another definition.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage, definition = _storage(store, url), sweep.definition()
        with _closing(storage):
            if restart and sweep.study in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
                optuna.delete_study(study_name=sweep.study, storage=storage)
            stored = optuna.create_study(
                storage=storage,
                study_name=sweep.study,
                directions=_directions(sweep),
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            before = stored.user_attrs.get("definition") or (
                None if restart else (load(store, sweep.study) or {}).get("definition")
            )
            if before is not None and digest(before) != digest(definition):
                other = changed(before, definition)
                shown = "; ".join(other[:3]) + ("; ..." if len(other) > 3 else "")
                raise PlanError(
                    f'the study "{sweep.study}" was begun with another definition ({shown})',
                    hint="give this one another --name, or --restart the study (finished fits are kept)",
                )
            if "digest" not in stored.user_attrs:
                stored.set_user_attr("definition", definition)
                stored.set_user_attr("digest", digest(definition))
            yield cls(sweep, stored, storage, url)

    def told(self, number: int) -> Trial | None:
        """A trial that the storage holds as finished, or None."""
        import optuna

        found = self.known.get(number)
        if found is None or not found.state.is_finished():
            return None
        words: dict[Any, State] = {
            optuna.trial.TrialState.COMPLETE: "complete",
            optuna.trial.TrialState.PRUNED: "pruned",
            optuna.trial.TrialState.FAIL: "failed",
        }
        about = json.loads(found.user_attrs.get("vlbench", "{}"))
        return Trial(
            number,
            number // self.sweep.card.batch,
            self.sweep.space.tidy(found.params),
            edits=about.get("edits", []),
            cell=about.get("cell"),
            state=words[found.state],
            values=about.get("values"),
            rungs={int(epoch): float(value) for epoch, value in about.get("rungs", {}).items()},
            epochs=int(about.get("epochs", 0)),
            seconds=float(about.get("seconds", 0.0)),
            cost=about.get("cost", {}),
            cause=about.get("cause"),
        )

    def remember(self, trial: Trial) -> None:
        """Enter a finished trial of the storage into the memory."""
        import optuna

        found = self.known[trial.number]
        about = json.loads(found.user_attrs.get("vlbench", "{}"))
        self.memory.add_trial(
            optuna.trial.create_trial(
                state=found.state,
                params=found.params,
                distributions=self.distributions,
                values=found.values,
                intermediate_values=found.intermediate_values,
                system_attrs=about.get("pruner", {}),
            )
        )

    def ask(self, number: int) -> dict[str, Scalar]:
        """The parameters of a trial: the storage's if it has them, else a suggestion that is entered there."""
        import optuna

        known = self.known.get(number)
        card = self.sweep.card
        if known is None and card.sampler in ("tpe", "gp"):
            self.memory.sampler = _sampler(self.sweep, number)
            with _quiet():
                params = dict(self.memory.ask(fixed_distributions=self.distributions).params)
        else:
            params = dict(known.params) if known is not None else self.sweep.space.at(_quantiles(self.sweep, number))
            self.memory.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=params, distributions=self.distributions
                )
            )
        if known is None:
            self.stored.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=params, distributions=self.distributions
                )
            )
            if len(self.stored.get_trials(deepcopy=False)) != number + 1:  # a store elsewhere, the same database
                raise PlanError(
                    f'someone else adds trials to the study "{self.sweep.study}"',
                    where=self.shown,
                    hint="give this one another --name",
                )
        return self.sweep.space.tidy(params)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Enter a trial's value at a decision."""
        memory = self.memory.get_trials(deepcopy=False)[number]
        self._memory_storage.set_trial_intermediate_value(memory._trial_id, epoch, value)
        if number not in self.known or not self.known[number].state.is_finished():
            self.storage.set_trial_intermediate_value(self._stored_id(number), epoch, value)

    def should_prune(self, trial: Trial) -> bool:
        """Ask the pruner about a trial that reported."""
        frozen = self.memory.get_trials(deepcopy=False)[trial.number]
        return bool(self.memory.pruner.prune(self.memory, frozen))

    def tell(self, trial: Trial) -> None:
        """Enter the end of a trial, with its cell and what is known of it."""
        import optuna

        states = optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]
        values: list[float] | None = None
        if trial.state == "complete" and trial.values:
            values = trial.values if self.sweep.card.pareto else [statistics.fmean(trial.values)]
        self.memory.tell(trial.number, values=values, state=state)
        if trial.number in self.known and self.known[trial.number].state.is_finished():
            return  # the kill came between this and the round's last
        attributes = self.memory.get_trials(deepcopy=False)[trial.number].system_attrs
        about = {
            **{
                key: value
                for key, value in trial.as_json().items()
                if key not in ("number", "round", "state", "params")
            },
            "pruner": {key: value for key, value in attributes.items() if key.startswith("completed_rung")},
        }
        stored_id = self._stored_id(trial.number)
        self.storage.set_trial_user_attr(stored_id, "vlbench", json.dumps(about))
        for key, value in (("cell", trial.cell), ("cause", trial.cause), ("edits", "; ".join(trial.edits))):
            if value is not None:  # a line each in Optuna's dashboard
                self.storage.set_trial_user_attr(stored_id, key, value)
        self.stored.tell(trial.number, values=values, state=state)

    def importances(self) -> list[dict[str, Any]]:
        """How much of being among the best trials each parameter explains; exploration, not evidence."""
        import optuna

        complete = [trial for trial in self.memory.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        if len(complete) < 4 or len(self.sweep.space) < 2:
            return []
        found: list[dict[str, Any]] = []
        for index, name in enumerate(self.sweep.objective if self.sweep.card.pareto else ("objective",)):
            if len({trial.values[index] for trial in complete}) < 2:
                continue
            with warnings.catch_warnings():  # it warns that it looks for low targets, which is why they are negated
                warnings.simplefilter("ignore")
                shares = optuna.importance.get_param_importances(
                    self.memory,
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=partial(_negated, index),
                )
            values = {key: float(share) for key, share in shares.items() if math.isfinite(share)}
            found.append({"of": name, "method": "PED-ANOVA", "values": values})
        return found

    def _stored_id(self, number: int) -> int:
        return int(self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number))


CONNECT_S = 5  # a database that does not answer for so long is not reached


def check_storage(url: str) -> None:
    """Whether a storage can be used from here; nothing is created in it.

    Raises: EnvironmentProblem for what is no address, a missing driver or folder, and a server that does not answer.
    """
    import sqlalchemy

    with _addressed(url):
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite":
            folder = Path(address.database or "").absolute().parent
            if not folder.is_dir():
                raise EnvironmentProblem("there is no such folder", where=folder, hint="make it, or choose another one")
            return
        engine = sqlalchemy.create_engine(address, connect_args={"connect_timeout": CONNECT_S})
    with explained(url):
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def stored_trials(store: Store, study: str, shown: str) -> list[dict[str, Any]]:
    """The trials of a study as the storage has them: number, state, params, values. Nothing is written or created.

    shown: the storage's address as ``sweep.json`` keeps it, without its password.
    Raises: EnvironmentProblem if it cannot be opened from here, PlanError if it has no such study.
    """
    import optuna
    from sqlalchemy.engine import make_url

    address = make_url(shown)
    if address.password is not None:  # asterisks stand for it
        raise EnvironmentProblem("its password is not kept", where=shown)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        raise EnvironmentProblem("there is no such file here", where=shown)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with explained(shown):
        storage = _storage(store, shown)
        with _closing(storage):
            try:
                found = optuna.load_study(study_name=study, storage=storage, sampler=optuna.samplers.RandomSampler(0))
            except KeyError:
                raise PlanError(f'the storage has no study "{study}"', where=shown) from None
            words: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
            return [
                {
                    "number": trial.number,
                    "state": words.get(trial.state.name, "running"),
                    "params": dict(trial.params),
                    "values": trial.values if trial.state.name == "COMPLETE" else None,
                }
                for trial in found.get_trials(deepcopy=False)
            ]


def _negated(index: int, trial: Any) -> float:
    return -float(trial.values[index])


def _storage(store: Store, url: str) -> Any:
    """The database at an address. Raises EnvironmentProblem for one that cannot be used."""
    import optuna
    from sqlalchemy.engine import make_url

    store.root.mkdir(parents=True, exist_ok=True)
    with _addressed(url):
        arguments = {"timeout": 60} if make_url(url).get_backend_name() == "sqlite" else {}
        with (store.root / "optuna.lock").open("w") as lock:  # two processes must not both create a fresh database
            fcntl.flock(lock, fcntl.LOCK_EX)
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": arguments})


@contextlib.contextmanager
def _addressed(url: str) -> Iterator[None]:
    """Turn what an address that cannot be used raises into one line that says what to do."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise EnvironmentProblem(
            f"is not the address of a database: {_first_line(error)}",
            where=shown_url(url),
            hint="such as sqlite:///sweeps.db or postgresql+psycopg://user@host/name",
        ) from error
    except ImportError as error:
        raise EnvironmentProblem(
            f"the storage needs a driver: {_first_line(error.__cause__ or error)}",
            where=shown_url(url),
            hint="pip install 'psycopg[binary]' for postgresql+psycopg://, pymysql for mysql+pymysql://",
        ) from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise EnvironmentProblem(_first_line(error), where=shown_url(url)) from error


@contextlib.contextmanager
def _closing(storage: Any) -> Iterator[None]:
    """Give a database's connections back, also those to one that has gone away."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    finally:
        with contextlib.suppress(SQLAlchemyError):
            storage.remove_session()
        storage.engine.dispose()


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a database raises when it does not answer into one line that says what to do."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise EnvironmentProblem(
            f"the storage cannot be reached: {_first_line(error.__cause__ or error)}",
            where=shown_url(url),
            hint="finished fits are kept; the same command goes on once it answers",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's remarks about its own maturity are nobody's news here."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _directions(sweep: Sweep) -> list[Literal["minimize", "maximize"]]:
    return ["maximize"] * (len(sweep.objective) if sweep.card.pareto else 1)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for one in space.dimensions:
        if one.kind == "choices":
            found[one.key] = CategoricalDistribution(one.choices)
        elif one.kind == "int":
            step = 1 if one.log else int(one.step or 1)
            found[one.key] = IntDistribution(int(one.low), int(one.high), log=one.log, step=step)
        else:
            found[one.key] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
    return found


def _sampler(sweep: Sweep, number: int) -> Any:
    import optuna

    seed = seed_for(sweep.card.seed, "sweep", sweep.study, number) % 2**32
    with _quiet():
        if sweep.card.sampler == "gp":
            try:
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=sweep.card.startup)
            except ImportError as error:
                raise EnvironmentProblem(
                    f'the sampler "gp" needs a package: {_first_line(error)}',
                    where=sweep.card.origin.get("sampler"),
                    hint='install it, or choose sampler = "tpe"',
                ) from error
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=sweep.card.startup)


def _quantiles(sweep: Sweep, number: int) -> list[float]:
    """Where in the space a trial is: at random, or the next point of a Sobol sequence that is shifted at random."""
    size, seed = len(sweep.space), sweep.card.seed
    if sweep.card.sampler == "random":
        return [float(u) for u in stream(seed, "sweep", sweep.study, number).random(size)]
    from scipy.stats import qmc

    points = qmc.Sobol(size, scramble=False)
    if number:
        points.fast_forward(number)
    return [float(u) for u in (points.random(1)[0] + stream(seed, "sweep", sweep.study).random(size)) % 1.0]


def _pruner(sweep: Sweep) -> Any:
    import optuna

    card, decisions = sweep.card, sweep.decisions
    if not decisions or card.pruner == "none":
        return optuna.pruners.NopPruner()
    if card.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=card.startup)
    if card.pruner == "percentile":
        return optuna.pruners.PercentilePruner(card.percentile, n_startup_trials=card.startup)
    return optuna.pruners.HyperbandPruner(
        min_resource=decisions[0], max_resource=max(sweep.epochs, decisions[-1]), reduction_factor=3
    )
