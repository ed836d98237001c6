"""Archives as PyTorch's versions write them, by `write_archive.py`: read, and answering as the network did there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.archive import check_archive
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays

ARCHIVES = sorted((Path(__file__).parent / "archives").glob("*.pt2"))


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_it_answers_as_it_did_where_it_was_written(path: Path) -> None:
    assert path.stem == f"torch-{check_archive(path).torch_version.partition('+')[0]}"
    model = load_pt2(path)
    assert model.dynamic_batch
    # One weight of 36 by 36 has two names; the statistics and the buffer are no parameters.
    assert model.parameters_count() == 36 + 8 + 36 * 36 + 2 * 36 + 144 * 3 + 3
    wanted = np.load(path.with_suffix(".npz"))
    (found,) = outputs_over(model, Arrays({"image": wanted["image"]}, None)).values()
    np.testing.assert_allclose(found.numpy(), wanted["answer"], atol=1e-5)


def test_all_three_layouts_are_there() -> None:
    layouts = {(checked.legacy, len(checked.pickles)) for checked in map(check_archive, ARCHIVES)}
    assert layouts == {(True, 3), (False, 3), (False, 1)}
