"""From a command line to a validated `adapterkit.config.run.RunConfig`, by way of Hydra. Imports no torch.

::

    arguments   argv -> flags and overrides, with what can be said about them before composing
    source      entry-point names -> Hydra options; nodes -> defaults of the Pydantic classes
    validation  composed config -> RunConfig, or every problem at once
    origin      where a key was set: the command line, or a line of a file
    diagnosis   what Hydra refused to compose -> the same kind of problems
    preflight   the callback that checks a run, or a whole sweep, before anything is written
    app         Hydra's own entry point, wrapped
    private     every name of Hydra that is not part of its documented interface
"""
