"""Where a command's words go: JSON lines, plain lines, or a live terminal. One interface, three forms."""

import io
import math
import sys
import textwrap
from typing import IO, Any, Protocol

import msgspec

from cyxcore.wording import human_duration, percent, sparkline
from cyxnet.display import Tally, tell
from cyxnet.messages import Update

LABEL_WIDTH = 10
EPOCHS_SHOWN = 8
BAR_WIDTH = 40
SMALLEST_LOSS = 1e-8
LIVE_ENDS = frozenset(
    {"Completed", "LeaseLost", "FundFailed", "CancelRequested", "DependencyFailed", "Settled", "Refunded"}
)


class Screen(Protocol):
    """What a command says."""

    def say(self, label: str, text: str, kind: str = "", **data: Any) -> None:
        """One thing that happened: a line for people, {"kind", "data"} for programs."""

    def update(self, update: Update) -> None:
        """One thing that happened to a job."""

    def result(self, text: str, data: Any, name: str = "") -> None:
        """What the command was for. With --quiet only its name (the id that was made), where it has one."""

    def table(self, columns: list[str], rows: list[list[str]], data: Any) -> None:
        """Rows for people, `data` for programs. Shown even with --quiet."""

    def remark(self, label: str, text: str) -> None:
        """What people want to know of a table beside it; programs have it in the data, one object and no more."""

    def advance(self, what: str, done: int, total: int) -> None:
        """How far a transfer is; on a live terminal only."""

    def working(self, rows: list[tuple[str, float, str]]) -> None:
        """What is under way side by side: names, how much of each is done (0 to 1), and in words; on a live terminal
        only, until there is none.
        """

    def close(self) -> None: ...


class JsonScreen:
    """One JSON object per line; every line has "kind" and "data"."""

    def __init__(self, out: IO[str]):
        self.out = out

    def say(self, label: str, text: str, kind: str = "", **data: Any) -> None:
        self._print({"kind": kind or label, "data": data or {"text": text}})

    def update(self, update: Update) -> None:
        self._print(update)

    def result(self, text: str, data: Any, name: str = "") -> None:
        self._print({"kind": "result", "data": data})

    def table(self, columns: list[str], rows: list[list[str]], data: Any) -> None:
        self._print(data)

    def remark(self, label: str, text: str) -> None:
        pass

    def advance(self, what: str, done: int, total: int) -> None:
        pass

    def working(self, rows: list[tuple[str, float, str]]) -> None:
        pass

    def close(self) -> None:
        self.out.flush()

    def _print(self, value: Any) -> None:
        self.out.write(msgspec.json.encode(value).decode() + "\n")
        self.out.flush()  # a reader follows line by line


class PlainScreen:
    """One line per thing, without control codes: for pipes, logs and files."""

    def __init__(self, out: IO[str], quiet: bool = False):
        self.out = out
        self.quiet = quiet
        self._attempt = 0  # the newest of which an epoch was told

    def say(self, label: str, text: str, kind: str = "", **data: Any) -> None:
        if not self.quiet:
            self._line(label, text)

    def update(self, update: Update) -> None:
        told = tell(update)
        if update.kind == "epoch":
            self._attempt = max(self._attempt, update.data["attempt"])
        elif update.kind == "Started" and update.data["attempt"] <= self._attempt:
            return  # metrics do not wait for the log: its epochs have told it
        if told and not self.quiet:
            self._line(*told)

    def result(self, text: str, data: Any, name: str = "") -> None:
        self.out.write(clean(name if self.quiet and name else text) + "\n")
        self.out.flush()

    def table(self, columns: list[str], rows: list[list[str]], data: Any) -> None:
        for line in _lines_of(columns, rows):
            self.out.write(line + "\n")
        self.out.flush()

    def remark(self, label: str, text: str) -> None:
        self.say(label, text)

    def advance(self, what: str, done: int, total: int) -> None:
        pass

    def working(self, rows: list[tuple[str, float, str]]) -> None:
        pass

    def close(self) -> None:
        self.out.flush()

    def _line(self, label: str, text: str) -> None:
        self.out.write(f"{clean(label):<{LABEL_WIDTH}}{clean(text)}\n")
        self.out.flush()


class LiveScreen:
    """A terminal: lines as they come, and below them the training as it runs."""

    def __init__(self, out: IO[str], color: bool = True, width: int | None = None):
        from rich.console import Console

        self.console = Console(
            file=out, no_color=not color, highlight=False, force_terminal=True, width=width, markup=False
        )
        self.tally = Tally()
        self._live: Any = None
        self._transfer = ""
        self._rows: list[tuple[str, float, str]] = []

    def say(self, label: str, text: str, kind: str = "", **data: Any) -> None:
        from rich.text import Text

        first, *rest = self._lines(clean(text), LABEL_WIDTH)
        self.console.print(Text.assemble((f"{clean(label):<{LABEL_WIDTH}}", "bold cyan"), first), soft_wrap=True)
        for line in rest:
            self.console.print(Text(" " * LABEL_WIDTH + line), soft_wrap=True)

    def remark(self, label: str, text: str) -> None:
        self.say(label, text)

    def _lines(self, text: str, indent: int) -> list[str]:
        """`text` broken between words. A signature longer than a line stays whole, so that it can be copied."""
        width = max(20, self.console.width - indent)
        joined = text.replace(" %", "\N{NO-BREAK SPACE}%")
        lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False) or [""]
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]

    def update(self, update: Update) -> None:
        self.tally.add(update)
        if update.kind in ("batch", "epoch"):
            self._start()
            return
        if update.kind in LIVE_ENDS:
            self._stop()
        if told := tell(update):
            self.say(*told)

    def result(self, text: str, data: Any, name: str = "") -> None:
        from rich.text import Text

        self._stop()
        for line in self._lines(clean(text), 0):
            self.console.print(Text(line, "bold"), soft_wrap=True)

    def table(self, columns: list[str], rows: list[list[str]], data: Any) -> None:
        from rich.table import Table

        self._stop()
        if columns == ["", ""]:
            self._facts(rows)
            return
        cells = [[clean(cell) for cell in row] for row in rows]
        widths = _widths(columns, cells, self.console.width)
        if widths is None:  # no word is broken but by the terminal, at its edge
            for line in _lines_of(columns, rows):
                self.console.print(line, soft_wrap=True)
            return
        table = Table(box=None, header_style="bold cyan", pad_edge=False, show_header=any(columns))
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, width=width)
        for row in cells:
            table.add_row(*row)
        self.console.print(table)

    def _facts(self, rows: list[list[str]]) -> None:
        """Names and values. A value is broken between words only, as in say()."""
        from rich.text import Text

        indent = max((len(clean(name)) for name, _ in rows), default=0) + 2
        for name, value in rows:
            for place, line in enumerate(self._lines(clean(value), indent)):
                self.console.print(Text(f"{clean(name) if place == 0 else '':<{indent}}{line}"), soft_wrap=True)

    def advance(self, what: str, done: int, total: int) -> None:
        if not self._transfer:
            self._stop()  # a training that is shown: that stays
        self._transfer = f"{what} {percent(done / total)}"
        self._start() if done < total else self._stop()

    def working(self, rows: list[tuple[str, float, str]]) -> None:
        if rows:
            self._rows = rows
            self._start()
        else:
            self._stop()

    def close(self) -> None:
        self._stop()

    def render(self) -> Any:
        """The live part: the newest epochs, the course of the loss, a bar, the present moment."""
        from rich.console import Group
        from rich.text import Text

        if self._transfer:
            return Text(self._transfer)
        if self._rows:
            width = max(len(name) for name, _, _ in self._rows)
            lines = [
                Text.assemble(f"{clean(name):<{width}}  ", *_bar(done), f"  {words}")
                for name, done, words in self._rows
            ]
            return Group(*lines)
        parts: list[Any] = [self._epochs()] if self.tally.epochs else []
        if len(losses := self.tally.course) > 1:
            logs = [math.log10(max(loss, SMALLEST_LOSS)) for loss in losses]  # a loss falls by factors
            parts.append(Text(f"{'log loss':<{LABEL_WIDTH}}{sparkline(logs, BAR_WIDTH)}"))
        bar = Text.assemble(f"{'done':<{LABEL_WIDTH}}", *_bar(self.tally.fraction))
        return Group(*parts, bar, Text(f"{'now':<{LABEL_WIDTH}}{self.tally.headline()}"))

    def _epochs(self) -> Any:
        from rich.table import Table

        table = Table(box=None, header_style="bold cyan", pad_edge=False)
        newest = self.tally.epochs[-EPOCHS_SHOWN:]
        newest = [{**epoch, **(epoch.get("scores") or {})} for epoch in newest]
        scores = {name: None for epoch in self.tally.epochs for name in epoch.get("scores") or {}}
        columns = [*EPOCH_COLUMNS, *((name.replace("_", " "), name, "{:.4f}".format) for name in scores)]
        shown = [row for row in columns if any(epoch.get(row[1]) is not None for epoch in newest)]
        for title, _, _ in shown:
            table.add_column(title, justify="right")
        for epoch in newest:
            table.add_row(*["" if epoch.get(key) is None else form(epoch[key]) for _, key, form in shown])
        return table

    def _start(self) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=8)
            self._live.start()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            # nobody wants to read later that something was read or sent, or was under way
            live.transient = bool(self._transfer or self._rows)
            live.stop()
        self._transfer, self._rows = "", []


def _bar(share: float) -> list[Any]:
    """A bar of what is done, and the share in words: the parts of a Text."""
    done = round(share * BAR_WIDTH)
    return [("━" * done, "green"), ("━" * (BAR_WIDTH - done), "dim"), f" {percent(share)}"]


def _lines_of(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines, each column as wide as its widest cell."""
    cells = [[clean(cell) for cell in row] for row in ([columns, *rows] if any(columns) else rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _widths(columns: list[str], cells: list[list[str]], width: int) -> list[int] | None:
    """How wide each column of a table may be in a terminal, with two blanks between; None where words do not fit.

    The first column has what a row is called, which is copied: it stays whole.
    """
    by_column = list(zip(columns, *cells, strict=True))
    widths = [max(map(len, column)) for column in by_column]
    least = [max((len(word) for cell in column for word in cell.split()), default=0) for column in by_column]
    least[0] = widths[0]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(range(len(widths)), key=lambda place: widths[place] - least[place])
        if widths[widest] == least[widest]:
            return None
        widths[widest] -= 1
    return widths


EPOCH_COLUMNS: list[tuple[str, str, Any]] = [
    ("epoch", "epoch", str),
    ("loss", "epoch_loss", "{:.4f}".format),
    ("accuracy", "epoch_accuracy", percent),
    ("validation loss", "validation_loss", "{:.4f}".format),
    ("validation accuracy", "validation_accuracy", percent),
    ("validation R²", "validation_r2", "{:.4f}".format),
    ("time", "epoch_time_ms", lambda ms: human_duration(ms / 1000)),
    ("samples/s", "samples_per_s", "{:,.0f}".format),
]


def clean(text: str) -> str:
    """Text from elsewhere without control characters: a job's name must not move somebody's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def open_screen(*, as_json: bool, quiet: bool, color: bool, out: IO[str] | None = None) -> Screen:
    out = out or sys.stdout or io.StringIO()  # no stdout at all: `cyx … >&-`
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # a terminal of ASCII gets ? for a letter it lacks, not an error
    if as_json:
        return JsonScreen(out)
    if quiet or not out.isatty():
        return PlainScreen(out, quiet)
    return LiveScreen(out, color)
