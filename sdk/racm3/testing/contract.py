"""What all contracts share: checks that run under pytest and without it, temporary places, and skips with a reason.

A contract is a class whose methods `test_*` each state one rule in their docstring and raise `ContractViolation`, with
what was expected and what came, where it is broken. Nothing here needs pytest.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..discovery import describe
from ..errors import RACM3Error

T = TypeVar("T")

# What a component module, and a plugin's module all the more, leaves to the first use.
HEAVY = (
    "accelerate", "chromadb", "diffusers", "faiss", "jax", "matplotlib", "onnxruntime", "open_clip", "pandas", "scipy",
    "sentence_transformers", "sklearn", "tensorflow", "torch", "torchvision", "transformers",
)  # fmt: skip
CHILD_SECONDS = 120


class ContractViolation(AssertionError):
    """A component does not do what its interface promises."""


def expect(condition: object, otherwise: str) -> None:
    """Raise `ContractViolation`, saying what is wrong, unless the condition holds."""
    if not condition:
        raise ContractViolation(otherwise)


def expect_equal(got: object, expected: object, what: str) -> None:
    """Raise `ContractViolation` unless two values are equal."""
    if got != expected:
        raise ContractViolation(f"{what}: expected {_short(expected)}, got {_short(got)}")


@contextmanager
def expect_error(kind: type[RACM3Error], what: str) -> Iterator[None]:
    """Raise `ContractViolation` unless the block raises that error, with a message."""
    try:
        yield
    except kind as error:
        expect(error.message.strip(), f"{what}: {type(error).__name__} without a message")
    except Exception as error:
        wanted = f"{what} should raise {kind.__name__}, and raised {type(error).__name__}: {error}"
        raise ContractViolation(wanted) from error
    else:
        raise ContractViolation(f"{what} should raise {kind.__name__}, and raised nothing")


class Contract:
    """The base of the four contracts. Each check gets an instance of its own, as pytest does it.

    skips: rules that do not hold for this component, by the name of the check, each with its reason: shown by pytest and
    by `racm3 plugins check`. settings: plain values that the component is to be made with; set by
    `racm3 plugins check NAME --set KEY=VALUE`, and handed to the new processes that some checks start.
    """

    skips: ClassVar[Mapping[str, str]] = {}
    settings: Mapping[str, Any] = {}

    def setup_method(self, method: Callable[..., object]) -> None:
        """Called before every check, by pytest and by `run`. A subclass that has its own calls this one first."""
        unknown = sorted(set(self.skips) - set(checks(type(self))))
        expect(not unknown, f"skips names {unknown}, and there is no such check")
        changed = sorted(_overridden(type(self)))
        expect(not changed, f"{type(self).__name__} overrides {changed}: skip a rule with its reason, in `skips`")
        if reason := self.skips.get(method.__name__):
            raise unittest.SkipTest(reason)
        self._folder = tempfile.TemporaryDirectory(prefix="racm3-contract-", ignore_cleanup_errors=True)
        self._places = 0
        self._closing: list[Callable[[], object]] = []

    def teardown_method(self, method: Callable[..., object]) -> None:
        """Called after every check that was not skipped."""
        if not hasattr(self, "_folder"):
            return
        for close in reversed(self._closing):
            with suppress(Exception):  # the check has failed already, or closing has a check of its own
                close()
        self._folder.cleanup()

    def new_place(self) -> Path:
        """A path at which there is nothing yet."""
        self._places += 1
        return Path(self._folder.name) / f"place-{self._places}"

    def component_type(self) -> type:
        """The class under test."""
        raise NotImplementedError

    def in_new_process(self, work: str, **arguments: Any) -> Any:
        """Call a method of this contract in a new process, with JSON arguments, and give its JSON answer.

        The process knows the contract's file and its `settings`, and nothing else of this one.
        """
        return _in_child(
            "answer",
            file=inspect.getfile(type(self)),
            module=type(self).__module__,
            name=type(self).__qualname__,
            settings=dict(self.settings),
            work=work,
            arguments=arguments,
        )

    # Rules of every component

    def test_importing_it_is_light(self) -> None:
        """Importing the plugin, or the component's module, imports no heavy library: that waits for the first use."""
        kind = self.component_type()
        for module, file in {**_plugins_of(kind), kind.__module__: inspect.getfile(kind)}.items():
            heavy = _in_child("heavy_imports", module=module, file=file)
            expect(not heavy, f"importing {module} imports {', '.join(heavy)}: do that inside of methods")

    def test_its_settings_can_be_described(self) -> None:
        """The constructor's annotated keyword arguments have a JSON Schema, so that pipeline files can hold them."""
        from ..settings import settings_model

        try:
            settings_model(self.component_type()).model_json_schema()
        except Exception as error:
            raise ContractViolation(f"the settings cannot be described: {error}") from error


@dataclass(frozen=True)
class Verdict:
    """How one check went. rule: what it stands for. why: what is wrong, or why it was skipped."""

    check: str
    rule: str
    outcome: Literal["passed", "failed", "skipped"]
    why: str
    seconds: float


def checks(contract: type[Contract]) -> list[str]:
    """The names of a contract's checks, those of the component first, in the order in which they are written."""
    names: dict[str, None] = {}
    for owner in reversed(contract.__mro__):
        names |= dict.fromkeys(name for name in vars(owner) if name.startswith("test_"))
    return [name for name in names if callable(getattr(contract, name))]


def _overridden(contract: type[Contract]) -> set[str]:
    """The rules of the kit that a plugin's subclass has put something else, or nothing, in the place of."""
    kit = __name__.rpartition(".")[0]
    ours, theirs = set[str](), set[str]()
    for owner in contract.__mro__:
        (ours if owner.__module__.startswith(f"{kit}.") else theirs).update(vars(owner))
    return {name for name in ours & theirs if name.startswith("test_")}


def run(
    contract: type[Contract], settings: Mapping[str, Any] | None = None, *, only: Collection[str] | None = None
) -> Iterator[Verdict]:
    """Run the checks of a contract, without pytest. settings: those of the contract, if not its own. only: by name."""
    for name in checks(contract) if only is None else only:
        started = time.perf_counter()
        instance = contract()
        if settings is not None:
            instance.settings = settings
        outcome, why = _outcome(instance, name)
        rule = (inspect.getdoc(getattr(contract, name)) or name).split("\n\n")[0].replace("\n", " ")
        yield Verdict(name, rule, outcome, why, time.perf_counter() - started)


def _outcome(instance: Contract, name: str) -> tuple[Literal["passed", "failed", "skipped"], str]:
    check = getattr(instance, name)
    try:
        instance.setup_method(check)
        check()
    except unittest.SkipTest as skip:
        return "skipped", str(skip)
    except ContractViolation as violation:
        return "failed", str(violation)
    except RACM3Error as error:
        return "failed", f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a component that exits fails the check, and no more
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{describe(error)} ({Path(frame.filename).name}, line {frame.lineno})"
    finally:
        instance.teardown_method(check)
    return "passed", ""


def _in_child(function: str, **request: Any) -> Any:
    """What `answer` or `heavy_imports` returns in a new process that finds modules where this one does."""
    request["path"] = [str(Path(entry).resolve()) for entry in sys.path]
    child = "import json, sys; request = json.loads(sys.stdin.read()); sys.path[:] = request.pop('path'); "
    child += f"from racm3.testing.contract import {function} as work; print(); print(json.dumps(work(**request)))"
    command = [sys.executable, "-c", child]
    done = subprocess.run(
        command,
        input=json.dumps(request, default=str),
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=False,
    )
    last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    expect(done.returncode == 0, f"in a new process: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(
    module: str, file: str, name: str, settings: Mapping[str, Any], work: str, arguments: Mapping[str, Any]
) -> Any:
    """The other side of `Contract.in_new_process`: what a method of a contract returns."""
    found: Any = _module(module, file)
    for step in name.split("."):
        found = getattr(found, step)
    contract = found()
    contract.settings = settings
    return getattr(contract, work)(**arguments)


def _plugins_of(component: type) -> dict[str, str]:
    """The modules that racm3 imports at start to hear of a component, with their files; those are left out that the
    component's own module imports too, being packages that it lies in."""
    from ..registry import registry

    own = component.__module__
    infos = [info for info in registry().plugins() for record in info.components if record.target.startswith(f"{own}:")]
    implementations = [one for info in infos for one in info.hooks.racm3_components.get_hookimpls()]
    names = {
        one.function.__module__ for one in implementations if not f"{own}.".startswith(f"{one.function.__module__}.")
    }
    return {name: inspect.getfile(sys.modules[name]) for name in sorted(names)}


def heavy_imports(module: str, file: str) -> list[str]:
    """Which heavy libraries are loaded once a module is imported."""
    _module(module, file)
    return sorted(set(HEAVY) & set(sys.modules))


def _module(name: str, file: str) -> Any:
    """A module by name, or, when it is a test that no import finds, by its file."""
    import importlib
    import importlib.util

    try:
        module = importlib.import_module(name)
        if Path(str(module.__file__)).resolve() == Path(file).resolve():
            return module
    except ImportError:
        pass
    spec = importlib.util.spec_from_file_location("contract_under_test", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["contract_under_test"] = module
    spec.loader.exec_module(module)
    return module


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:297]}..."
