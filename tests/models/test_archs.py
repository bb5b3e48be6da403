"""Names of architectures: which library each is taken from, and what an unknown one says."""

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.models.archs import find_arch, list_archs, names_of


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet50", ("torchvision", "resnet50")),
        ("timm:resnet50", ("timm", "resnet50")),
        ("torchvision:resnet50", ("torchvision", "resnet50")),
        ("resnet50.a1_in1k", ("timm", "resnet50.a1_in1k")),
        ("timm:resnet50.a1_in1k", ("timm", "resnet50.a1_in1k")),
        ("tf_efficientnet_lite0", ("timm", "tf_efficientnet_lite0")),
    ],
)
def test_a_name_of_both_libraries_is_torchvisions_unless_said(arch, expected):
    assert find_arch(arch) == expected


def test_every_name_is_listed_with_its_library():
    archs = list_archs()
    own = names_of("lesionfast")
    assert set(archs) == {*own, *names_of("timm"), *names_of("torchvision")}
    for name, library in archs.items():
        assert find_arch(name) == ("lesionfast" if name in own else library, name)
    assert list(archs) == [*own, *sorted(set(archs) - set(own))] and len(archs) > 1000
    assert not any("quantized" in name or "rcnn" in name for name in archs)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("densnet121", "Did you mean 'densenet121'.*lesionfast list archs"),
        ("DenseNet121", "Did you mean 'densenet121'"),
        ("", "lesionfast list archs"),
        ("timm:mobilenet_v3_large", "timm does not have it"),
        ("torchvision:resnet50.a1_in1k", "torchvision does not have it"),
        ("keras:vgg16", "Type torchvision:vgg16 or timm:vgg16"),
        ("resnet50.a1_in1", "Did you mean 'a1_in1k'.*Type --arch resnet50 for its default"),
        ("resnet50.", "has no weights ''"),
    ],
)
def test_an_unknown_name_says_what_to_type(arch, message):
    with pytest.raises(LesionfastError, match=message):
        find_arch(arch)
