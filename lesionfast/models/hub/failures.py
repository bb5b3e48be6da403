"""What the hub's client raises, as errors that say what to type."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

from lesionfast.errors import DiskError, LesionfastError
from lesionfast.files import REASONS, error_number
from lesionfast.models.hub.answers import checked_answers

PREFIX = "hf://"
# What the client of the hub raises for JSON that it does not expect.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)
MOST_SAID = 300  # letters of a message of the hub
LOGIN = "To log in type: hf auth login, or set HF_TOKEN."


@contextmanager
def explain_errors(name: str) -> Iterator[None]:
    """Check the hub's answers, and turn its errors into ones that say what to type."""
    try:
        with checked_answers(f"{PREFIX}{name}"):
            yield
    except errors.LocalTokenNotFoundError:
        raise LesionfastError(f"{PREFIX}{name}: nobody is logged in. {LOGIN}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise not_fetched(name, error.__cause__) from None
    except errors.RevisionNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} has no such revision. Leave it out, or look at the hub's page."
        ) from None
    except errors.EntryNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} does not hold a model of lesionfast: it has no model.json. "
            "Name one that `lesionfast push` wrote."
        ) from None
    except errors.GatedRepoError:
        raise LesionfastError(
            f"{PREFIX}{name} is gated: its owner asks everybody to accept terms before a download. "
            f"Accept them on its page of the hub. {LOGIN}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} does not exist, or you may not read it. Check the name. {LOGIN}"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise not_fetched(name, error) from None
    except errors.HTTPError as error:  # of its HTTP client: no connection
        raise LesionfastError(
            f"{PREFIX}{name}: the hub is out of reach ({error}). Try again when you are online."
        ) from None
    except OSError as error:
        if error_number(error) is None:
            raise not_understood(name, error) from None
        raise not_kept(name, error) from error
    except (*NONSENSE, ImportError) as error:
        raise not_understood(name, error) from None


def not_kept(name: str, error: OSError) -> DiskError:
    """Return the error for a cache of the hub's client that can't be written, or be locked."""
    reason = REASONS.get(error_number(error)) or error.strerror or str(error)
    return DiskError(
        f"{PREFIX}{name} can't be kept in {error.filename or constants.HF_HUB_CACHE}: {reason}.",
        "Free some space, or set HF_HOME to a folder on another disk.",
    )


def not_understood(name: str, error: Exception) -> LesionfastError:
    """Return the error for an answer that the hub's client did not expect, or a proxy."""
    reason = (str(error) or repr(error)).strip().splitlines()[0][:MOST_SAID]
    if "proxy" in reason.lower():
        return LesionfastError(
            f"{PREFIX}{name}: the proxy can't be used ({reason}). Check HTTPS_PROXY, HTTP_PROXY "
            "and ALL_PROXY, such as HTTPS_PROXY=http://proxy.clinic:3128, or unset them."
        )
    return LesionfastError(
        f"{PREFIX}{name}: the hub's answer makes no sense ({reason}). Try again; check "
        "HF_ENDPOINT if you have set it."
    )


def not_fetched(name: str, cause: BaseException | None) -> LesionfastError:
    """Return the error for what neither the hub nor its cache gives, by the hub's answer."""
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if status == 429:
        return LesionfastError(
            f"{PREFIX}{name}: the hub is asked too often (status 429). Wait some minutes; who is "
            f"logged in may ask more often. {LOGIN}"
        )
    if status >= 500:
        return LesionfastError(
            f"{PREFIX}{name}: the hub has a fault (status {status}). Try again later."
        )
    if status or isinstance(cause, ValueError | errors.FileMetadataError):
        said = getattr(cause, "server_message", None) or str(cause)
        reason = " ".join([*said.splitlines(), repr(cause)][0].split())[:MOST_SAID]
        return LesionfastError(f"{PREFIX}{name}: the hub says: {reason}. {LOGIN}")
    return LesionfastError(
        f"{PREFIX}{name} is not in the cache, and the hub is not asked (HF_HUB_OFFLINE is set) "
        "or out of reach. Connect once, or copy an exported folder here and name that."
    )
