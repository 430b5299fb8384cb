"""The configuration: one frozen, typed value, complete before anything starts and replaced whole by a reload.

All problems are reported together, in one ConfigError, each with its place in the file. Only `model` imports pydantic,
which takes half of the program's start-up time; commands that need only a part of the configuration avoid it.

    yamlfile      YAML as located text
    references    `${…}` in values, resolved after parsing
    values        decoders for single settings
    addresses     decoders for addresses, origins and URLs
    symbols       symbols that cannot be meant
    secret        secrets, and the settings that hold one
    certificates  the certificate file, for the plan of a reload and for warnings
    model         the sections, and the loading of a file
    consistency   checks that involve several settings
    recording     warnings about the section `record`
    cluster       values of the section `cluster`, and warnings about it
    reload_plan   the differences between two configurations
    errors        ConfigError and its problems
"""
