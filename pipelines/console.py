"""Where tables are shown."""

from rich.console import Console


def default_console() -> Console:
    """The terminal; 120 columns where the output is piped to a file or a log, which has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=max(120, console.width))
