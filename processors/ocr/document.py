"""What is asked of the OCR kind, and what it answers: the models of its input, its pages and its result.

Boxes are quadrilaterals, since a scan lies skewed: four points, clockwise from the corner where the text begins, in
pixels of the page as it was read. That page is upright: what lay on its side was turned by `rotation` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Point = tuple[int, int]
Box = tuple[Point, Point, Point, Point]
EngineName = Literal["rapidocr", "tesseract"]
TextChoice = Literal["auto", "never", "only"]

SMALLEST_DETAIL: Final = 320
LARGEST_DETAIL: Final = 2560


class OcrInput(BaseModel):
    """How to read the files of the job; all of it has defaults."""

    model_config = ConfigDict(extra="forbid")

    text: TextChoice = Field(
        "auto",
        description="A PDF's own text layer: `auto` takes it on pages where it is good, `never` reads every page by"
        " OCR, `only` reads none.",
    )
    engine: EngineName = Field("rapidocr", description="`tesseract` needs less time and memory, and straight scans.")
    languages: list[Annotated[str, Field(min_length=2, max_length=32)]] = Field(
        default_factory=list,
        max_length=8,
        description="Languages of the text, such as `en` or `zh`; empty: what the engine takes by default.",
    )
    detail: int | None = Field(
        None,
        ge=SMALLEST_DETAIL,
        le=LARGEST_DETAIL,
        description="Pixels of a page's longer side when rapidocr looks for its lines. More finds smaller print and"
        " takes longer. By default 736, and more where that reads badly.",
    )


class Line(BaseModel):
    """A line of text where it stands."""

    text: str
    box: Box
    confidence: float | None = Field(None, ge=0, le=1, description="Null for a line from a text layer.")


class PageProblem(BaseModel):
    """Why a page could not be read."""

    code: str
    detail: str


class Page(BaseModel):
    """A page that was read, or the problem that it has."""

    page: int = Field(ge=1, description="Counted over all files of the job.")
    width: int = Field(0, description="Pixels of the page as it was read; boxes are in these.")
    height: int = 0
    source: Literal["ocr", "text-layer"] | None = None
    rotation: Literal[0, 90, 180, 270] = Field(0, description="Degrees clockwise by which the page was turned upright.")
    skew: float = Field(0, description="Degrees clockwise by which its lines still lean.")
    text: str = ""
    lines: list[Line] = Field(default_factory=list)
    problem: PageProblem | None = None


class OcrResult(BaseModel):
    """All pages, those with a problem among them; `partial` says that there are such."""

    pages: list[Page]
    text: str
    partial: bool = False


class LineBatch(BaseModel):
    """A few lines of a page that is being read, as they are published."""

    page: int
    width: int
    height: int
    first: int = Field(description="How many lines of the page came before these.")
    lines: list[Line]


def text_of(lines: Sequence[Line]) -> str:
    """The text of a page."""
    return "\n".join(line.text for line in lines)


def compact(model: BaseModel) -> dict[str, Any]:
    """A model as it is published: without the fields that say nothing."""
    return model.model_dump(exclude_none=True)
