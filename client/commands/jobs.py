"""`fleetfit jobs`: list, show, watch, cancel, resume."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetfit.client.client import connect
from fleetfit.client.commands.options import AsJson, Server, application
from fleetfit.client.following import follow_job
from fleetfit.client.output import Output
from fleetfit.client.plain import enum_word, to_plain
from fleetfit.client.progress import Follower
from fleetfit.client.tables.words import ago, duration, job_id
from fleetfit.proto.v1 import jobs_pb2

app = application("List, watch, cancel or resume jobs.")

Job = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, the end of one, or 'last'.", show_default=False)]


def state_of(job: jobs_pb2.Job) -> str:
    """A job's state in a word."""
    return enum_word(jobs_pb2.JobState.DESCRIPTOR, job.state)


def ended_badly(job: jobs_pb2.Job) -> bool:
    """Whether a job failed or was cancelled."""
    return job.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)


def ending(job: jobs_pb2.Job) -> str:
    """How a job ended, in a sentence that says what to do next."""
    name = job_id(job.job_id)
    if job.state == jobs_pb2.JOB_STATE_DONE:
        return f"the job {name} is done; `fleetfit report {name}` shows what was measured"
    if job.state == jobs_pb2.JOB_STATE_CANCELLED:
        return f"the job {name} was cancelled; `fleetfit jobs resume {name}` goes on with it"
    return (
        f"the job {name} failed{': ' + job.reason if job.reason else ''}; `fleetfit jobs resume {name}` goes on with it"
    )


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    output = Output(as_json)
    with connect(server) as client:
        jobs = client.jobs(limit)
    if as_json:
        output.json({"jobs": [to_plain(job) for job in jobs]})
    elif not jobs:
        output.say("there is no job yet; `fleetfit compress` or `fleetfit bench` starts one")
    else:
        from fleetfit.client.tables.lists import jobs_table

        output.show(jobs_table(jobs))


@app.command()
def show(job: Job, server: Server = "", as_json: AsJson = False) -> None:
    """Show a job and how far each of its candidates is."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.job(job)
    if as_json:
        output.json({"job": to_plain(found)})
        return
    from fleetfit.client.tables.lists import job_candidates

    left = f", {duration(found.progress.remaining_ms / 1000)} left" if found.progress.HasField("remaining_ms") else ""
    running = found.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)
    doing = f": {found.progress.activity}, {found.progress.fraction:.0%}{left}" if running else ""
    output.say(f"job {found.job_id} of {found.spec.model}, begun {ago(found.created_unix_ms)}")
    output.say(f"{state_of(found)}{doing}{': ' + found.reason if found.reason else ''}\n")
    output.show(job_candidates(found))


@app.command()
def watch(job: Job, server: Server = "", as_json: AsJson = False) -> None:
    """Follow a job until it has ended. With --json, one object for each change."""
    output = Output(as_json)
    with connect(server) as client, Follower(quiet=as_json) as told:
        on_state = (lambda state: output.json({"job": to_plain(state)})) if as_json else (lambda state: None)
        found = follow_job(client, job, told, on_state)
    output.say(ending(found))
    if ended_badly(found):
        raise typer.Exit(1)


@app.command()
def cancel(job: Job, server: Server = "", as_json: AsJson = False) -> None:
    """Stop a job; what was done stays done."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.cancel(job)
    if as_json:
        output.json({"job": to_plain(found)})
    output.say(
        f"the job {job_id(found.job_id)} is cancelled; `fleetfit jobs resume {job_id(found.job_id)}` goes on with it"
    )


@app.command()
def resume(job: Job, server: Server = "", as_json: AsJson = False) -> None:
    """Go on with a job that was cancelled, or in which something failed."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.resume_job(job)
    if as_json:
        output.json({"job": to_plain(found)})
    output.say(f"the job {job_id(found.job_id)} goes on; `fleetfit jobs watch {job_id(found.job_id)}` follows it")
