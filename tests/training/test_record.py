"""What a run logs about itself before it starts."""

from dataclasses import replace

import pytest

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes
from lesionfast.training.record import announce_classes

CONFIG = TrainConfig()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["invasive melanoma", "bcc", "nv"],
            "count as benign: invasive melanoma. If one",
        ),
        (["deadly", "harmless"], "no class counts as malignant: deadly, harmless. If one"),
    ],
)
def test_cancers_that_would_be_counted_as_benign_are_a_warning(names, message, caplog):
    announce_classes(Classes(names), CONFIG)
    assert message in caplog.text
    caplog.clear()
    typed = replace(CONFIG, malignant=names[0])
    announce_classes(Classes.chosen(names, names[0], names[0]), typed)
    assert "WARNING" not in caplog.text


def test_usual_names_are_no_warning(caplog):
    announce_classes(Classes(["mel", "bcc", "nv"]), CONFIG)
    assert "WARNING" not in caplog.text
