"""What every stage of a run needs: where it works, who does the work, and who is told."""

from dataclasses import dataclass

from ingest.engine import Engine
from ingest.gallery import Gallery
from ingest.progress import Progress


@dataclass(frozen=True)
class Job:
    """A gallery, the engine that runs functions over its parts, and the progress shown meanwhile."""

    gallery: Gallery
    engine: Engine
    progress: Progress
