"""Users' own metrics, for people."""

from __future__ import annotations

from fleetfit.proto.v1 import scoring_pb2, scoring_pb2_grpc
from fleetfit.server.engine.engine import Engine
from fleetfit.server.security.people import People
from fleetfit.server.services.edge import Context
from fleetfit.server.services.identity import person_of


class Scoring(scoring_pb2_grpc.ScoringServicer):
    """See proto/v1/scoring.proto."""

    def __init__(self, engine: Engine, people: People) -> None:
        self._engine = engine
        self._people = people

    async def RegisterScorer(
        self, request: scoring_pb2.RegisterScorerRequest, context: Context
    ) -> scoring_pb2.RegisterScorerResponse:
        owner = person_of(context, self._people)
        return scoring_pb2.RegisterScorerResponse(scorer_id=await self._engine.scoring.register(owner, request))

    async def LeaseScoring(
        self, request: scoring_pb2.LeaseScoringRequest, context: Context
    ) -> scoring_pb2.LeaseScoringResponse:
        return await self._engine.scoring.lease(person_of(context, self._people), request.scorer_id)

    async def RenewScoring(
        self, request: scoring_pb2.RenewScoringRequest, context: Context
    ) -> scoring_pb2.RenewScoringResponse:
        return await self._engine.scoring.renew(person_of(context, self._people), request)

    async def ReportScoring(
        self, request: scoring_pb2.ReportScoringRequest, context: Context
    ) -> scoring_pb2.ReportScoringResponse:
        first = await self._engine.report_scores(person_of(context, self._people), request)
        return scoring_pb2.ReportScoringResponse(first=first)
