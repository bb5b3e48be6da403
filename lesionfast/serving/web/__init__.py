"""The local pages and their HTTP API, which need the packages of the extra `app`."""

from lesionfast.errors import LesionfastError

try:
    import fastapi  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise LesionfastError(
        f"the page needs {error.name}. Type: pip install 'lesionfast[app]'"
    ) from None
