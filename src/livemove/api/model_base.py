"""What all bodies of the HTTP API have in common; see models.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Id = Annotated[str, Field(min_length=4, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
Text = Annotated[str, Field(max_length=4096)]
Word = Annotated[str, Field(max_length=128)]
Document = Annotated[str, Field(max_length=262_144)]
Token = Annotated[str, Field(max_length=8192)]


class Model(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", frozen=True)
