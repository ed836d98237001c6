"""Planning a job, or starting and following it: what `compress` and `bench` share."""

from __future__ import annotations

import typer

from fleetfit.client.client import Client, connect
from fleetfit.client.commands.jobs import ended_badly, ending
from fleetfit.client.commands.report import table_text
from fleetfit.client.following import follow_job
from fleetfit.client.output import Output
from fleetfit.client.plain import to_plain
from fleetfit.client.progress import Follower
from fleetfit.client.requests import Wanted, job_spec
from fleetfit.client.tables.words import duration, job_id, size
from fleetfit.core.errors import UsageError
from fleetfit.proto.v1 import jobs_pb2


def start_job(wanted: Wanted, server: str, *, wait: bool, plan: bool, as_json: bool) -> None:
    """Carry out `--plan`, `--wait` or neither. With `wait` a job that fails ends the command with 1."""
    if wait and plan:
        raise UsageError("--plan starts nothing, so there is nothing to --wait for; leave one of the two out")
    # What cannot be meant is said before a server is looked for. Made once: a recipe may come through a pipe.
    spec = job_spec(wanted)
    output = Output(as_json)
    with connect(server) as client:
        if plan:
            _show_plan(client.plan(spec), output)
            return
        job = client.start(spec)
        name = job_id(job.job_id)
        if not wait:
            if as_json:
                output.json({"job": to_plain(job)})
            output.say(f"the job {name} is started; `fleetfit jobs watch {name}` follows it")
            return
        with Follower() as told:
            job = follow_job(client, job.job_id, told)
        _show_end(client, job, output)


def _show_plan(plan: jobs_pb2.Plan, output: Output) -> None:
    if output.as_json:
        output.json({"plan": to_plain(plan)})
        return
    from fleetfit.client.tables.lists import plan_table

    output.show(plan_table(plan))
    fetched: dict[str, int] = {}
    for one in plan.candidates:
        fetched[one.device] = fetched.get(one.device, 0) + one.download_bytes
    for device, count in fetched.items():
        output.say(f"{device} will fetch {size(count)}")
    for note in plan.notes:
        output.say(f"note: {note}")
    output.say(f"expected: {duration(plan.expected_total_ms / 1000)} in all; nothing was started")


def _show_end(client: Client, job: jobs_pb2.Job, output: Output) -> None:
    if ended_badly(job):
        if output.as_json:
            output.json({"job": to_plain(job), "report": None})
        else:
            typer.echo(f"fleetfit: {ending(job)}", err=True)
        raise typer.Exit(1)
    found = client.report(job.job_id)
    if output.as_json:
        output.json({"job": to_plain(job), "report": found})
    else:
        output.say(table_text(found).rstrip("\n"))
        output.say(f"\n`fleetfit pull {job_id(job.job_id)} --device DEVICE -o DIR` fetches a build")
