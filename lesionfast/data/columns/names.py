"""What columns are called: age, sex and site have a usual name and others in public datasets."""

from collections.abc import Sequence

USUAL = {  # columns of other datasets, in lower case, and what they are called here
    "age": ("age_approx", "age_years", "age_at_diagnosis", "patient_age"),
    "sex": ("gender", "patient_sex", "patient_gender"),
    "localization": (
        *("localisation", "anatom_site_general", "anatom_site_general_challenge", "anatom_site_1"),
        *("anatomical_site", "anatomic_site", "anatomical_location", "body_site", "body_location"),
    ),
}


def find_usual(wanted: str, header: Sequence[str]) -> str | None:
    """Return the column of a table that holds what is wanted, None if none does.

    It is the column of that name, in any case, or of another usual name, such as gender for sex.
    """
    families = [{usual, *others} for usual, others in USUAL.items()]
    family = next((names for names in families if wanted.lower() in names), set())
    known = {name.lower(): name for name in reversed(header)}
    names = [wanted.lower(), *sorted(family)]
    return wanted if wanted in header else next((known[n] for n in names if n in known), None)


def list_renamed(names: dict[str, str]) -> str:
    """Return renamed columns in words: "gender as sex, age_approx as age"."""
    return ", ".join(f"{other} as {usual}" for other, usual in names.items())
