"""The configuration: one frozen, typed value, complete before anything starts and replaced whole by a reload.

Whatever is wrong comes at once, as one ConfigError whose problems have their place. Only `model` imports pydantic,
which is half of the program's start; verbs that need no more than a part do without it.

    yamlfile      YAML as located text
    references    `${…}` in values, resolved after parsing
    values        the type of one setting
    addresses     settings that are addresses
    secret        how secrets are held
    model         the sections, and the reading of a file
    consistency   what settings demand of each other
    reload_plan   what a new configuration changes
    errors        ConfigError and its problems
"""
