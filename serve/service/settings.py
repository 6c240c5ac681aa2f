"""What a service may spend and how patient it is. But for the last two, none of it changes
an answer that is complete."""

from pydantic import BaseModel, ConfigDict, Field


class ServiceSettings(BaseModel):
    """Limits, deadlines and periods of one service; seconds unless the name says otherwise.

    Cheap searches (by vector, by image id without a second look) and dear ones (uploads, and whatever looks
    again at pairs) have limits of their own, so that neither waits for the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector_timeout_ms: int = Field(2_000, ge=1, description="deadline of a cheap search that names none")
    image_timeout_ms: int = Field(15_000, ge=1, description="deadline of a dear search that names none")
    vector_concurrency: int = Field(32, ge=1, description="cheap searches at once")
    vector_queue: int = Field(128, ge=0, description="cheap searches that wait")
    image_concurrency: int = Field(4, ge=1, description="dear searches at once")
    image_queue: int = Field(16, ge=0, description="dear searches that wait")

    scan_share: float = Field(
        0.6, gt=0, le=1, description="part of the time left that the first scan may take where steps follow"
    )
    step_share: float = Field(
        0.85,
        gt=0,
        le=1,
        description="part of the time left that a step may take",
    )
    answer_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="part of the deadline kept for writing the answer",
    )
    answer_most_s: float = Field(0.2, ge=0, description="that part, at most")

    batch_most: int = Field(32, ge=1, description="scans in one message to a replica")
    batches_in_flight: int = Field(4, ge=1, description="messages to one replica at once")
    hedge_least_s: float = Field(0.02, gt=0, description="least wait before another replica is asked too")
    hedge_most_s: float = Field(0.5, gt=0, description="longest wait before another replica is asked too")
    hedge_factor: float = Field(3.0, ge=1, description="that wait, in recent medians of an answer's time")
    hedge_share: float = Field(0.1, ge=0, le=1, description="most hedges a message sent, after a burst of 10")
    pause_first_s: float = Field(0.1, gt=0, description="how long a replica that failed is no first choice")
    pause_most_s: float = Field(2.0, gt=0, description="the same after many failures: doubled each time")

    poll_s: float = Field(2.0, gt=0, description="between two looks at the gallery for a newer generation")
    poll_most_s: float = Field(30.0, gt=0, description="the same while the store does not answer")
    supervise_s: float = Field(0.5, gt=0, description="between two looks at every replica")
    probe_timeout_s: float = Field(2.0, gt=0, description="one that answers nothing for so long is down")
    load_timeout_s: float = Field(900.0, gt=0, description="for one replica to load its part of a generation")
    settle_s: float = Field(
        10.0,
        ge=0,
        description="how long a flip waits for further replicas once every group has one, and for one that "
        "loads before the next of its group begins too",
    )
    start_timeout_s: float = Field(900.0, gt=0, description="for the first generation to be there")
    start_fallbacks: int = Field(
        3, ge=0, description="older generations tried at the start where the newest cannot be loaded"
    )

    near_duplicates: float = Field(
        0.9, gt=0, le=1, description="similarity of stored vectors from which two images are near-duplicates"
    )
    weak_features: int = Field(
        50, ge=0, description="a query with fewer local features is weak: its matches may be chance"
    )

    @property
    def most_inside(self) -> int:
        """The most requests of one kind that are worked on or wait."""
        return max(self.vector_concurrency + self.vector_queue, self.image_concurrency + self.image_queue)
