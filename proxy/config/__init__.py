"""The configuration: one frozen, typed value, complete before anything starts and replaced whole by a reload.

`yamlfile` reads a file as located text (`references` resolves its `${…}`), `settings`, `addresses` and `secret` give
each value its type, `model` is the whole, `consistency` checks what settings demand of each other. Whatever is wrong
comes at once, as one ConfigError whose problems have their place.

Only `model` needs pydantic, half of the program's start; verbs that do without the whole do without it.
"""
