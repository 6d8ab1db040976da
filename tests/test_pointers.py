"""Every path and module that a comment, a docstring or a page of the documentation cites exists."""

import io
import re
import subprocess
import tokenize
from importlib.util import find_spec

from tests.places import ROOT

_READ = (".py", ".md", ".yaml", ".toml")
_PATH = re.compile(r"(?<![\w./*{<-])((?:harc|pipelines|eval|conf|docs|tests|benchmarks)/[\w./-]*\w)(?![\w*{<$])")
_MODULE = re.compile(r"(?<![\w./{-])((?:harc|pipelines|eval)(?:\.[a-z_]\w*)+)(?![\w*{<$])")


def _texts():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in _READ and not name.startswith("tests/") and path.is_file():
            text = path.read_text(encoding="utf-8")
            yield name, _prose(text) if path.suffix == ".py" else text


def _prose(source: str) -> str:
    """The comments and strings of Python source, docstrings among them."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING))


def _is_there(cited: str) -> bool:
    return (ROOT / cited).exists() or bool(list((ROOT / cited).parent.glob(f"{(ROOT / cited).name}.*")))


def _resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one (`harc.calibrate`, `harc.merging.METHODS`)."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            spec = find_spec(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        if spec is not None:
            if end == len(parts):
                return True
            module = __import__(".".join(parts[:end]), fromlist=["_"])
            value = module
            for part in parts[end:]:
                if not hasattr(value, part):
                    return end > 1 and part in getattr(value, "__annotations__", {})
                value = getattr(value, part)
            return True
    return False


def test_every_path_that_is_cited_exists():
    missing = [
        f"{name}: {cited}"
        for name, text in _texts()
        for cited in _PATH.findall(text)
        if not _is_there(cited.rstrip("."))
    ]
    assert not missing, "\n".join(missing)


def test_every_module_that_is_cited_exists():
    cited = {(name, dotted) for name, text in _texts() for dotted in _MODULE.findall(text)}
    files = {path.name for path in (ROOT / "pipelines").rglob("*.*")}
    missing = sorted(f"{name}: {dotted}" for name, dotted in cited if dotted not in files and not _resolves(dotted))
    assert not missing, "\n".join(missing)
