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
            ["melanoma or nevus", "bcc", "nv"],
            "count as benign: melanoma or nevus. If one",
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


def test_kinds_of_melanoma_are_one_class_by_map(caplog):
    classes = Classes(["Melanoma, NOS", "Melanoma in situ", "Nevus"])
    announce_classes(classes, CONFIG)
    assert "are melanoma too: Melanoma in situ" in caplog.text
    assert "are those of 'Melanoma, NOS' alone" in caplog.text
    assert """--map 'Melanoma in situ="Melanoma, NOS"' for each""" in caplog.text
    caplog.clear()
    announce_classes(Classes(["Melanoma invasive", "Melanoma in situ", "Nevus"]), CONFIG)
    assert "there are no metrics of melanoma" in caplog.text
    assert "--map 'Melanoma invasive=melanoma'" in caplog.text
    caplog.clear()
    announce_classes(classes, replace(CONFIG, melanoma="Melanoma in situ"))
    assert "WARNING" not in caplog.text
