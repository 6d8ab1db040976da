"""Where tables are shown, and how people say a duration."""

from rich.console import Console


def default_console() -> Console:
    """The terminal; 120 columns where the output is piped to a file or a log, which has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=max(120, console.width))


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 5 s, 2 h 10 min, 12 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{round(whole / 86400):,} days"
