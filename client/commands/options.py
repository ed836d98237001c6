"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Server = Annotated[
    str,
    typer.Option("--server", metavar="HOST:PORT", help="The server; else FLEETFIT_SERVER, else the one running here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
On = Annotated[
    list[str],
    typer.Option("--on", metavar="DEVICE_OR_LABEL...", help="Devices by name or label, or 'all'; several may follow."),
]
Threads = Annotated[
    list[int], typer.Option("--threads", metavar="N...", help="Threads to measure with; else the device's own.")
]
Batch = Annotated[list[int], typer.Option("--batch", metavar="N...", help="Batch sizes to measure with; else 1.")]
Scaling = Annotated[
    bool,
    typer.Option(
        "--scaling",
        help="Measure last how the chosen build and its original scale: threads, batches, processes at once.",
    ),
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Time last each operator of the chosen build and its original, by their runtime's profiler.",
    ),
]
Sustained = Annotated[
    str,
    typer.Option(
        "--sustained", metavar="2m", help="Call each build for so long without a pause too: what it does when warm."
    ),
]
DeviceSamples = Annotated[
    int,
    typer.Option(
        "--device-samples",
        metavar="N",
        min=0,
        help="Compute the metric on at most so many samples of a split, the same on every device; else on all.",
        show_default=False,
    ),
]
IfNotQuiet = Annotated[
    str,
    typer.Option(
        "--if-not-quiet",
        metavar="mark|refuse",
        help="A device that is not quiet, cool and in its power mode after waiting: mark its figures, or refuse to measure.",
    ),
]
PowerMode = Annotated[
    str,
    typer.Option(
        "--power-mode", metavar="NAME", help="The power mode devices should be in; else what their profiles declare."
    ),
]
Runtime = Annotated[
    list[str],
    typer.Option(
        "--runtime",
        metavar="NAME...",
        help="Runtimes to build for: onnxruntime, openvino, ncnn, tensorrt, torch_tensorrt, onnxruntime-cuda, "
        "onnxruntime-tensorrt; or 'all' that a device has.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended, and show its report.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what would be done; start nothing.")]
AcceptEmulated = Annotated[
    bool, typer.Option("--accept-emulated", help="Choose for emulated devices too; their timings mean nothing.")
]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")]


def application(summary: str) -> typer.Typer:
    """A typer application as all of ours are: plain help that fits any terminal, no tracebacks of its own."""
    return typer.Typer(
        help=summary,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )


class SeveralValues(TyperCommand):
    """A command whose list options take several values at once: `--on pi edge` means `--on pi --on edge`.

    Only once the command's own arguments are complete, so that `--on pi MODEL` keeps its meaning.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell the repeated values out, then parse as usual."""
        return super().parse_args(ctx, spell_out(args, self._options(), self._arguments()))

    def _options(self) -> dict[str, str]:
        """Each option's spelling with `none`, `one` or `many` values."""
        kinds = {}
        for parameter in self.params:
            if parameter.param_type_name == "option":
                flag = getattr(parameter, "is_flag", False)
                kind = "none" if flag else "many" if getattr(parameter, "multiple", False) else "one"
                kinds.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), kind))
        return kinds

    def _arguments(self) -> int:
        return sum(1 for parameter in self.params if parameter.param_type_name == "argument")


def spell_out(args: Sequence[str], options: dict[str, str], arguments: int) -> list[str]:
    """`args` with the option repeated before each further value of an option that takes many."""
    done: list[str] = []
    rest = list(args)
    positional, current = 0, ""
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*done, word, *rest]
        if word.startswith("-") and word != "-":
            kind = options.get(word, "none")
            current = word if kind == "many" else ""
            done.append(word)
            if kind != "none" and rest:
                done.append(rest.pop(0))
        elif current and positional >= arguments:
            done += [current, word]
        else:
            positional, current = positional + 1, ""
            done.append(word)
    return done
