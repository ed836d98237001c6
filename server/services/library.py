"""Models and datasets, for people."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleetfit.proto.v1 import models_pb2, models_pb2_grpc
from fleetfit.server.engine.engine import Engine
from fleetfit.server.security.people import People
from fleetfit.server.services.edge import Context
from fleetfit.server.services.identity import person_of


class Models(models_pb2_grpc.ModelsServicer):
    """See proto/v1/models.proto."""

    def __init__(self, engine: Engine, people: People) -> None:
        self._engine = engine
        self._people = people

    async def PushModel(
        self, request: models_pb2.PushModelRequest, context: Context
    ) -> AsyncIterator[models_pb2.PushModelResponse]:
        owner = person_of(context, self._people)
        parts = {"pre": request.pre.sha256} if request.HasField("pre") else {}
        parts |= {"post": request.post.sha256} if request.HasField("post") else {}
        model = (request.name, request.artifact.sha256, request.format)
        async for response in self._engine.push_model(*model, owner, parts):
            yield response

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=await self._engine.library.models())

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:
        return models_pb2.GetModelResponse(model=await self._engine.library.model(request.model))

    async def GetVariant(
        self, request: models_pb2.GetVariantRequest, context: Context
    ) -> models_pb2.GetVariantResponse:
        return await self._engine.variant(request.variant, person_of(context, self._people))

    async def PushRecovered(
        self, request: models_pb2.PushRecoveredRequest, context: Context
    ) -> AsyncIterator[models_pb2.PushRecoveredResponse]:
        owner = person_of(context, self._people)
        async for response in self._engine.push_recovered(request.variant, request.artifact.sha256, owner):
            yield response


class Datasets(models_pb2_grpc.DatasetsServicer):
    """See proto/v1/models.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def PushDataset(
        self, request: models_pb2.PushDatasetRequest, context: Context
    ) -> AsyncIterator[models_pb2.PushDatasetResponse]:
        async for response in self._engine.push_dataset(request):
            yield response

    async def ListDatasets(
        self, request: models_pb2.ListDatasetsRequest, context: Context
    ) -> models_pb2.ListDatasetsResponse:
        return models_pb2.ListDatasetsResponse(datasets=await self._engine.library.datasets())

    async def GetDataset(
        self, request: models_pb2.GetDatasetRequest, context: Context
    ) -> models_pb2.GetDatasetResponse:
        return models_pb2.GetDatasetResponse(dataset=await self._engine.library.dataset(request.dataset))
