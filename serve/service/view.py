"""What a request is pinned to: one generation, as the groups of shards have it in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from index.filters import united_columns
from index.generation import Generation
from index.group import assign_shards
from ingest.errors import BadInput
from serve.backend import GroupState
from serve.searcher import uri_of


@dataclass(frozen=True)
class Reading:
    """A generation as the gallery has it. `sources`: URL by name. `warning`: of other library versions."""

    generation: Generation
    sources: Mapping[str, str]
    warning: str | None = None

    @property
    def number(self) -> int:
        return self.generation.number


@dataclass(frozen=True)
class Share:
    """What one group has of a generation: digests of its shards, and its rows that can be found."""

    shards: tuple[str, ...]
    rows: int


class View:
    """A generation that is served. Never changed: requests that began with it end with it.

    Attributes:
        shares: of each group, also of those that have not loaded it yet.
        rows: that can be found in all groups.
        lists: inverted lists; 1 where the index is flat. dim: of its vectors; 0 where there are none.
        columns: what filters may name, and its type.
        known: groups that `lists`, `dim` and `columns` are known of; the others have not loaded it yet.
    """

    def __init__(self, reading: Reading, groups: int, states: Sequence[GroupState]) -> None:
        self.reading, self.generation = reading, reading.generation
        self.shares = shares_of(reading.generation, groups)
        self.rows = sum(share.rows for share in self.shares)
        self.lists = max((state.lists for state in states), default=1)
        self.dim = max((state.dim for state in states), default=0)
        self.columns = united_columns(state.columns for state in states)
        self.known = len(states)
        self.images = reading.generation.recipe.features is not None
        self._group = _groups_of_parts(reading.generation, groups)

    @property
    def number(self) -> int:
        return self.generation.number

    @property
    def warning(self) -> str | None:
        return self.reading.warning

    @cached_property
    def filled(self) -> tuple[int, ...]:
        """The groups that have something to find."""
        return tuple(group for group, share in enumerate(self.shares) if share.rows)

    @cached_property
    def published(self) -> datetime:
        """When it was published; the epoch where its record does not say."""
        at = self.generation.writer.get("at")
        return datetime.fromisoformat(at) if at else datetime.fromtimestamp(0, UTC)

    def group_of(self, part: str) -> int:
        """The group in which the rows of a part can be found."""
        return self._group[part]

    def uri(self, source: str, key: str) -> str:
        """Where an image lay when it was listed."""
        return self._roots[source] + key

    @cached_property
    def _roots(self) -> dict[str, str]:
        """What precedes the key in each source's URIs: asking the file system once, not for each result."""
        return {name: uri_of(url, "") for name, url in self.reading.sources.items()}

    def coverage(self, missing: set[int]) -> float:
        """Rows of the groups that are not missing / rows of all; 1 where there is nothing to find."""
        if not missing or not self.rows:
            return 1.0
        return 1.0 - sum(self.shares[group].rows for group in missing) / self.rows

    def shards_of(self, groups: set[int]) -> list[str]:
        return [shard for group in sorted(groups) for shard in self.shares[group].shards]


def _groups_of_parts(generation: Generation, groups: int) -> dict[str, int]:
    """Of shards that cover one part (two builds at once) the first has its rows; others have them masked."""
    group_of = {
        shard.shard: group
        for group, shards in enumerate(assign_shards(generation.shards, groups))
        for shard in shards
    }
    found: dict[str, int] = {}
    for shard in generation.shards:
        for part in shard.parts:
            found.setdefault(part, group_of[shard.shard])
    return found


def shares_of(generation: Generation, groups: int) -> tuple[Share, ...]:
    """What each group has to load of a generation."""
    return tuple(
        Share(
            tuple(shard.shard for shard in shards),
            sum(_live(generation, shard.shard, shard.count) for shard in shards),
        )
        for shards in assign_shards(generation.shards, groups)
    )


def _live(generation: Generation, shard: str, rows: int) -> int:
    mask = generation.masks.get(shard)
    return rows if mask is None else rows - int(mask.sum())


def check_state(state: GroupState, share: Share) -> None:
    """`BadInput` unless a replica has loaded what its group is to have."""
    if state.shards != share.shards or state.rows != share.rows:
        raise BadInput(
            f"group {state.group} has loaded {len(state.shards)} shards with {state.rows} rows of generation "
            f"{state.generation}, and should have {len(share.shards)} with {share.rows}: start its servers "
            "with the same number of groups as this service"
        )
