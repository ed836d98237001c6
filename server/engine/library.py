"""Models, datasets and trained networks of variants: registering what was uploaded, and checking it in a child."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import IntakeData, IntakeModel, IntakeRecovered, ModelFacts, Task
from fleetfit.core.digests import key_of
from fleetfit.core.errors import FleetfitError, IntegrityError, InvalidInput, rebuild
from fleetfit.core.metrics import metric_info
from fleetfit.proto.v1 import common_pb2, models_pb2
from fleetfit.server.engine.executor import Executor, Finished
from fleetfit.server.engine.lookup import find_dataset, find_model
from fleetfit.server.engine.messages import dataset_message, model_message, recovered_message
from fleetfit.server.engine.variants import find_trainable, network_of
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import LOCAL_OWNER, ArtifactRow, DatasetRow, ModelRow, RecoveredRow, VariantRow

_log: Final = logging.getLogger(__name__)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
Progress = Callable[[str, str, float, float | None], None]
NO_PARTS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class _Work:
    id: str
    task: Task
    inputs: dict[str, str]
    row: type[ModelRow] | type[DatasetRow] | type[RecoveredRow]
    what: str


class Library:
    """What users have pushed. `published` is called with an id whenever its row changed."""

    def __init__(
        self, database: Database, store: ArtifactStore, executor: Executor, published: Callable[[str], None]
    ) -> None:
        self._database = database
        self._store = store
        self._executor = executor
        self._published = published
        self.progress: dict[str, common_pb2.Progress] = {}

    async def push_model(
        self, name: str, sha256: str, form: str, owner: str = LOCAL_OWNER, parts: Mapping[str, str] = NO_PARTS
    ) -> str:
        """Register uploaded content as a model, to be checked; its id. The same content again is the same version.

        `parts` are digests of what stands before and behind it, by `pre` and `post`.
        """
        _check_name(name)
        if form not in ("pt2", "onnx"):
            raise InvalidInput(f"'{form}' is not a model format; push a .pt2 or an .onnx file", field="format")
        size = self._store.path(sha256).stat().st_size
        kept: dict[str, Any] = {
            part: {"sha256": digest, "size_bytes": self._store.path(digest).stat().st_size}
            for part, digest in parts.items()
        }

        def register(session: Session) -> str:
            rows = session.scalars(select(ModelRow).where(ModelRow.name == name)).all()
            for row in rows:
                same = (row.sha256, row.format, row.owner, row.parts) == (sha256, form, owner, kept)
                if same and row.state != "refused":
                    return row.id
            row = ModelRow(
                id=new_id(),
                owner=owner,
                name=name,
                version=max((r.version for r in rows), default=0) + 1,
                format=form,
                sha256=sha256,
                size_bytes=size,
                state="checking",
                refusal="",
                parts=kept,
                created_ms=now_ms(),
            )
            session.add(row)
            keep_artifact(session, sha256, size)
            for part in kept.values():
                keep_artifact(session, part["sha256"], part["size_bytes"])
            return row.id

        return await self._database.write(register)

    async def push_dataset(self, request: models_pb2.PushDatasetRequest) -> str:
        """Register uploaded arrays, to be checked and split; the dataset's id."""
        _check_name(request.name)
        if request.metric:
            if metric_info(request.metric).is_user:
                raise InvalidInput(
                    f"{request.metric} belongs to a job, not to a dataset; give it to `fleetfit compress` with --metric",
                    field="metric",
                )
        if request.seed < 0:
            raise InvalidInput(f"the seed {request.seed} is negative; give 0 or more", field="seed")
        sha256, test = request.artifact.sha256, request.test_artifact.sha256
        sizes = {digest: self._store.path(digest).stat().st_size for digest in (sha256, test) if digest}

        def register(session: Session) -> str:
            model = find_model(session, request.model) if request.model else None
            if model is not None and model.state != "accepted":
                raise InvalidInput(f"the model '{request.model}' is not accepted ({model.state}); push it again first")
            model_id = model.id if model is not None else None
            rows = session.scalars(select(DatasetRow).where(DatasetRow.name == request.name)).all()
            for row in rows:
                same = (row.sha256, row.test_sha256, row.model_id, row.seed, row.metric)
                if same == (sha256, test, model_id, request.seed, request.metric) and row.state != "refused":
                    return row.id
            row = DatasetRow(
                id=new_id(),
                owner=LOCAL_OWNER,
                name=request.name,
                version=max((r.version for r in rows), default=0) + 1,
                sha256=sha256,
                test_sha256=test,
                model_id=model_id,
                seed=request.seed,
                metric=request.metric,
                state="checking",
                refusal="",
                splits={},
                created_ms=now_ms(),
            )
            session.add(row)
            for digest, size in sizes.items():
                keep_artifact(session, digest, size)
            return row.id

        return await self._database.write(register)

    async def push_recovered(self, variant: str, sha256: str, owner: str = LOCAL_OWNER) -> str:
        """Register uploaded content as a person's variant after training, to be compared; its id.

        The same content for the same variant again is the same one. Raises as `find_trainable` does.
        """
        size = self._store.path(sha256).stat().st_size

        def register(session: Session) -> str:
            found, _, _ = find_trainable(session, variant, owner)
            key = key_of({"recovers": found.key, "file": sha256, "owner": owner})
            row = session.get(RecoveredRow, key)
            if row is None:
                row = RecoveredRow(id=key, owner=owner, variant_key=found.key, sha256=sha256, size_bytes=size)
                row.state, row.refusal, row.facts, row.created_ms = "checking", "", None, now_ms()
                session.add(row)
            elif row.state == "refused":
                row.state, row.refusal = "checking", ""
            keep_artifact(session, sha256, size)
            return key

        return await self._database.write(register)

    async def check_next(self) -> bool:
        """Check the oldest thing that waits to be checked. False where nothing waits."""
        work = await self._database.read(_next_work)
        if work is None:
            return False

        def publish(progress: Any) -> None:
            message = common_pb2.Progress(activity=progress.activity, fraction=progress.fraction)
            if progress.remaining_s is not None:
                message.remaining_ms = int(progress.remaining_s * 1000)
            self.progress[work.id] = message
            self._published(work.id)

        try:
            async with self._executor.run(work.task, work.inputs, publish) as finished:
                await self._settle(work, finished)
        except Exception as error:
            # Refused rather than tried again for ever: its sender waits for an answer, and others wait behind it.
            reason = _told(error)
            _log.warning("%s was not checked: %s", work.id, reason, exc_info=not isinstance(error, FleetfitError))
            await self._database.write(lambda session: _save(session, work, reason, None, {}, {}))
        finally:
            self.progress.pop(work.id, None)
        self._published(work.id)
        return True

    async def _settle(self, work: _Work, finished: Finished) -> None:
        result = finished.result
        refusal, facts = "", None
        splits: dict[str, dict[str, Any]] = {}
        made: dict[str, int] = {}
        if result is None:
            refusal = _ended_badly(finished, work.what)
        elif result.error is not None:
            refusal = result.error.message
        elif result.model is not None:
            facts = result.model.model_dump()
        elif result.recovered is not None:
            network = result.recovered.network
            facts = result.recovered.model_dump()
            taken = await asyncio.to_thread(self._store.put, finished.out / network.file)
            if taken != (network.sha256, network.size_bytes):
                raise IntegrityError(f"{network.file} changed after it was checked; push it again")
            made[network.sha256] = network.size_bytes
        elif result.data is not None:
            facts = result.data.model_dump()
            for split in result.data.splits:
                digest, size = await asyncio.to_thread(self._store.put, finished.out / split.file)
                splits[split.name] = {"sha256": digest, "size_bytes": size, "count": split.count}
                made[digest] = size
        await self._database.write(lambda session: _save(session, work, refusal, facts, splits, made))

    async def model(self, text: str) -> models_pb2.Model:
        """One model by name or id."""
        return await self._database.read(lambda session: model_message(find_model(session, text)))

    async def dataset(self, text: str) -> models_pb2.Dataset:
        """One dataset by name or id."""
        return await self._database.read(lambda session: dataset_message(find_dataset(session, text)))

    async def recovered(self, key: str) -> models_pb2.Recovered:
        """One variant's trained network by its id."""
        return await self._database.read(lambda session: recovered_message(session, session.get_one(RecoveredRow, key)))

    async def models(self) -> list[models_pb2.Model]:
        """All, newest first."""
        query = select(ModelRow).order_by(ModelRow.id.desc())
        return await self._database.read(lambda session: [model_message(row) for row in session.scalars(query)])

    async def datasets(self) -> list[models_pb2.Dataset]:
        """All, newest first."""
        query = select(DatasetRow).order_by(DatasetRow.id.desc())
        return await self._database.read(lambda session: [dataset_message(row) for row in session.scalars(query)])


def keep_artifact(session: Session, sha256: str, size_bytes: int) -> None:
    """Record that content is in the store."""
    if session.get(ArtifactRow, sha256) is None:
        session.add(ArtifactRow(sha256=sha256, size_bytes=size_bytes, owner=LOCAL_OWNER, created_ms=now_ms()))
        session.flush()


def _next_work(session: Session) -> _Work | None:
    model = session.scalars(select(ModelRow).where(ModelRow.state == "checking").order_by(ModelRow.id)).first()
    if model is not None:
        work = IntakeModel.model_validate({"format": model.format, "parts": sorted(model.parts)})
        inputs = {"model": model.sha256} | {part: found["sha256"] for part, found in model.parts.items()}
        return _Work(model.id, Task(task_id=model.id, work=work), inputs, ModelRow, "model")
    checking = select(RecoveredRow).where(RecoveredRow.state == "checking").order_by(RecoveredRow.created_ms)
    if (recovered := session.scalars(checking).first()) is not None:
        network = network_of(session.get_one(VariantRow, recovered.variant_key))
        inputs = {"variant": network, "trained": recovered.sha256}
        task = Task(task_id=recovered.id[:20], work=IntakeRecovered())
        return _Work(recovered.id, task, inputs, RecoveredRow, "network")
    data = session.scalars(select(DatasetRow).where(DatasetRow.state == "checking").order_by(DatasetRow.id)).first()
    if data is None:
        return None
    facts = None
    if data.model_id is not None:
        row = session.get(ModelRow, data.model_id)
        facts = ModelFacts.model_validate(row.facts) if row is not None else None
    wanted = IntakeData(
        inputs=facts.inputs if facts else None,
        outputs=facts.outputs if facts else None,
        seed=data.seed,
        metric=data.metric,
        own_test=bool(data.test_sha256),
    )
    inputs = {"data": data.sha256} | ({"test": data.test_sha256} if data.test_sha256 else {})
    return _Work(data.id, Task(task_id=data.id, work=wanted), inputs, DatasetRow, "data")


def _save(
    session: Session,
    work: _Work,
    refusal: str,
    facts: dict[str, Any] | None,
    splits: dict[str, dict[str, Any]],
    made: dict[str, int],
) -> None:
    row = cast("ModelRow | DatasetRow | RecoveredRow | None", session.get(work.row, work.id))
    if row is None:
        return
    row.state, row.refusal, row.facts = ("refused" if refusal else "accepted"), refusal, facts
    if isinstance(row, DatasetRow):
        row.splits = splits
    for digest, size in made.items():
        keep_artifact(session, digest, size)


def _told(error: Exception) -> str:
    if isinstance(error, FleetfitError):
        return error.message
    if isinstance(error, OSError):
        return f"the server could not check it ({error.strerror}); put that right, then push it again"
    return "checking it met a bug of the server's; its log has the details, please report it"


def _ended_badly(finished: Finished, what: str) -> str:
    return {
        "out_of_memory": f"checking the {what} needs more memory than the server allows; push a smaller one, or start the "
        "server with a higher --task-memory-mb",
        "timed_out": f"checking the {what} took longer than the server allows; push a smaller one",
    }.get(
        finished.outcome.kind, f"checking the {what} crashed the checking process; it is not accepted, please report it"
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"'{name[:80]}' cannot be a name; use 1 to 64 letters, digits, '-', '_' and '.', beginning with a letter or digit",
            field="name",
        )


def check_state(state: str, refusal: str, what: str) -> None:
    """Raise where something cannot be used. InvalidInput with its refusal."""
    if state == "refused":
        raise rebuild("INVALID_INPUT", f"{what} was refused: {refusal}")
    if state != "accepted":
        raise InvalidInput(f"{what} is still being checked; try again when it is accepted")
