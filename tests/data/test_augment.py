import pytest
import torch

from lesionfast.data.augment import (
    BatchAugment,
    Recipe,
    affine_grid,
    augment,
    augmentations,
    draw_affine,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    """Smooth pictures: a bright blob off the centre on a grey ground."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    blob = torch.exp(-((x - 0.3) ** 2 + y**2) * 12)
    return (0.2 + 0.6 * blob).expand(16, 3, 64, 64).contiguous()


def test_no_recipe_changes_nothing(images):
    assert augment(images, augmentations["none"](), generator()) is images


@pytest.mark.parametrize("name", ["rotate", "dihedral", "standard", "strong"])
def test_shape_and_range_stay_and_pictures_differ(name, images):
    changed = augment(images, augmentations[name](), generator())
    assert changed.shape == images.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed[0] - changed[1]).abs().max() > 0.1


def test_the_grid_is_that_of_torch():
    matrices = draw_affine(5, augmentations["strong"](), generator())
    expected = torch.nn.functional.affine_grid(matrices, [5, 3, 12, 20], align_corners=False)
    torch.testing.assert_close(affine_grid(matrices, 12, 20), expected, rtol=0, atol=1e-6)


def test_rotation_keeps_the_distance_of_the_blob_from_the_centre(images):
    changed = augment(images, Recipe(degrees=180), generator())
    position = changed[:, 0].flatten(1).argmax(1)
    y, x = position // 64 - 31.5, position % 64 - 31.5
    radius = 0.3 * 31.5
    assert ((x**2 + y**2).sqrt() - radius).abs().max() < 1.5
    assert (x < -3).any() and (x > 3).any()  # to all sides


def test_a_mirror_is_exact(images):
    changed = augment(images, Recipe(flip=True), generator())
    for before, after in zip(images, changed, strict=True):
        same = torch.allclose(before, after, atol=1e-4)
        assert same or torch.allclose(before.flip(-1), after, atol=1e-4)
    assert not torch.allclose(images, changed, atol=1e-4)


def test_the_seed_decides(images):
    transform = BatchAugment(augmentations["standard"]())
    draws = []
    for seed in (1, 1, 2):
        transform.reseed(seed)
        draws.append(augment(images, transform.recipe, transform.generator))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_standard_changes_colour_alike_in_all_channels(images):
    changed = augment(images, Recipe(brightness=0.05, contrast=0.1), generator())
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert 0 < (changed - images).abs().max() < 0.12


def test_dihedral_gives_the_eight_exact_views_alike():
    picture = torch.rand(1, 3, 8, 8, generator=generator(1))
    changed = augment(picture.expand(800, 3, 8, 8), augmentations["dihedral"](), generator())
    views = [picture[0].rot90(k, (1, 2)) for k in range(4)]
    views += [view.flip(2) for view in views]
    counts = [sum(torch.equal(each, view) for each in changed) for view in views]
    assert sum(counts) == 800 and min(counts) > 60


def test_a_picture_that_is_not_square_keeps_its_shape():
    changed = augment(torch.rand(16, 3, 6, 8), augmentations["dihedral"](), generator())
    assert changed.shape == (16, 3, 6, 8)


def test_saturation_keeps_grey_grey_and_changes_colours():
    grey = torch.full((8, 3, 4, 4), 0.4)
    recipe = Recipe(saturation=0.5)
    torch.testing.assert_close(augment(grey, recipe, generator()), grey)
    red = torch.tensor([0.8, 0.3, 0.3]).view(1, 3, 1, 1).expand(8, 3, 4, 4)
    spread = augment(red, recipe, generator())
    spread = spread[:, 0, 0, 0] - spread[:, 1, 0, 0]
    assert spread.min() < 0.45 and spread.max() > 0.55


def test_blur_takes_fine_detail_away_and_sharpening_adds_to_it():
    stripes = torch.tensor([0.4, 0.6]).repeat(16).expand(32, 3, 32, 32)
    flat = torch.full((32, 3, 32, 32), 0.4)
    for recipe, lowest, highest in ((Recipe(blur=1), 0.0, 1.0), (Recipe(sharpen=0.5), 1.0, 1.5)):
        detail = augment(stripes, recipe, generator())[..., 8:24].std((1, 2, 3)) / stripes.std()
        assert lowest - 0.05 < detail.min() < detail.max() < highest + 0.05
        assert detail.max() - detail.min() > 0.3
        torch.testing.assert_close(augment(flat, recipe, generator()), flat)


def test_tint_scales_each_channel_of_a_picture_as_a_whole(images):
    gains = augment(images, Recipe(tint=0.1), generator()) / images
    assert gains.flatten(2).std(2).max() < 1e-5
    means = gains.mean((2, 3))
    assert 0.9 < means.min() < 0.97 and 1.03 < means.max() < 1.11
    assert (means[:, 0] - means[:, 2]).abs().max() > 0.03


@pytest.mark.parametrize("name", ["standard", "strong"])
def test_the_changes_of_a_picture_do_not_depend_on_its_batch(name, images):
    recipe = augmentations[name]()
    together = augment(images[:4], recipe, [generator(seed) for seed in range(4)])
    alone = [augment(images[i : i + 1], recipe, [generator(i)]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_recipe_with_a_function_is_never_taken_for_another_in_a_cache():
    keys = [Recipe(change=lambda images, k=k: images * k).key for k in range(50)]
    assert len(set(keys)) == 50  # though the ids of functions that are gone are used again
    kept = Recipe(change=torch.sin)
    assert kept.key == kept.key and Recipe(flip=True).key == Recipe(flip=True).key
    assert Recipe() == Recipe() and kept == Recipe(change=torch.sin)
