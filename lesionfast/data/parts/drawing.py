"""The seeded, stratified split by lesion or patient.

Groups of a class are put in order of their number of images, and by chance within; then every
k-th is taken (systematic sampling). That meets the shares of lesions and of images as well
as scikit-learn's StratifiedGroupKFold does, gives a rare class a lesion in every part, takes
seconds for a million images, and rests on no more than NumPy's frozen `RandomState`. Groups of
several classes, such as patients, count for their rarest; what classes then lack in a part is made
up for by moving groups.
"""

import logging

import numpy as np
import pandas as pd

from lesionfast.diagnoses import quote
from lesionfast.errors import LesionfastError, list_first, pluralize, shell_quote

logger = logging.getLogger("lesionfast")

FAR_OFF = 0.1  # share of the images asked for: a part that is no more off, or by one, is left as is
TELL = 1.5, 0.25  # images, and share of those asked for, off which is worth a warning
ABSENT = 1e3  # what a class that is missing in a part costs: more than all shares together
MOST_MOVES = 500
MOVES_A_GROUP = 3  # only so often may a group be moved without a gain


def assign_split(
    df: pd.DataFrame,
    *,
    seed: int = 42,
    val: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
) -> pd.DataFrame:
    """Add the column `split` with train, valid and test; no group crosses parts.

    Of each class, `val` and `test` are the shares of lesions (at least one each) and, nearly, of
    images; where groups of several classes do not allow that, a warning says so. With `folds`, what
    is not test is cut into as many folds and number `fold` is validation; the test part is the same
    for every fold. The order of the rows does not matter. Raises `LesionfastError` for impossible
    shares, and for a class in fewer lesions than parts.
    """
    if not 0 <= seed < 2**32 - 1:
        raise LesionfastError(f"--seed is {seed}; type a whole number from 0 to {2**32 - 2}.")
    check_shares(val, test, folds, fold)
    group, target = pd.factorize(df["group"])[0], pd.factorize(df["target"], sort=True)
    coded = pd.DataFrame({"image_id": df["image_id"].array, "group": group, "target": target[0]})
    check_classes(coded, list(target[1]), parts=(folds or 2) + (test > 0))
    lesions = shuffle(list_lesions(coded), seed)
    held = count_held(coded, lesions)
    in_test = take(lesions, test, seed, spare=folds or 2)
    if held is not None and test:
        in_test = even_out(held, in_test.astype(int), [1 - test, test], [folds or 2, 1]) == 1
    rest = lesions[~in_test]
    if folds:
        number, shares = np.arange(len(rest)) % folds, [1 / folds] * folds
    else:
        number = take(rest, val / (1 - test), seed + 1, spare=1).astype(int)
        shares = [1 - val / (1 - test), val / (1 - test)]
    if held is not None:
        number = even_out(held[~in_test], number, shares, [1] * len(shares))
    part = np.full(len(lesions), "train", object)
    part[lesions.loc[in_test, "group"]] = "test"
    part[rest.loc[number == (fold if folds else 1), "group"]] = "valid"
    df = df.assign(split=pd.Series(part[group], df.index, dtype="str"))
    check_parts_of_classes(df, {"valid": (1 - test) / folds if folds else val, "test": test})
    return df


def check_shares(val: float, test: float, folds: int | None, fold: int) -> None:
    """Raise `LesionfastError` for shares or folds that leave a part empty."""
    if not 0 <= test < 1 or not (folds or 0 < val < 1 - test):
        raise LesionfastError(
            f"--val {val} and --test {test} leave no train, validation or test part. Type "
            "shares above 0 (--test 0: no test part) with a sum below 1, such as "
            "--val 0.15 --test 0.15."
        )
    if folds is not None and folds < 2:
        raise LesionfastError(f"--folds is {folds}; type 2 or more, such as --folds 5.")
    if not 0 <= fold < (folds or 1):
        if not folds:
            raise LesionfastError(f"--fold {fold} needs --folds. Type --folds 5 with it.")
        raise LesionfastError(
            f"--fold is {fold}, and --folds is {folds}. Type --fold 0 to --fold {folds - 1}."
        )


def list_lesions(df: pd.DataFrame) -> pd.DataFrame:
    """Return one row a lesion, ordered by its first image id: group, target, images.

    A group of several classes (a patient, joined near-duplicates) counts for the rarest of them.
    """
    df = df.sort_values("image_id")
    images = df["group"].value_counts(sort=False)
    count = df["target"].map(df["target"].value_counts())
    rarest = df.loc[count.sort_values(kind="stable").index].drop_duplicates("group")
    target = rarest.set_index("group")["target"]
    lesions = df[["group"]].drop_duplicates().reset_index(drop=True)
    return lesions.assign(target=lesions["group"].map(target), images=lesions["group"].map(images))


def check_classes(df: pd.DataFrame, names: list[str], parts: int) -> None:
    """Raise `LesionfastError` for a class that fewer lesions hold than there are parts.

    The classes of `df` are positions in `names`.
    """
    counts = df[["group", "target"]].drop_duplicates()["target"].value_counts()
    counts = counts.sort_index().sort_values(kind="stable").items()
    few = ", ".join(f"'{names[of]}' has {count}" for of, count in counts if count < parts)
    if few:
        raise LesionfastError(
            f"the split needs {parts} lesions of each class (patients, where they are known), one "
            f"per part; {few}. Leave such classes out with --rare {parts}=drop, make one class of "
            f"them with --rare {parts}=other, merge them with --map, type fewer --folds, or "
            "--test 0 for no test part."
        )
    if len(names) < 2:
        raise LesionfastError(
            f"there is only one class, '{names[0]}'. Name the column of the diagnosis with "
            "--target."
        )


def shuffle(lesions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Order lesions by class, then by number of images, then by chance."""
    chance = np.random.RandomState(seed).permutation(len(lesions))  # the same in every NumPy
    target, _ = pd.factorize(lesions["target"], sort=True)
    order = np.lexsort([chance, -lesions["images"], target])
    return lesions.iloc[order]


def take(lesions: pd.DataFrame, share: float, seed: int, spare: int) -> np.ndarray:
    """Choose a share of each class, evenly along the order of the rows: bool (n,).

    At least one lesion of each class is taken, and `spare` or more are left; share 0 takes none.
    Because the order is by number of images, the images are shared out as evenly as the lesions.
    """
    size = lesions.groupby("target")["target"].transform("size").to_numpy()
    rank = lesions.groupby("target").cumcount().to_numpy()
    most = np.maximum(size - spare, 0)  # less only where a class is mostly in groups of another
    count = np.clip(np.floor(share * size + 0.5).astype(int), np.minimum(share > 0, most), most)
    start = (np.random.RandomState(seed).random_sample() * size).astype(int)
    return (rank + start + 1) * count // size > (rank + start) * count // size


def count_held(df: pd.DataFrame, lesions: pd.DataFrame) -> np.ndarray | None:
    """Return the images of each class (k) that each lesion holds: int (n, k).

    Groups and classes are numbers from 0. None if no lesion holds several classes.
    """
    place, classes = np.empty(len(lesions), int), int(df["target"].max()) + 1
    place[lesions["group"]] = np.arange(len(lesions))
    pairs = place[df["group"]] * classes + df["target"].to_numpy()
    if len(pd.unique(pairs)) == len(lesions):
        return None
    return np.bincount(pairs, minlength=len(lesions) * classes).reshape(-1, classes)


def even_out(
    held: np.ndarray, part: np.ndarray, shares: list[float], least: list[int]
) -> np.ndarray:
    """Move groups between parts until each part has its share of every class; returns int (n,).

    `held` are the images of each class (n, k) in a group, `part` (n,) the number of its part,
    `least` how many groups of a class a part needs. The worst part of a class is improved first, by
    the move after which all shares fit best, until none is far off or no move helps. Sums are taken
    class by class, so that every machine rounds alike.
    """
    board = Board(held, part, np.asarray(shares), np.asarray(least))
    best, given_up = (board.cost, board.part.copy()), np.zeros_like(board.off, bool)
    for _ in range(MOST_MOVES):
        need = np.where(given_up, 0, board.needs())
        if not need.any():
            break
        where, of = np.unravel_index(need.argmax(), need.shape)
        if board.improve(int(where), int(of)):
            given_up[:] = False
        else:
            given_up[where, of] = True
        if board.cost < best[0]:
            best = board.cost, board.part.copy()
    return best[1]


class Board:
    """Which part each group is in, and how far each part (p) is off its share of each class (k)."""

    def __init__(
        self, held: np.ndarray, part: np.ndarray, shares: np.ndarray, least: np.ndarray
    ) -> None:
        self.held, self.part = held, part.copy()
        self.moves = np.zeros(len(part), int)
        self.total = held.sum(axis=0)
        self.want = shares[:, None] * self.total
        inside = [held[part == number] for number in range(len(shares))]
        self.off = np.array([rows.sum(axis=0) for rows in inside]) - self.want
        self.groups = np.array([(rows > 0).sum(axis=0) for rows in inside])
        enough = (held > 0).sum(axis=0) >= least.sum()
        self.least = np.where(enough, least[:, None], 0)
        self.cost = float((self.off**2 / self.total**2).sum() + ABSENT * self.missing().sum())

    def missing(self) -> np.ndarray:
        """Return how many groups of each class each part lacks: int (p, k)."""
        return np.maximum(self.least - self.groups, 0)

    def needs(self) -> np.ndarray:
        """Return how much each part needs a change of each class (p, k); 0 where it fits."""
        fits = np.abs(self.off) <= np.maximum(1, FAR_OFF * self.want)
        return np.where(fits, 0, np.abs(self.off) / self.total) + ABSENT * self.missing()

    def improve(self, where: int, of: int) -> bool:
        """Make the best move that gives a part more, or less, of a class; False if none helps."""
        lacks = self.missing()[where, of] > 0
        if lacks or self.off[where, of] < 0:
            groups = np.flatnonzero((self.held[:, of] > 0) & (self.part != where))
            goal = where
        else:
            groups = np.flatnonzero((self.held[:, of] > 0) & (self.part == where))
            others = np.arange(len(self.off)) != where
            goal = int(np.where(others, self.off[:, of], np.inf).argmin())
        if lacks:  # may cost other classes something, which is then made up for
            groups = groups[self.moves[groups] < MOVES_A_GROUP]
        if not len(groups):
            return False
        gain = self.change(groups, goal)
        chosen = int(gain.argmin())
        if gain[chosen] > -1e-9 and not lacks:
            return False
        self.move(int(groups[chosen]), goal, float(gain[chosen]))
        return True

    def change(self, groups: np.ndarray, goal: int) -> np.ndarray:
        """Return by how much each of some groups (m,) would change the cost if moved to `goal`."""
        start, gain = self.part[groups], np.zeros(len(groups))
        for of in np.flatnonzero(self.held[groups].any(axis=0)):
            images = self.held[groups, of]
            shift = images - self.off[start, of] + self.off[goal, of]
            gain += 2 * images * shift / self.total[of] ** 2
            lost = self.groups[start, of] <= self.least[start, of]
            found = self.groups[goal, of] < self.least[goal, of]
            gain += ABSENT * (images > 0) * (lost.astype(int) - int(found))
        return gain

    def move(self, group: int, goal: int, gain: float) -> None:
        """Put a group into another part."""
        start, images = self.part[group], self.held[group]
        self.part[group] = goal
        self.moves[group] += 1
        self.off[start] -= images
        self.off[goal] += images
        self.groups[start] -= images > 0
        self.groups[goal] += images > 0
        self.cost += gain


def check_parts_of_classes(df: pd.DataFrame, shares: dict[str, float]) -> None:
    """Warn of classes of which a part has far from its share of the images, or none.

    Raises `LesionfastError` for a class that train lacks.
    """
    images = pd.crosstab(df["target"], df["split"])
    images = images.reindex(columns=["train", *(name for name in shares if shares[name])]).fillna(0)
    if len(untaught := images.index[images["train"] == 0]):
        raise LesionfastError(
            f"class {list_first(untaught, 5)} is left with no image in train: its images belong to "
            "lesions or patients with images of other classes, which other parts need. Leave it out"
            f" with --drop-class {shell_quote(quote(untaught[0]))}, or type --test 0 for no test "
            "part."
        )
    total, short = images.sum(axis=1), []
    for part in images.columns[1:]:
        asked = shares[part] * total
        far = (images[part] - asked).abs() > np.maximum(TELL[0], TELL[1] * asked)
        for name in images.index[far | (images[part] == 0)]:
            of_all = f"{int(images.at[name, part]):,} of {pluralize(int(total[name]), 'image')}"
            wanted = max(1, round(asked[name]))
            short.append(f"class {name} has {of_all} in {part} instead of {wanted:,}")
    if short:
        logger.warning(
            "Images of a lesion or patient stay together, so shares are not all as asked: %s",
            list_first(short, 6),
        )
