"""What every stage of a run needs: where it works, who does the work and how, and who is told."""

from dataclasses import dataclass, field

from ingest.compute import Compute
from ingest.engine import Engine
from ingest.gallery import Gallery
from ingest.progress import Progress


@dataclass(frozen=True)
class Job:
    """A gallery, the engine that runs functions over its parts, the progress shown meanwhile, and devices."""

    gallery: Gallery
    engine: Engine
    progress: Progress
    compute: Compute = field(default_factory=Compute)
