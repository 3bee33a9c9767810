"""The file of ``vaccel distill diagnose``: read whole, or refused with the name of the field."""

from __future__ import annotations

import json

import pytest

from vaccel.planning import noise_levels

CURVE = {"points": [0, 1], "sigma": [0.1, 0.2], "loss": [1.0, 2.0], "gradient": [3.0, 4.0], "boundary": 0.7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"curves": {"teacher": {**CURVE, "loss": [1.0]}}}), "curves.teacher.loss must have 2 entries"),
        (json.dumps({"curves": {"teacher": {**CURVE, "sigma": ["a", 1]}}}), r"curves.teacher.sigma\[0\] must be"),
        (json.dumps({"curves": {"teacher": {**CURVE, "boundary": None}}}), "curves.teacher.boundary must be"),
        (
            json.dumps({"curves": {"teacher": {**CURVE, "gradient": [float("nan"), 1]}}}),
            r"teacher.gradient\[0\]",
        ),
        (json.dumps({"curves": {"teacher": 3}}), "curves.teacher must be an object"),
        (json.dumps({"curves": {}}), "curves must be"),
        ("[]", "it must be an object"),
        ("{", "was cut short"),
        ("[" * 100_000, "is not what"),
        ("\x00\xff", "is not what"),
    ],
)
def test_a_damaged_diagnosis_names_its_field(text, message, tmp_path):
    path = tmp_path / "diagnosis.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        noise_levels.read(path)
    assert str(path) in str(error.value)


def test_a_whole_diagnosis(tmp_path):
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps({"curves": {"teacher": {**CURVE, "settings": {}}}}))
    assert noise_levels.read(path)["teacher"]["loss"] == [1.0, 2.0]
