"""Scanned invoices to checked data: a pipeline of OCR, extraction into a pydantic model, and a check of the sums.

make run MODULES=examples.invoice                    # then drop examples/documents/invoice.jpg on its page, or:
outlast submit invoice examples/documents/invoice.jpg

By default rules take the fields out of the text: quick, and only good for invoices of a plain kind. A language model
does better: INVOICE_MODEL names one that the kind `llm` can ask (see docs/llm.md).

OUTLAST_LLM_URL=http://127.0.0.1:11434/v1 INVOICE_MODEL=qwen3 make run MODULES=examples.invoice
"""

import os
import re
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from processors import Context, Rejected, SyncContext, pipeline, processor, step

MODEL = os.environ.get("INVOICE_MODEL", "")


class Line(BaseModel):
    article: str
    quantity: Decimal
    price: Decimal
    amount: Decimal


class Invoice(BaseModel):
    number: str
    date: date
    currency: str | None = None
    lines: list[Line] = Field(min_length=1)
    tax: Decimal = Decimal(0)
    total: Decimal


class Text(BaseModel):
    text: str


class Checked(BaseModel):
    invoice: Invoice
    doubts: list[str] = Field(description="What somebody should look at: sums that differ by more than rounding.")


# --- extraction by rules --------------------------------------------------------------------------------------------

MONEY = r"\d[\d,]*\.\d\d"
NUMBER = re.compile(r"\binvoice\b\W*(?:(?:no|nr|number)\b\W*)?([A-Z]*\d[\w/-]*)", re.IGNORECASE)
DATE = re.compile(r"\b(\d{4}-\d\d-\d\d|\d{1,2} [A-Z][a-z]+ \d{4})\b")
ROW = re.compile(rf"^(?:\d+ )?(.+) (\d+(?:\.\d+)?) ({MONEY}) ({MONEY})$", re.MULTILINE)
TAX = re.compile(rf"^(?:VAT|tax)\b.* ({MONEY})$", re.IGNORECASE | re.MULTILINE)
TOTAL = re.compile(rf"^total\b(?: ([A-Z]{{3}}))? ({MONEY})$", re.IGNORECASE | re.MULTILINE)


@processor("extract_fields", listed=False)
def extract_fields(ctx: SyncContext, input: Text) -> Invoice:
    """Take an invoice's fields out of its text by rules: English, a line for each article, amounts as 1,234.50."""
    number, day, total = (rule.search(input.text) for rule in (NUMBER, DATE, TOTAL))
    rows = ROW.findall(input.text)
    found = {"a number": number, "a date": day, "lines with amounts": rows, "a total": total}
    missing = [name for name, value in found.items() if not value]
    if not (number and day and total and rows):
        detail = f"No rule finds {' or '.join(missing)} in the text. INVOICE_MODEL lets a language model read it."
        raise Rejected(detail, "fields_missing")
    for at, row in enumerate(rows, 1):
        ctx.event("invoice.line", {"article": row[0], "amount": row[3]})
        ctx.progress(at, len(rows), unit="lines")
    tax = TAX.search(input.text)
    return Invoice(
        number=number[1],
        date=datetime.strptime(day[1], "%Y-%m-%d" if "-" in day[1] else "%d %B %Y").date(),
        currency=total[1],
        lines=[Line(article=row[0], quantity=row[1], price=money(row[2]), amount=money(row[3])) for row in rows],
        tax=money(tax[1]) if tax else Decimal(0),
        total=money(total[2]),
    )


def money(text: str) -> Decimal:
    """An amount such as 1,234.50."""
    return Decimal(text.replace(",", ""))


# --- extraction by a language model ---------------------------------------------------------------------------------

SCHEMA = Invoice.model_json_schema()
TASK = (
    "You get the text of a scanned invoice. Answer with one JSON object of this JSON Schema, and nothing else. Dates"
    " are YYYY-MM-DD; amounts have a decimal point and no thousands separator.\n" + to_json(SCHEMA).decode()
)


@processor("extract_by_model", listed=False)
async def extract_by_model(ctx: Context, input: Text) -> Invoice:
    """Have a language model take an invoice's fields out of its text; a wrong answer is asked for once more."""
    messages = [{"role": "system", "content": TASK}, {"role": "user", "content": input.text}]
    schema = {"type": "json_schema", "json_schema": {"name": "invoice", "schema": SCHEMA}}
    wrong = ""
    for turn in ("ask", "ask-again"):
        asked = {"model": MODEL, "messages": messages, "response_format": schema, "temperature": 0}
        answer = await ctx.run("llm", asked, step=turn)
        try:
            return Invoice.model_validate_json(answer["text"])
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors())
        said = {"role": "assistant", "content": answer["text"]}
        messages = [*messages, said, {"role": "user", "content": f"That doesn't fit the schema: {wrong}. Try again."}]
    raise Rejected(f"The model's answer fits no invoice, twice: {wrong}", "answer_invalid")


# --- the check and the pipeline -------------------------------------------------------------------------------------


@processor("check_invoice", listed=False)
def check_invoice(ctx: SyncContext, input: Invoice) -> Checked:
    """Check that an invoice's amounts add up."""
    doubts = [
        f"{line.article}: {line.quantity} times {line.price} is {line.quantity * line.price}, not {line.amount}"
        for line in input.lines
        if abs(line.quantity * line.price - line.amount) > Decimal("0.01")
    ]
    added = sum((line.amount for line in input.lines), input.tax)
    if abs(added - input.total) > Decimal("0.01") * len(input.lines):
        doubts.append(f"The lines and the tax add up to {added}, not {input.total}")
    for doubt in doubts:
        ctx.log(doubt, "warning")
    return Checked(invoice=input, doubts=doubts)


def text_of(done: Any) -> dict[str, str]:
    """What the extraction gets of what the OCR has read."""
    return {"text": done.previous["text"]}


invoice = pipeline(
    "invoice",
    step("ocr", weight=6)
    >> step(extract_by_model if MODEL else extract_fields, "extract", weight=3, input=text_of)
    >> step(check_invoice, "check"),
    result=Checked,
    files="required",
    content_types=("application/pdf", "image/*"),
    description="Reads a scanned invoice, takes its fields out of the text, and checks that they add up.",
)
