"""The layers of DESIGN.md: an import may only point down, and only the top knows Hydra."""

import ast
from pathlib import Path

import stepwise_pl

PACKAGE = Path(stepwise_pl.__file__).parent

LAYERS = [
    # plain functions and small classes
    {"errors", "disk", "terminal", "hub", "registry", "provenance", "processes", "signals", "upgrade", "marks", "schedules.base", "schedules.linear", "schedules.adaptive", "schedules", "tasks.base", "tasks.reading",
     "tasks.files", "tasks.gsm8k", "tasks.multiplication", "tasks.sampling", "tasks.parity", "tasks.addition",
     "tasks.word_problems", "tasks.long_multiplication", "tasks.multiplication_ood", "tasks", "config", "commands", "statistics",
     "predictions", "records", "expected", "older_transformers"},
    # torch and transformers
    {"batch", "removal", "tokenizing", "roundtrip", "pace", "metrics", "causality", "decoding", "models", "architecture", "lora", "cache", "checking", "datamodule", "evaluation",
     "optimizers"},
    # Lightning
    {"module", "sharding", "precision", "callbacks", "guard", "loggers", "wandb_runs", "results"},
    # entry points and what they share
    {"cli", "overrides", "run_folder", "building", "runs", "early", "multirun", "sweep_folder", "sweep_results", "sweep", "train", "evaluate", "compare", "export", "write_data", "check_data", "dashboard",
     "report", "reporting", "reporting.history", "reporting.figures", "reporting.tables", "reporting.interactive",
     "reporting.static", "reporting.page"},
]  # fmt: skip
HEAVY = {"torch", "lightning", "transformers", "torchmetrics", "tokenizers", "wandb", "matplotlib"}


def imports(path: Path) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): imports(path)
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def test_every_module_has_its_layer() -> None:
    assert set(MODULES) == set(LEVEL)


def test_imports_point_down() -> None:
    for name, imported in MODULES.items():
        for other in imported:
            target = other.removeprefix("stepwise_pl.")
            if other.startswith("stepwise_pl.") and target in LEVEL:
                assert LEVEL[target] <= LEVEL[name], f"{name} imports {target}"


def test_who_knows_what() -> None:
    roots = {name: {module.split(".")[0] for module in imported} for name, imported in MODULES.items()}
    for name, known in roots.items():
        if name not in ("cli", "overrides", "multirun"):
            assert not known & {"hydra", "omegaconf"}, name
        if LEVEL[name] == 0 or name in ("cli", "overrides", "multirun", "sweep_folder"):
            assert not known & HEAVY, name
        if LEVEL[name] == 1 and name != "datamodule":
            assert "lightning" not in known, name
