from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import Conflict
from fleetfit.server.engine.states import (
    ENDED_CANDIDATE,
    CandidateState,
    ScoringState,
    VariantState,
    follow,
    follow_scoring,
    next_candidate_state,
)

candidates = st.sampled_from(list(CandidateState))
variants = st.sampled_from(list(VariantState))


@given(wanted=candidates)
def test_what_was_measured_stays_measured(wanted: CandidateState) -> None:
    if wanted is CandidateState.MEASURED:
        assert follow("measured", wanted) is wanted
    else:
        with pytest.raises(Conflict, match="measured cannot become"):
            follow("measured", wanted)


@given(state=candidates)
def test_to_stay_is_allowed_so_that_steps_may_be_taken_again(state: CandidateState) -> None:
    assert follow(str(state), state) is state


@given(path=st.lists(candidates, max_size=12))
def test_no_candidate_is_measured_without_measuring(path: list[CandidateState]) -> None:
    present = CandidateState.WAITING
    been = {present}
    for wanted in path:
        try:
            present = follow(str(present), wanted)
        except Conflict:
            continue
        been.add(present)
        assert CandidateState.MEASURED not in been or CandidateState.MEASURING in been


@given(present=st.sampled_from(["waiting", "compressing"]), variant=variants, original=variants)
def test_every_step_that_is_proposed_is_allowed(present: str, variant: VariantState, original: VariantState) -> None:
    state, measure = next_candidate_state(str(variant), str(original))
    assert follow(present, state) is state
    assert measure == (state is CandidateState.MEASURING)
    assert measure == (variant is original is VariantState.DONE)
    assert (state in ENDED_CANDIDATE) == (VariantState.FAILED in (variant, original))


@given(path=st.lists(st.sampled_from(list(ScoringState)), max_size=12))
def test_scores_count_only_after_a_lease_and_their_report(path: list[ScoringState]) -> None:
    present = ScoringState.WAITING
    been = [present]
    for wanted in path:
        try:
            present = follow_scoring(str(present), wanted)
        except Conflict:
            continue
        been.append(present)
    if ScoringState.DONE in been:
        at = been.index(ScoringState.DONE)
        assert been[at - 2 : at] == [ScoringState.LEASED, ScoringState.REPORTED]
        assert been[at:] == [ScoringState.DONE]


def test_an_unknown_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        follow("measured?", CandidateState.WAITING)
