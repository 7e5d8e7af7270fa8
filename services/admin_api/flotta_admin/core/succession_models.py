"""What is asked and answered when one coordinator is lost for good, or their quorum is."""

from __future__ import annotations

from pydantic import Field, StrictBool, StrictStr

from flotta_admin.core.models import ID_CHARS_MAX, Answer, Request


class RecoverCoordinatorsRequest(Request):
    """Lets one coordinator go on alone when most of them are lost for good, without what only the others had."""

    gone: list[StrictStr] = Field(
        default=[], max_length=16, description="Coordinators that are lost for good, and stay so."
    )
    dry_run: StrictBool = Field(default=False, description="Only say what would be done, and what may be lost.")
    confirm: StrictStr = Field(
        default="",
        max_length=ID_CHARS_MAX,
        description="The coordinator that would go on, as a dry run says. Not needed for a dry run.",
    )


class ReplaceCoordinatorRequest(Request):
    """Gives up one coordinator that is lost for good while the others have a quorum."""

    node_id: StrictStr = Field(
        min_length=1, max_length=ID_CHARS_MAX, description="The coordinator whose data directory is lost for good."
    )
    dry_run: StrictBool = Field(default=False, description="Only say what would be done, or why not.")


class CoordinatorHolding(Answer):
    """What a coordinator has; zeros where it does not say."""

    node_id: str = Field(description="Its id.")
    state: str = Field(description="ANSWERS, SILENT, or UNREADABLE: something answers, but not as it should.")
    last_term: int = Field(description="Term of the last entry of its log.")
    last_index: int = Field(description="Where its log ends.")
    applied_index: int = Field(description="What of it is applied.")
    map_version: int = Field(description="Version of its map.")
    leader_id: str | None = Field(description="Who leads, as far as it knows; null: nobody.")


class CoordinatorRecovery(Answer):
    """Which coordinator goes on alone, or would, or why none should."""

    message: str = Field(description="What happens now, in a sentence; empty if it is refused.")
    dry_run: bool = Field(description="True: nothing was done.")
    refused: str = Field(description="Of a dry run: why it would be refused; empty if it would be done.")
    node_id: str = Field(description="The coordinator that goes on; empty: none should.")
    map_version: int = Field(description="Version of its map, after the recovery or as it is.")
    seen_map_version: int = Field(description="The greatest version that a coordinator or storage node has seen.")
    voters: list[str] = Field(description="Who votes, as the one with the most complete log has it.")
    coordinators: list[CoordinatorHolding] = Field(description="All of them.")


class CoordinatorReplacement(Answer):
    """That a coordinator is given up, or would be, or why it should not."""

    message: str = Field(description="What happens now, in a sentence; empty if it is refused.")
    dry_run: bool = Field(description="True: nothing was done.")
    refused: str = Field(description="Of a dry run: why it would be refused; empty if it would be done.")
    node_id: str = Field(description="The coordinator that is given up.")
    leader_id: str = Field(description="The coordinator that leads, and answers for this; empty: none does.")
    voters: list[str] = Field(description="Who voted when this was asked.")
    coordinators: list[CoordinatorHolding] = Field(description="All of them, when this was asked.")
