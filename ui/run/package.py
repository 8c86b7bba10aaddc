"""Everything of a run as one ZIP, and the report's parts, as links."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from pipelines.core.files import jsonable, require_space, told_when_full, write_file
from pipelines.core.run import Run
from ui.run.pictures import favourite_files
from ui.web.media import Media
from ui.words.words import tell


def _packed(run: Run) -> list[Path]:
    """What goes into the download: no photo as it came, no checkpoints, no logs. The report and the grid show the
    person beside the pictures, as the base sees them.
    """
    parts = ("methods", "renders", "finished")
    files = [f for part in parts for f in sorted((run.folder / part).rglob("*")) if f.is_file()]
    apart = re.compile(r"checkpoint|class_images|preview_|finished\.zip|\.")
    files = [f for f in files if not apart.match(f.name)]
    files += [
        f
        for f in (
            run.report,
            run.page,
            run.cells,
            run.figures,
            run.grid,
            run.scores,
            run.marks,
            run.votes,
            run.manifest,
        )
        if f.is_file()
    ]
    return files


def pack(run: Run, media: Media) -> list[tuple[str, str]]:
    """A zip of what was learned, the pictures and the report. Returns (text, link) pairs."""
    from pipelines.reports.archive import readme, settings
    from pipelines.reports.page import refresh_votes

    refresh_votes(run)
    target = run.folder / "likeness.zip"
    liked = favourite_files(run)
    size = sum(file.stat().st_size for file in (*_packed(run), *liked))
    require_space(run.folder, 2 * size, purpose="The download")

    def fill(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for file in _packed(run):
                archive.write(file, file.relative_to(run.folder).as_posix())
            for place, file in enumerate(liked, start=1):
                column = file.relative_to(run.folder).parts[1]
                archive.write(file, f"favourites/{place:02d}-{column}-{file.name}")
            archive.writestr("settings.json", json.dumps(jsonable(settings(run)), indent=1))
            archive.writestr("README.txt", readme(run, _packed(run)))

    with told_when_full():
        write_file(target, fill)
    links = [(tell("Everything as one zip"), media.link(target, name="likeness.zip"))]
    extra = (
        (tell("Report (HTML)"), run.page),
        (tell("Report (JSON)"), run.report),
        (tell("Table (CSV)"), run.cells),
        (tell("Grid (PNG)"), run.grid),
    )
    links += [(text, media.link(file, name=file.name)) for text, file in extra if file.is_file()]
    return links
