"""What people say of a run: its name, tags, a note, whether it is archived, and its group.

It is the user's side's file alone; a worker never reads it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bnviz.files import write_aside
from bnviz.queue import cannot_write, locked
from bnviz.store import Run, StoreError

NAME_LENGTH, TAG_LENGTH, NOTE_LENGTH, TAGS = 100, 30, 10_000, 20

Line = StringConstraints(strip_whitespace=True, pattern=r"^[^\r\n\t]*$")


class About(BaseModel):
    """The content of `about.json`. Runs that were started together have the same `group`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Line, Field(max_length=NAME_LENGTH)] = ""
    tags: Annotated[
        tuple[Annotated[str, Line, Field(min_length=1, max_length=TAG_LENGTH)], ...],
        Field(max_length=TAGS),
    ] = ()
    note: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""
    archived: bool = False
    group: Annotated[str, Line, Field(max_length=NAME_LENGTH)] = ""


def read_about(run: Run) -> About:
    """What is said of a run; nothing, where nobody has or the file is damaged."""
    try:
        return About.model_validate_json(run.paths.about.read_bytes())
    except (OSError, ValidationError):
        return About()


def change_about(run: Run, **changes: Any) -> About:
    """Change some of it. Returns all of it.

    Raises:
        StoreError: a value that cannot be, or the root cannot be written.
    """
    with locked(run.paths.directory.parent):
        try:
            about = About.model_validate({**read_about(run).model_dump(), **changes})
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            raise StoreError(f"{field}: {_ALLOWED[field]}") from error
        if not run.paths.config.is_file():
            raise StoreError(f"{run.run_id} is not there any more")
        try:
            write_aside(run.paths.about, about.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise StoreError(cannot_write(run.paths.directory.parent, error)) from error
    return about


_ALLOWED = {
    "name": f"one line of at most {NAME_LENGTH} characters",
    "tags": f"at most {TAGS} tags, each one line of 1 to {TAG_LENGTH} characters",
    "note": f"at most {NOTE_LENGTH:,} characters",
    "archived": "true or false",
    "group": f"one line of at most {NAME_LENGTH} characters",
}
