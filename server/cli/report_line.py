"""One line of `kvserve doctor`'s report."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the report; `ok` is None for what does not decide."""

    ok: bool | None
    subject: str
    text: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "NO", None: "--"}[self.ok]
        return f"{mark}  {self.subject + ':':14} {self.text}"
