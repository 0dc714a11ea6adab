"""From a command line to a validated `adapterkit.config.run.RunConfig`, by way of Hydra. Imports no torch.

::

    app         Hydra's own entry point, wrapped
    arguments   argv -> flags and overrides, with what can be said about them before composing
    places      where presets lie, the project's and those of plugins
    source      entry-point names -> Hydra options
    nodes       defaults of Pydantic classes -> nodes, and composed nodes -> plain data
    validation  composed config -> RunConfig, or every problem at once
    explain     Pydantic's errors -> problems
    origin      where a key was set: the command line, or a line of a file
    diagnosis   what Hydra refused to compose -> problems
    problems    problems -> one screen
    sweeps      every trial of a sweep, checked without composing each
    preflight   the callback that checks a run, or a whole sweep, before anything is written
    task        what Hydra calls for a run or a trial; the only module here that leads to torch
    private     every name of Hydra that is not part of its documented interface
"""
