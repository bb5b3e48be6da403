"""The local page and its HTTP API: for one person on this machine, without a network."""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.page import read_template
from lesionfast.serving.page import answer_html, error_html
from lesionfast.serving.service import MOST_BYTES, Service

logger = logging.getLogger("lesionfast")

LOCAL, SWEPT = "127.0.0.1", 300  # seconds
NOT_KNOWN = "not known"
TITLE = "What does the model make of this lesion?"
NOTE = "Not a medical device: for research, not for diagnosis. Images stay on this machine."
CHOOSE = "choose an image first."


def serve(source: str | Path, *, host: str = LOCAL, port: int = 7860, device: str = "auto") -> None:
    """Open the page of a model at host and port, and its HTTP API, until it is stopped.

    Uploads lie in a folder of this process, each until its answer, and the folder goes with it.
    Raises `LesionfastError` without gradio, and for what is no model.
    """
    require_gradio()
    service = Service(source, device)
    if host not in (LOCAL, "localhost"):
        logger.warning("%s is open to the network: whoever reaches it can upload images", host)
    with tempfile.TemporaryDirectory(prefix="lesionfast-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import uvicorn

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes
        print(f"http://{host}:{port}", flush=True)
        uvicorn.run(build_app(service), host=host, port=port, log_level="warning")


def require_gradio() -> None:
    """Raise `LesionfastError` unless gradio is installed; its telemetry is off before it loads."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise LesionfastError(
            "the page needs gradio. Type: pip install 'lesionfast[app]'"
        ) from None


def build_app(service: Service) -> Any:
    """Return the ASGI application: the API, with the page at its root."""
    import gradio

    from lesionfast.serving.api import build_api

    plain = ["system-ui", "sans-serif"]
    theme = gradio.themes.Default(font=plain, font_mono=["monospace"])
    return gradio.mount_gradio_app(
        build_api(service),
        build_page(service),
        path="/",
        theme=theme,
        css=read_template("answer.css"),
        max_file_size=MOST_BYTES,
        show_error=True,
    )


def build_page(service: Service) -> Any:
    """Return the Gradio page: an image, what is known of the person, and the answer."""
    import gradio

    columns = service.bundle.encoder.learned
    kept = {"delete_cache": (SWEPT, SWEPT)}  # uploads that nobody asked about
    with gradio.Blocks(analytics_enabled=False, title="lesionfast", **kept) as page:
        gradio.Markdown(f"# {TITLE}\n{NOTE}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                image = gradio.File(label="Image of a lesion (up to 20 MB)", type="filepath")
                fields = [field_of(each) for each in columns]
                button = gradio.Button("Predict", variant="primary")
            with gradio.Column(scale=2, min_width=300):
                answer = gradio.HTML(value="", padding=False)

        def predict(path: str | None, *values: Any) -> str:
            names = [each["name"] for each in columns]
            return answer_of(service, path, dict(zip(names, values, strict=True)))

        button.click(predict, [image, *fields], answer, api_name=False, show_progress="minimal")
    return page


def field_of(learned: dict[str, Any]) -> Any:
    """Return the field of one metadata column."""
    import gradio

    name = learned["name"]
    if learned["kind"] == "number":
        return gradio.Textbox(label=name, placeholder=NOT_KNOWN, max_lines=1)
    return gradio.Dropdown([NOT_KNOWN, *learned["values"]], value=NOT_KNOWN, label=name)


def answer_of(service: Service, path: str | None, values: dict[str, Any]) -> str:
    """Return the answer to an uploaded file as HTML; the file is gone afterwards."""
    known = {k: v for k, v in values.items() if v not in (None, "", NOT_KNOWN)}
    try:
        if path is None:
            raise LesionfastError(CHOOSE)
        data = Path(path).read_bytes()
        return answer_html(service.bundle, service.answer(data, known))
    except LesionfastError as error:
        return error_html(service.bundle, error)
    finally:
        if path is not None:
            Path(path).unlink(missing_ok=True)
