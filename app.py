"""Likeness as a web app. Start it with `python app.py`, then open the address it prints.

In: nothing but the environment (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT; LIKENESS_HOME for the runs, LIKENESS_BASE for a
base of your own, LIKENESS_KEEP_HOURS). Out: four tabs - Upload, Train, Generate, Score. The same file serves a Hugging
Face Space.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from ui.page.startup import prepare_environment, sweep_uploads

FORGET_S = 300.0  # Gradio itself never forgets a page that was closed


def build() -> tuple[Any, dict[str, Any]]:
    """The Blocks and how to launch them."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    from pipelines.core.presets import PRESETS
    from pipelines.methods import imports
    from ui.front import events as front_events
    from ui.front import layout as front_layout
    from ui.front import picture
    from ui.front.steps import Frame, following
    from ui.generate import events as generate_events
    from ui.generate import finish
    from ui.generate import layout as generate_layout
    from ui.generate.styles import THUMBNAILS
    from ui.page import theme, views
    from ui.page.page import Page
    from ui.page.refresh import Refresh
    from ui.programs import endpoints
    from ui.run.services import Services
    from ui.score import score, verify
    from ui.train import events as train_events
    from ui.train import layout as train_layout
    from ui.upload import events as upload_events
    from ui.upload import layout as upload_layout
    from ui.web.ballot import Ballots
    from ui.web.guard import Guard
    from ui.web.limits import Allowance
    from ui.words.words import languages, say

    services = Services()
    services.resume()
    keep_s = 3600 * keep_hours()
    with Page(title="Likeness", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        front = front_layout.build()
        frame = Frame.build()
        # "menu" hides tabs by a width measured too early
        with gr.Tabs(elem_id="lk-tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab(say("Upload"), id="upload") as upload_tab:
                uploading = upload_layout.build(services, keep_hours=keep_hours())
                following("train", say("Next: Train"))
            with gr.Tab(say("Train"), id="train", render_children=True) as train_tab:
                training = train_layout.build(services)
                following("generate", say("Next: Generate"))
            with gr.Tab(say("Generate"), id="generate", render_children=True) as generate_tab:
                generating = generate_layout.build(services)
                finishing = finish.build(services)
                following("score", say("Next: Score"))
            with gr.Tab(say("Score"), id="score", render_children=True) as score_tab:
                scoring = score.build(services)
                following("generate", say("Draw more pictures"))
        verifying = verify.build()

        page = Refresh(
            services,
            (frame, front),
            {
                "upload": (upload_tab, (uploading,)),
                "train": (train_tab, (training,)),
                "generate": (generate_tab, (generating, finishing)),
                "score": (score_tab, (scoring,)),
            },
        )
        endpoints.build(services)  # before the pages' private handlers, some of which bear the same names
        starts = front_events.wire(front, services, page, tabs)
        upload_events.wire(uploading, services, page)
        starts += train_events.wire(training, services, page)
        starts += generate_events.wire(generating, services, page)
        starts += finish.wire(finishing, services, page)
        score.wire(scoring, services, page)
        verify.wire(verifying)
        page.wire(demo, starts)
        views.wire(demo, front.switch)

    tended = (services, demo, Path(os.environ["GRADIO_TEMP_DIR"]), keep_s)
    threading.Thread(target=_janitor, args=tended, daemon=True, name="likeness-janitor").start()
    demo.queue(max_size=Allowance.from_environment().queue_size, api_open=False)
    guarded: dict[str, Any] = {
        "media": services.media, "uploads": services.uploads, "limits": services.limits, "working_on": demo.working_on,
    }  # fmt: skip
    launch = {
        "theme": theme.theme(),
        "i18n": languages(),
        "css_paths": [*theme.STYLES],
        "show_error": False,
        "enable_monitoring": False,
        "state_session_capacity": 1000,  # pages, should so many come within FORGET_S
        "run_history": False,
        "footer_links": ["settings"],
        "max_file_size": f"{imports.limit_mb('lora'):.0f}mb",  # photos have their own, smaller limit
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "share": False,
        "app_kwargs": {
            "middleware": [
                Middleware(Guard, **guarded),
                Middleware(Ballots, root=services.sessions.root),
            ],
            "routes": [picture.ROUTE, Mount(f"/{THUMBNAILS}", StaticFiles(directory=PRESETS / THUMBNAILS))],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }
    return demo, launch


def keep_hours() -> float:
    """After how many idle hours a run is deleted: $LIKENESS_KEEP_HOURS (0 = never), else 24."""
    try:
        return max(0.0, float(os.environ.get("LIKENESS_KEEP_HOURS") or 24))
    except ValueError:
        raise SystemExit("LIKENESS_KEEP_HOURS must be a number of hours, such as 24.") from None


def _janitor(services: Any, page: Any, uploads: Path, keep_s: float) -> None:
    """At the start and every minute: idle runs, uploads that nobody took in, and pages that were closed."""
    while True:
        try:
            if keep_s:
                services.sweep(older_than_s=keep_s)
            sweep_uploads(3600, uploads)
            services.uploads.prune()
            services.prune()
            page.forget_visits(FORGET_S)
        except Exception as error:  # whatever one damaged file does: the photos of the others still have to go
            logging.getLogger("likeness").error("sweeping failed: %s", type(error).__name__)
        time.sleep(min(60.0, keep_s or 60.0))


def main() -> None:
    prepare_environment()
    demo, launch = build()
    try:
        demo.launch(**launch)
    finally:
        shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


if __name__ == "__main__":
    main()
