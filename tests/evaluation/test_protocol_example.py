"""The stick figure of docs/evaluation.md: the table is what the command prints, and what must hold of it."""

from pathlib import Path

import pytest

from mega.metrics import HIPS, MEGA, STANDARD_3DPW
from tests.evaluation.protocol_example import JOINTS, errors_of, example, wrong_bodies

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_docs_hold_what_is_printed():
    assert example() in DOCS.read_text()


@pytest.mark.parametrize("protocol", [MEGA, STANDARD_3DPW, HIPS], ids=lambda protocol: protocol.name)
def test_a_right_body_has_no_error_and_a_turned_or_scaled_one_none_after_alignment(protocol):
    bodies = wrong_bodies()
    assert max(errors_of(JOINTS, protocol).values()) == pytest.approx(0, abs=1e-6)
    for name in ("whole body turned by 10°", "10 % too large"):
        errors = errors_of(bodies[name], protocol)
        assert errors["PA-MPJPE"] == pytest.approx(0, abs=1e-6)
        assert errors["MPJPE"] > 20


def test_a_wrong_pelvis_moves_a_body_as_far_as_the_protocol_trusts_it():
    pelvis = wrong_bodies()["pelvis 30 mm too low, all else right"]
    found = {protocol.name: errors_of(pelvis, protocol)["MPJPE"] for protocol in (MEGA, STANDARD_3DPW, HIPS)}
    assert found["standard"] == pytest.approx(30)
    assert found["hips"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["mega"] < 30
