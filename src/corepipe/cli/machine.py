"""Commands about the machine: doctor, calibrate, emulate."""

from __future__ import annotations

from typing import Annotated

import typer

from corepipe.cli.common import (
    DEFAULT_ENGINE,
    Cores,
    Json,
    OneEngine,
    ProgressBar,
    app,
    log,
    machine_at_hand,
    out,
    resumable,
    topology_of,
    write_json,
)
from corepipe.document import check_writable
from corepipe.errors import DocumentError
from corepipe.report.terminal import say


@app.command()
def doctor(cores: Cores = None, json_to: Json = None) -> None:
    """Show this machine's clusters, what may be used of it, and what would spoil a measurement."""
    from corepipe.report.doctor import doctor_json, render_doctor

    check_writable(json_to)
    topology = topology_of(cores)
    if not write_json(json_to, lambda: doctor_json(topology)):
        render_doctor(topology, out())


@app.command()
def calibrate(
    engine: OneEngine = DEFAULT_ENGINE,
    cores: Cores = None,
    json_to: Json = None,
) -> None:
    """Measure this machine once (some minutes), so that networks can be planned without running them."""
    from corepipe.api import engine_name, engine_names
    from corepipe.cost import calibrate as calibrating
    from corepipe.cost.calibration_store import CalibrationStore, check_trust
    from corepipe.report.predict import render_calibration

    check_writable(json_to)
    topology, chosen, store = machine_at_hand(cores), engine_name(engine), CalibrationStore()
    if json_to is None:
        store.check_writable()
    installed = engine_names()
    with resumable("start again to go on"), ProgressBar() as on_progress:
        found = calibrating.calibrate(
            topology,
            chosen,
            done=store.load_partial(topology, chosen),
            on_progress=on_progress,
            on_partial=lambda partial: store.save_partial(topology, chosen, partial),
        )
    if not write_json(json_to, found.to_json):
        render_calibration(found, out())
    try:
        path = store.save(topology, chosen, found)
    except DocumentError as error:
        if json_to is None:
            raise
        say(log, f"warning: {error}; what was written is used with --machine FILE")
    else:
        say(log, f"kept in {path}; copy it to plan for this machine elsewhere (predict --machine)")
        others = [one.name for one in installed if store.load(topology, one) is None]
        if others:
            still = f"networks are still measured where plans may use {', '.join(others)} too"
            say(log, f"{still}; --engine {engine} predicts")
    check_trust(found)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def emulate(
    command: Annotated[list[str], typer.Argument(help="The command to run, after --.")],
    slow: Annotated[
        list[str], typer.Option("--slow", help="CPUs and the share of their speed to leave: 1:0.4 or 4-7:0.4.")
    ],
) -> None:
    """Run a command while chosen cores are slower, for everyone: corepipe emulate --slow 1:0.4 -- COMMAND."""
    from corepipe.emulate import parse_slow, run_command

    raise typer.Exit(run_command(parse_slow(*slow), command))
