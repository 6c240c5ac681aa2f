"""What an HTTP server lets in, and how much of it."""

from pydantic import BaseModel, ConfigDict, Field

MIB = 2**20


class HttpSettings(BaseModel):
    """Limits and doors of the HTTP server. None of it changes what a search finds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_json_bytes: int = Field(default=4 * MIB, ge=1_024, description="of a JSON body; above: 413")
    max_image_bytes: int = Field(default=32 * MIB, ge=1_024, description="of one uploaded file; above: 413")
    max_multipart_bytes: int = Field(
        default=96 * MIB, ge=1_024, description="of a body with several parts; above: 413"
    )
    max_bodies_bytes: int = Field(
        default=512 * MIB, ge=1_024, description="of all bodies in memory at a time; above: 429"
    )
    max_images: int = Field(default=16, ge=1, le=16, description="images of one search")
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="a body must have arrived by then; else 408"
    )
    store_timeout_s: float = Field(
        default=15.0, gt=0, description="uploads and pictures must be there by then; else 504"
    )
    max_connections: int = Field(
        default=4_096, ge=1, description="of one process that is its own HTTP server; above: 429"
    )
    rate_per_s: float | None = Field(
        default=100.0,
        gt=0,
        description="requests a second of one key, on average; null: no limit; above: 429",
    )
    rate_burst: int = Field(default=400, ge=1, description="requests of one key at once")
    origins: tuple[str, ...] = Field(
        default=(), description="web origins (https://host) whose pages may call; none by default"
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names besides loopback that the Host header may have where no key is required",
    )
