"""python -m switchyard.conform package.module:function

Runs the invariants that apply to a load-balancing loss and prints holds / fails / does not apply. Exit code 0: none fails; 1: one does;
2: wrong use.
"""

import argparse
import importlib
import inspect
import json
import os
import pathlib
import sys

import torch

from . import page, table
from .checks import CHECKS, run_checks


def fail(message):
    print(f"switchyard.conform: {message}", file=sys.stderr)
    sys.exit(2)


def function_of(target):
    """The function that "package.module:function" names."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        fail(f"{target!r}: expected package.module:function, such as switchyard.conform.adapters.megatron:global_loss")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # also a mistake in the user's file, or a script that runs at once
        fail(f"cannot import {module_name}: {type(error).__name__}: {error}")
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_")))
        fail(f"{module_name} has no function {name!r}; it has: {known or 'none'}")
    try:
        inspect.signature(function).bind("batch", "group", "memory")
    except TypeError as error:
        fail(f"{target} cannot be called as function(batch, group, memory): {error}")
    return function


def shipped():
    """The shipped adapters; they need transformers, the rest of the suite does not."""
    try:
        from .adapters import SHIPPED
    except ImportError as error:
        fail(f"the shipped adapters need a package that is not installed: {error}")
    return SHIPPED


def main():
    parser = argparse.ArgumentParser(prog="python -m switchyard.conform", description=" ".join(__doc__.strip().splitlines()[2:]),
                                     epilog="docs/conform.md says what the function is given.")
    parser.add_argument("functions", nargs="*", metavar="package.module:function")
    parser.add_argument("--shipped", action="store_true", help="the shipped adapters too")
    parser.add_argument("--only", help="one invariant: B1 to B28")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="an array of objects: function, id, check, verdict, message")
    form.add_argument("--markdown", action="store_true", help="a table in Markdown")
    parser.add_argument("--write-page", type=pathlib.Path, metavar="PAGE", help="write the tables of docs/conform.md")
    parser.add_argument("--program", type=pathlib.Path, help="with --write-page: the switchyard program, for our own table")
    options = parser.parse_args()
    known = list(dict.fromkeys(id_ for id_, _, _ in CHECKS))
    options.only = options.only and options.only.upper()
    if options.only not in [None] + known:
        fail(f"unknown invariant {options.only!r}; known: {', '.join(known)}")
    functions = [(target, function_of(target)) for target in options.functions]
    if options.shipped or options.write_page:
        functions += shipped()
    if not functions:
        fail("no function given; expected package.module:function, or --shipped")
    torch.set_num_threads(1)  # thousands of steps of a few tokens: threads would only wait for each other
    results = [(name, run_checks(function, options.only)) for name, function in functions]
    if options.write_page:
        page.write(options.write_page, results, functions, options.program)
        return 0
    if options.json:
        print(json.dumps(table.data(results), indent=2))
    else:
        print(table.markdown(results) if options.markdown else table.text(results))
    return 1 if any(item["verdict"] == "fails" for item in table.data(results)) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
